"""Saved forms: opening files of ours and of kohya_ss, saving, presets. A file that is damaged changes nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_gui import lora_metadata, network_kind, own_format, saved_text
from kohya_gui.command import without_secrets
from kohya_gui.draft import Draft, ReportLine
from kohya_gui.migrate import MOST_UNKNOWN, migrate, read_values
from kohya_gui.migrate_steps import one_choice
from kohya_gui.old_keys import families_of, tab_of
from kohya_gui.saved_text import read_file
from kohya_gui.whole_file import write_whole
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS, find_tab, tab_aliases, tab_fields

__all__ = [
    "COMMANDS_OF_TABS",
    "Opened",
    "Preset",
    "SAVED_SUFFIXES",
    "ReportLine",
    "command_of",
    "open_file",
    "open_header",
    "open_text",
    "presets",
    "read_file",
    "save_text",
    "tab_for",
    "write_file",
]

PROJECT = Path(__file__).resolve().parent.parent
COMMANDS_OF_TABS = {name: tab.command for name, tab in TABS.items()}
USUAL_TAB = "lora"
SAVED_SUFFIXES = (".json",)
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Opened:
    """What a file holds.

    `values` are for the form of `tab` (None: the field is empty on purpose), `extras` are keys without a field, to be
    saved again. Where `partial` is true, the file is no saved form: only the values in it are meant, all others stay.
    """

    values: dict[str, Any]
    report: list[ReportLine] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    partial: bool = False
    tab: str = USUAL_TAB


@dataclass(frozen=True)
class Preset:
    """A named set of values that came with the project or was saved by the person."""

    name: str
    path: Path
    description: str
    values: dict[str, Any]


def command_of(tab: str) -> str:
    """The command behind a training tab.

    Raises:
        UserError: if there is no such tab.
    """
    return find_tab(tab).command


def tab_for(source: str | Mapping[str, Any], otherwise: str = USUAL_TAB) -> str:
    """The training tab that a file (its text, or the table read from it) belongs to; `otherwise` if it does not tell.

    Raises:
        UserError: for a text that is no table of settings.
    """
    raw = saved_text.parse(source).raw if isinstance(source, str) else source
    if own_format.is_ours(raw):
        return str(raw["tab"]) if raw.get("tab") in tuple(TABS) else otherwise
    return tab_of(raw) or otherwise


def open_text(text: str, tab: str | None = None, *, otherwise: str = USUAL_TAB) -> Opened:
    """The values in a saved file: ours, JSON of kohya_ss v20 to v26, a trainer's TOML, or a file that lies beside them.

    Args:
        text: the file's text.
        tab: read it for this tab, whatever it was saved in; None reads it for its own (`Opened.tab`).
        otherwise: the tab where the file does not tell its own.

    Raises:
        UserError: in one sentence, if it is nothing of the kind; nothing is changed then.
    """
    content = saved_text.parse(text)
    raw = content.raw
    wanted = find_tab(tab).name if tab is not None else ""
    own = tab_for(raw, wanted or otherwise)
    other = _other_file(raw, wanted or otherwise)
    if other is not None:
        return other
    if own_format.is_ours(raw):
        draft = own_format.read(raw, own)
        if raw.get("tab") not in (None, *TABS):
            draft.say("unknown", "tab", f"There is no tab {str(raw['tab'])[:40]!r}; the file is read as one of {own}.")
    else:
        _refuse_strange(raw, own)
        draft = _trainer_toml(raw, own) if content.toml else migrate(raw, own)
        _say_family(draft, raw)
    for key in content.doubled[:MOST_UNKNOWN]:
        draft.say("repaired", key[:60], f"{key[:60]} is in the file more than once; the last one counts.")
    for key in content.broken[:MOST_UNKNOWN]:
        draft.say("repaired", key[:60], f"{key[:60]} holds signs that no text has; they are question marks now.")
    description = raw.get("description") if own_format.is_ours(raw) else ""
    opened = Opened(
        draft.values, draft.report, draft.extras, description if isinstance(description, str) else "", tab=own
    )
    return _carried(opened, wanted) if wanted and wanted != own else opened


def open_file(path: Path, tab: str | None = None, *, otherwise: str = USUAL_TAB) -> Opened:
    """The same from a file; a dataset description or metadata file fills the field for its path.

    A .safetensors file gives the settings that its header tells, a base model fills the field of the base model.

    Raises:
        UserError: if it cannot be read or is nothing of the kind.
    """
    if path.suffix.lower() == _WEIGHTS:
        return _from_weights(lora_metadata.read_file(path), tab, otherwise, str(path))
    opened = open_text(read_file(path), tab, otherwise=otherwise)
    if opened.partial:
        return replace(opened, values={key: str(path) for key in opened.values}, extras={}, description="")
    return opened


def open_header(name: str, head: bytes, tab: str | None = None, *, otherwise: str = USUAL_TAB) -> Opened:
    """The settings that a .safetensors file tells, from its first bytes: 8 for the length N of its header, then N.

    Args:
        name: the file's name, for messages.
        head: the bytes; more of the file may follow.
        tab, otherwise: as for `open_text`.

    Raises:
        UserError: in one sentence, if it is no such file or tells nothing.
    """
    return _from_weights(lora_metadata.read_head(name, head), tab, otherwise, "")


def save_text(
    tab: str, values: Mapping[str, Any], extras: Mapping[str, Any] | None = None, description: str = ""
) -> str:
    """The text of a saved form: flat JSON in the order of the form. Tokens and keys are never written.

    Raises:
        UserError: for a value that JSON cannot hold.
    """
    known = tab_fields(tab)
    secret = {key for key, option in known.items() if option.kind == "secret"}
    kept = without_secrets(command_of(tab), values)
    aside = {key: value for key, value in (extras or {}).items() if key not in secret}
    try:
        table = own_format.content(tab, known, kept, aside, description)
        return json.dumps(table, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"The form holds a value that cannot be saved: {error}.") from error


def write_file(path: Path, text: str) -> None:
    """Write a saved form: the file is the old one or the new one, never half of it.

    Raises:
        UserError: if it cannot be written.
    """
    if path.suffix.lower() != ".json" or path.name.startswith("."):
        # whoever reaches the page could otherwise write text of his own into a start-up file of the shell
        raise UserError(f"{path.name} is no name for a saved form.", hint="Let it end in .json.")
    try:
        # a file name that is no UTF-8 came in with marks for its bytes, which no file can hold
        write_whole(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", hint="Choose another folder.") from error


def presets(tab: str, root: Path = PROJECT / "presets") -> list[Preset]:
    """The presets of a tab that came with the project; those of the person are in `user_presets`. Unreadable files are
    left out."""
    found = []
    for path in sorted((root / tab).glob("*.json")):
        try:
            opened = open_file(path, tab)
        except UserError:
            continue
        if not opened.partial:
            found.append(Preset(path.stem, path, opened.description, opened.values))
    return found


def _refuse_strange(raw: Mapping[str, Any], tab: str) -> None:
    known = {*tab_fields(tab), *tab_aliases(tab), "use_8bit_adam", "model_list", "max_resolution"}
    if not (raw.keys() & known or families_of(raw)):
        raise UserError(
            "The file holds no setting that is known here.", hint="Choose a file saved by this page or by kohya_ss."
        )


def _say_family(draft: Draft, raw: Mapping[str, Any]) -> None:
    """First of all: the file trains something that is not here."""
    for name in families_of(raw):
        message = f"The file is for {name}, which cannot be trained here yet; its own settings stay in the file."
        draft.report.insert(0, ReportLine("kept", "", message))


def _trainer_toml(raw: dict[str, Any], tab: str) -> Draft:
    """A trainer's own file: its keys are those of today, missing ones mean the trainer's defaults."""
    flat = {key: value for key, value in raw.items() if not isinstance(value, dict)}
    for table in raw.values():
        # headings mean nothing to the trainer
        flat |= table if isinstance(table, dict) else {}
    draft = Draft(flat, tab)
    one_choice(draft)
    if tab == "lora" and isinstance(flat.get("network_module"), str):
        network_kind.split(draft, draft.raw.pop("network_module"), draft.raw.pop("network_args", None))
    for old, new in tab_aliases(tab).items():
        if old in draft.raw and new not in draft.raw:
            draft.raw[new] = draft.raw.pop(old)
    read_values(draft)
    return draft


def _carried(opened: Opened, tab: str) -> Opened:
    """A file of another tab, read for this one: what both know stays, the rest goes aside."""
    known = tab_fields(tab)
    values = {key: value for key, value in opened.values.items() if key in known}
    aside = {key: value for key, value in opened.values.items() if key not in known and value is not None}
    title = TABS[opened.tab].title
    line = ReportLine("kept", "", f"The file is of the {title} tab; what both tabs know was taken from it.")
    return replace(
        opened, values=values, extras={**opened.extras, **aside}, report=[line, *opened.report], tab=find_tab(tab).name
    )


def _from_weights(found: lora_metadata.Found, tab: str | None, otherwise: str, path: str) -> Opened:
    own = found.tab or tab or otherwise
    values = dict(found.values)
    if found.is_base_model:
        values = {"pretrained_model_name_or_path": path} if path else {}
    opened = Opened(values, found.report, partial=True, tab=find_tab(own).name)
    return _carried(opened, tab) if tab is not None and tab != own else opened


def _other_file(raw: Mapping[str, Any], tab: str) -> Opened | None:
    """Files that lie beside saved forms and are easily taken for one."""
    if isinstance(raw.get("datasets"), list):
        key, what = "dataset_config", "a description of datasets"
    elif raw and all(isinstance(v, dict) and {"caption", "tags", "train_resolution"} & v.keys() for v in raw.values()):
        key, what = "in_json", "a metadata file of pictures and captions"
    elif isinstance(raw.get("prompts"), list | dict) and not isinstance(raw.get("LoRA_type"), str):
        key, what = "", "a file of prompts"
    else:
        return None
    message = f"The file is {what}, no saved form: no setting was changed."
    option = tab_fields(tab).get(key)
    if option is not None:
        message += f" Its path belongs into the field {option.label!r}."
    filled = {key: ""} if option is not None else {}
    return Opened(filled, [ReportLine("kept", key, message)], partial=True, tab=tab)
