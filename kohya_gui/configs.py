"""Saved forms: opening files of ours and of kohya_ss, saving, presets. A file that is damaged changes nothing."""

import contextlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui.migrate import Draft, ReportLine, migrate, read_values
from kohya_gui.old_keys import tab_of
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import fields
from sd_scripts.schema.tabs import TABS

PROJECT = Path(__file__).resolve().parent.parent
FORMAT, VERSION = "kohya-gui", 1
COMMANDS_OF_TABS = {tab.name: tab.command for tab in TABS.values()}
MOST_BYTES = 2_000_000
MOST_KEYS = 3000
MOST_DEPTH = 20
_OWN = ("format", "version", "tab", "description")
_TAB_NAMES = {
    "lora": "LoRA",
    "dreambooth": "Dreambooth",
    "finetune": "Finetune",
    "textual_inversion": "Textual Inversion",
}


@dataclass(frozen=True)
class Opened:
    """What a file holds.

    `values` are for the form (None: the field is empty on purpose), `extras` are keys without a field, to be saved
    again. Where `partial` is true, the file is no saved form: only the values in it are meant, all others stay.
    """

    values: dict[str, Any]
    report: list[ReportLine] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    partial: bool = False


@dataclass(frozen=True)
class Preset:
    """A named set of values that ships with the project or was saved by the person."""

    name: str
    path: Path
    description: str
    values: dict[str, Any]


def command_of(tab: str) -> str:
    """The command behind a training tab.

    Raises:
        UserError: if there is no such tab.
    """
    if tab not in COMMANDS_OF_TABS:
        raise UserError(f"There is no training tab {tab!r}.")
    return COMMANDS_OF_TABS[tab]


def open_text(text: str, tab: str = "lora") -> Opened:
    """The values in a saved file: ours, or JSON of kohya_ss v20 to v26, or one of the files that lie beside it.

    Raises:
        UserError: in one sentence, if it is nothing of the kind; nothing is changed then.
    """
    command = command_of(tab)
    raw = _parse(text)
    other = _other_file(raw)
    if other is not None:
        return other
    if raw.get("format") == FORMAT:
        return _open_ours(raw, tab, command)
    if not (
        set(raw) & set(fields(command)) or any(key in raw for key in ("optimizer", "max_resolution", "model_list"))
    ):
        raise UserError(
            "The file holds no setting that is known here.", hint="Choose a file saved by this page or by kohya_ss."
        )
    draft = migrate(raw, command)
    found = tab_of(raw)
    if found != tab:
        draft.report.insert(
            0,
            ReportLine(
                "kept", "", f"The file is of the {_TAB_NAMES[found]} tab; what both tabs know was taken from it."
            ),
        )
    return Opened(draft.values, draft.report, draft.extras)


def open_file(path: Path, tab: str = "lora") -> Opened:
    """The same from a file; a dataset description or metadata file fills the field for its path.

    Raises:
        UserError: if it cannot be read or is nothing of the kind.
    """
    opened = open_text(read_file(path), tab)
    if opened.partial:
        filled = {key: str(path) for key in opened.values}
        return Opened(filled, opened.report, partial=True)
    return opened


def read_file(path: Path) -> str:
    """The text of a file that may be a saved form.

    Raises:
        UserError: if it is missing, too large or no text.
    """
    try:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist.", hint="Choose another one.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path.name} is too large for a saved form ({size:,} bytes).", hint="Choose another file.")
        content = path.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name} is no text file.", hint="Choose a file saved by this page or by kohya_ss."
        ) from error


def save_text(
    tab: str, values: Mapping[str, Any], extras: Mapping[str, Any] | None = None, description: str = ""
) -> str:
    """The text of a saved form: flat JSON in the order of the form. Tokens and keys are never written.

    Raises:
        UserError: for a value that JSON cannot hold.
    """
    known = fields(command_of(tab))
    secret = {key for key, option in known.items() if option.kind == "secret"}
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "tab": tab}
    if description:
        content["description"] = description
    from kohya_gui.command import without_secrets

    kept = without_secrets(command_of(tab), values)
    content |= {key: kept[key] for key in known if key in kept}
    content |= {key: value for key, value in kept.items() if key not in content}
    content |= {key: value for key, value in (extras or {}).items() if key not in content and key not in secret}
    try:
        return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            # a file name that is no UTF-8 came in with marks for its bytes, which no file can hold
            file.write(text.encode("utf-8", "replace").decode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror}.", hint="Choose another folder.") from error


def presets(tab: str, root: Path = PROJECT / "presets") -> list[Preset]:
    """The presets of a tab: ours first, then the person's own (in user_presets). Unreadable files are left out."""
    found = []
    for folder in (root / tab, root / tab / "user_presets"):
        for path in sorted(folder.glob("*.json")):
            try:
                opened = open_file(path, tab)
            except UserError:
                continue
            if not opened.partial:
                found.append(Preset(path.stem, path, opened.description, opened.values))
    return found


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MOST_BYTES:
        raise UserError(
            f"The file is too large for a saved form ({len(text):,} characters).", hint="Choose another file."
        )
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise UserError("The file is nested too deeply for a saved form.") from error
    except ValueError as error:
        value = _parse_toml(text, error)
    if not isinstance(value, dict):
        raise UserError("The file holds no settings (a JSON object is needed).", hint="Choose another file.")
    if len(value) > MOST_KEYS or _depth(value) > MOST_DEPTH:
        raise UserError("The file holds far more than a saved form.", hint="Choose another file.")
    return value


def _no_constant(name: str) -> Any:
    raise UserError(f"The file holds {name}, which is no number.", hint="Correct it in a text editor.")


def _parse_toml(text: str, json_error: ValueError) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        where = f" (line {json_error.lineno})" if isinstance(json_error, json.JSONDecodeError) else ""
        raise UserError(f"The file is damaged or no saved form{where}.", hint="Choose another file.") from json_error


def _depth(value: Any, level: int = 0) -> int:
    if level > MOST_DEPTH or not isinstance(value, dict | list):
        return level
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(item, level + 1) for item in inner), default=level)


def _other_file(raw: Mapping[str, Any]) -> Opened | None:
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
    if key:
        message += f" Its path belongs into the field {fields('train_network')[key].label!r}."
    return Opened({key: ""} if key else {}, [ReportLine("kept", key, message)], partial=True)


def _open_ours(raw: dict[str, Any], tab: str, command: str) -> Opened:
    version = raw.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"The file was saved by a newer version of this page (format {version}).", hint="Update the project."
        )
    description = raw.get("description")
    draft = Draft({key: value for key, value in raw.items() if key not in _OWN})
    empty = {key: None for key, value in draft.raw.items() if value is None and key in fields(command)}
    read_values(draft, command)
    if raw.get("tab") not in (tab, None):
        name = _TAB_NAMES.get(str(raw["tab"]), str(raw["tab"]))
        draft.report.insert(
            0, ReportLine("kept", "", f"The file is of the {name} tab; what both tabs know was taken from it.")
        )
    return Opened(
        {**empty, **draft.values}, draft.report, draft.extras, description if isinstance(description, str) else ""
    )
