"""What a rule says about the options, and what a rule is."""

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


Judge = Callable[[Values], Finding | None]


@dataclass(frozen=True)
class Rule:
    """A look at some options together.

    `needs` are the options that not every command has and that the rule reads: it says nothing where one is missing.
    `families` and `methods` limit it further; empty for all.
    """

    judge: Judge
    needs: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def __call__(self, values: Values) -> Finding | None:
        """What there is to say. `values` holds the command's options, and "family" and "method"."""
        if any(key not in values for key in self.needs):
            return None
        if self.families and values["family"] not in self.families:
            return None
        if self.methods and values["method"] not in self.methods:
            return None
        return self.judge(values)

    @property
    def name(self) -> str:
        """The name of the function behind it."""
        return getattr(self.judge, "__name__", "rule")


def rule(*needs: str, families: tuple[str, ...] = (), methods: tuple[str, ...] = ()) -> Callable[[Judge], Rule]:
    """Make a function into a rule that applies where all these options exist, for these families and methods."""

    def decorate(judge: Judge) -> Rule:
        return Rule(judge, needs, families, methods)

    return decorate


def error(key: str | None, message: str, hint: str = "") -> Finding:
    """A finding that stops the run."""
    return Finding("error", key, message, hint)


def warning(key: str | None, message: str, hint: str = "") -> Finding:
    """A finding that is only shown."""
    return Finding("warning", key, message, hint)
