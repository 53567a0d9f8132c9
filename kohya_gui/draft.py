"""A saved file on its way to today's options: what is still to be read, what was made of it, and the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sd_scripts.schema.option import OptionField
from sd_scripts.schema.tabs import tab_fields

TRUE = (True, "True", "true", 1)


@dataclass(frozen=True)
class ReportLine:
    """What happened to one key: "renamed", "repaired", "retired", "kept" (aside) or "unknown" (kept aside too)."""

    kind: str
    key: str
    message: str


@dataclass
class Draft:
    """A file of one tab: keys not yet read, values made, keys kept aside, and the report.

    `newer` says that a version of 2024 or later wrote it.
    """

    raw: dict[str, Any]
    tab: str = "lora"
    values: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    report: list[ReportLine] = field(default_factory=list)
    newer: bool = False

    @property
    def known(self) -> Mapping[str, OptionField]:
        """The fields of the tab."""
        return tab_fields(self.tab)

    def say(self, kind: str, key: str, message: str) -> None:
        """Add a line to the report."""
        self.report.append(ReportLine(kind, key, message))

    def blank(self, key: str) -> bool:
        """Whether a key is missing, empty or zero, as the old pages read it."""
        return is_blank(self.raw.get(key))

    def on(self, key: str) -> bool:
        """Whether a switch is in the file and on."""
        value = self.raw.get(key)
        return isinstance(value, bool | int | str) and value in TRUE


def is_blank(value: Any) -> bool:
    """Whether a value is empty or zero, as the old pages read it."""
    return value is None or (isinstance(value, str | bool | int | float) and value in ("", "0", 0, False))


def is_off(option: OptionField, value: Any) -> bool:
    """Whether a number stands for "not given"."""
    if option.off is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return is_number(value) and float(value) == float(option.off)


def is_number(value: Any) -> bool:
    """Whether a value is, or says, a number of ordinary size."""
    try:
        return abs(float(value)) < 1e15
    except (TypeError, ValueError, OverflowError):
        return False
