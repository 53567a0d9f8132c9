"""The page's own memory: start-up defaults from config.toml, and folders used last."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui import config_toml
from kohya_gui.config_toml import table
from kohya_gui.draft import Draft, ReportLine
from kohya_gui.layouts.shared import SET_BY_PAGE
from kohya_gui.migrate import modernise, read_values
from kohya_gui.supervisor import write_json
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import TABS, find_tab, tab_aliases, tab_fields

CONFIG_NAME = "config.toml"
THEMES = ("light", "dark")
# older names that a step of the migration reads
_MIGRATED = frozenset(
    (
        "v2", "v_parameterization", "sdxl", "use_8bit_adam", "use_wandb", "sdxl_no_half_vae",
        "sdxl_cache_text_encoder_outputs", "stop_text_encoder_training",
    )
)  # fmt: skip
_OWN = {
    "settings": ("theme", "language", "enable_info_tooltip", "use_shell"),
    "server": ("allowed_paths",),
}


@dataclass(frozen=True)
class Settings:
    """What config.toml says.

    `defaults` are the first values of each tab's form, `tools` those of tools by their table, `start_folders` where
    dialogs begin by field, `allowed_paths` folders to open to the page. `theme` is "light", "dark" or "" for the
    browser's, `language` "" for the usual one.
    `report` tells what was not understood.
    """

    path: Path | None = None
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    start_folders: Mapping[str, str] = field(default_factory=dict)
    allowed_paths: list[str] = field(default_factory=list)
    theme: str = ""
    language: str = ""
    tooltips: bool = True
    report: list[ReportLine] = field(default_factory=list)

    def values(self, tab: str) -> dict[str, Any]:
        """The first values of a tab's form, over those of its preset."""
        return dict(self.defaults.get(tab, {}))

    def tool_values(self, form: str, keys: Collection[str]) -> dict[str, Any]:
        """The first values of a tool's form, told by the form's name, for the fields that it has."""
        name = "dataset_preparation" if form.endswith("_folders") else form.removeprefix("tool_")
        return {key: value for key, value in self.tools.get(name, {}).items() if key in keys}


def load_settings(path: Path) -> Settings:
    """The start-up settings in a config.toml of kohya_ss or of ours; a missing file holds none.

    Raises:
        UserError: if the file is there but cannot be read as TOML.
    """
    content = config_toml.read(path)
    report: list[ReportLine] = []
    defaults = {tab: found for tab in TABS if (found := _tab_values(content, tab, report))}
    _report_rest(content, report)
    settings = table(content, "settings")
    theme, language = settings.get("theme"), settings.get("language")
    allowed = table(content, "server").get("allowed_paths")
    return Settings(
        path=path,
        defaults=defaults,
        tools={name: _tool_values(content, name, report) for name in config_toml.TOOL_TABLES if name in content},
        start_folders=_start_folders(content),
        allowed_paths=[item for item in allowed if isinstance(item, str)] if isinstance(allowed, list) else [],
        theme=theme if theme in THEMES else "",
        language=language if isinstance(language, str) else "",
        tooltips=settings.get("enable_info_tooltip") is not False,
        report=list(dict.fromkeys(report)),
    )


def form_fields(tab: str) -> dict[str, OptionField]:
    """The fields that a person can set on a tab.

    Raises:
        UserError: if there is no such tab.
    """
    return {key: option for key, option in tab_fields(find_tab(tab).name).items() if key not in SET_BY_PAGE}


def check_default(tab: str, key: str, text: str) -> Any:
    """A default as it may be kept in the settings, from the text typed for it.

    Raises:
        UserError: if the tab has no such field, the value is none of its, or it is a secret.
    """
    known = form_fields(tab)
    if key not in known:
        raise UserError(f"The {TABS[tab].title} tab has no field {key!r}.", hint=nearest(key, known))
    if known[key].kind == "secret":
        raise UserError(f"{known[key].label} is a secret, which is kept in no settings.", key)
    draft = Draft({key: text}, tab)
    read_values(draft)
    if draft.report:
        raise UserError(draft.report[0].message.removesuffix(" It is left at its default."), key)
    if key not in draft.values:
        raise UserError(f"{known[key].label} needs a value.", key, "Remove the default to go back to the usual one.")
    return draft.values[key]


