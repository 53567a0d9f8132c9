"""What a rule says about the options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing to say about the options: "error" stops the run, "warning" does not.

    `key` is the option to mark in a form; `hint` is the way out, in one sentence.
    """

    severity: str
    key: str | None
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


Rule = Callable[[Values], Finding | None]


def error(key: str | None, message: str, hint: str = "") -> Finding:
    """A finding that stops the run."""
    return Finding("error", key, message, hint)


def warning(key: str | None, message: str, hint: str = "") -> Finding:
    """A finding that is only shown."""
    return Finding("warning", key, message, hint)
