"""Rules over several options, each one small function in a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing to say about the options: "error" stops the run, "warning" does not."""

    severity: str
    key: str | None
    message: str
    hint: str = ""


def check(command: str, values: Mapping[str, Any]) -> list[Finding]:
    """What is wrong or doubtful with these values; missing keys count as default."""
    return []


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that follow from others, with their values."""
    return {}