def _named(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one table, under the options' names; "" for those that stand in no table."""
    if not name:
        return {key: value for key, value in content.items() if not isinstance(value, dict)}
    short = config_toml.PREFIXED.get(name, ())
    return {f"{name}_{key}" if key in short else key: value for key, value in table(content, name).items()}


def _tab_values(content: Mapping[str, Any], tab: str, report: list[ReportLine]) -> dict[str, Any]:
    """The first values of one tab: what holds for several tabs, and over that its own table of defaults."""
    known = {*form_fields(tab), *tab_aliases(tab), *_MIGRATED}
    raw: dict[str, Any] = {}
    for name, tabs in config_toml.FOR_TABS.items():
        if tab in tabs:
            raw |= _named(name, content)
    raw |= _named("", content)
    draft = modernise({key: value for key, value in raw.items() if key in known}, tab)
    report += [line for line in draft.report if line.kind == "repaired" and line.key in draft.extras]
    values = {key: value for key, value in draft.values.items() if value is not None}
    chosen = table(content, "defaults", tab)
    for key in SET_BY_PAGE & chosen.keys():
        del chosen[key]
        report.append(ReportLine("retired", f"defaults.{tab}.{key}", f"{key} can have no default."))
    own = Draft(chosen, tab)
    read_values(own)
    report += [ReportLine(line.kind, f"defaults.{tab}.{line.key}", line.message) for line in own.report]
    secret = {key for key in own.values if tab_fields(tab)[key].kind == "secret"}
    return {**values, **{key: value for key, value in own.values.items() if key not in secret}}


def _tool_values(content: Mapping[str, Any], name: str, report: list[ReportLine]) -> dict[str, Any]:
    """The first values of one tool."""
    known = {option.key: option for option in section_fields(config_toml.TOOL_TABLES[name])}
    values: dict[str, Any] = {}
    for old, value in table(content, name).items():
        key = config_toml.TOOL_KEYS[name].get(old, old)
        if key not in known:
            _report_key(f"{name}.{old}", {key}, set(known), report)
            continue
        try:
            values[key] = convert(known[key], value)
        except UserError as problem:
            report.append(ReportLine("repaired", f"{name}.{old}", f"{problem.message} It is left at its default."))
    return values


def _start_folders(content: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, key in config_toml.START_FOLDERS.items():
        *tables, last = name.split(".")
        value = table(content, *tables).get(last) if tables else content.get(last)
        if isinstance(value, str) and value:
            found[key] = value
    own = table(content, "start_folders")
    return found | {key: value for key, value in own.items() if isinstance(value, str) and value}


def _report_rest(content: Mapping[str, Any], report: list[ReportLine]) -> None:
    """What means nothing here: other families' tables, keys without effect, keys that nobody knows."""
    for name, family in config_toml.FAMILY_TABLES.items():
        if name in content:
            report.append(ReportLine("kept", name, f"The table {name} is for {family}, which is not here."))
    known = {key for tab in TABS for key in (*tab_fields(tab), *tab_aliases(tab))} | _MIGRATED
    for name, value in content.items():
        if name in (*config_toml.FAMILY_TABLES, *config_toml.TOOL_TABLES, "defaults", "start_folders"):
            continue
        if not isinstance(value, dict):
            _report_key(name, {name}, known, report)
        elif name in _OWN:
            for key in value:
                _report_key(f"{name}.{key}", {key}, set(_OWN[name]), report)
        elif name in (*config_toml.FOR_TABS, "configuration"):
            for key in value:
                short = key in config_toml.PREFIXED.get(name, ())
                _report_key(f"{name}.{key}", {f"{name}_{key}" if short else key}, known, report)
        else:
            report.append(ReportLine("unknown", name, f"The table {name} is not known here."))
    for name in table(content, "defaults"):
        if name not in TABS:
            report.append(ReportLine("unknown", f"defaults.{name}", f"There is no tab {name!r}. {nearest(name, TABS)}"))


def _report_key(name: str, names: set[str], known: set[str], report: list[ReportLine]) -> None:
    reason = config_toml.WITHOUT_EFFECT.get(name)
    if reason:
        report.append(ReportLine("retired", name, f"{name} has no effect: {reason}."))
    elif not names & known and name not in config_toml.START_FOLDERS:
        hint = nearest(name.rpartition(".")[2], known)
        report.append(ReportLine("unknown", name, f"{name} is not known here. {hint}".strip()))


class Remembered:
    """Small facts that the page keeps between starts, such as the folder used last for each field."""

    def __init__(self, path: Path, start_folders: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.start_folders = dict(start_folders or {})

    def all(self) -> dict[str, Any]:
        """Everything remembered."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def get(self, name: str, default: Any = None) -> Any:
        """One fact."""
        return self.all().get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Remember a fact; a disk that is full or read-only is no reason to stop working."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self.all(), name: value})
        except OSError:
            return

    def last_folder(self, key: str) -> str:
        """The folder last used for a field, or the one that the settings name, or the one used last at all."""
        stored = self.get("folders", {})
        folders = stored if isinstance(stored, dict) else {}
        return str(folders.get(key) or self.start_folders.get(key) or folders.get("") or "")

    def use_folder(self, key: str, folder: str) -> None:
        """Remember the folder used for a field."""
        folders = self.get("folders", {})
        self.put("folders", {**(folders if isinstance(folders, dict) else {}), key: folder, "": folder})
