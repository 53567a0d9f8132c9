"""All options of a command in one mapping, and the conversion of any value to an option's type."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from .commands import COMMANDS, Command
from .errors import UserError
from .option import OptionField, section_fields
from .suggest import nearest

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "int_or_float": "a number, or a share like 0.1 or 10%",
    "bool": "true or false",
    "list[str]": "a list of texts",
    "list[float]": "a list of numbers",
}


def find_command(name: str) -> Command:
    """The command of this name.

    Raises:
        UserError: if there is none, naming the nearest.
    """
    if name not in COMMANDS:
        raise UserError(f"There is no command {name!r}.", hint=nearest(name, COMMANDS))
    return COMMANDS[name]


@cache
def trainer_fields(command: str) -> Mapping[str, OptionField]:
    """The flags of the command's trainer: key -> field, section by section.

    Raises:
        UserError: for an unknown command.
    """
    found = find_command(command)
    return _collect(_offered(found))


@cache
def fields(command: str) -> Mapping[str, OptionField]:
    """The trainer's flags and everything else the page offers for the command: launcher, network settings, form keys.

    Raises:
        UserError: for an unknown command.
    """
    found = find_command(command)
    form = (field for attr, cls in found.form.items() for field in section_fields(cls, attr))
    return _collect([*_offered(found), *form])


def _offered(command: Command) -> list[OptionField]:
    """The options of the command's own sections that it offers, as they are there."""
    offered = []
    for attr, cls in command.sections.items():
        for field in section_fields(cls, attr):
            fits = (not field.families or command.family in field.families) and (
                not field.methods or command.method in field.methods
            )
            if fits and field.key not in command.without:
                offered.append(replace(field, **command.changes.get(field.key, {})))
    return offered


def _collect(found: Iterable[OptionField]) -> Mapping[str, OptionField]:
    collected: dict[str, OptionField] = {}
    for field in found:
        if field.key in collected:
            raise TypeError(
                f"the option {field.key} is declared twice: in {collected[field.key].section} and {field.section}"
            )
        collected[field.key] = field
    return collected


def aliases(command: str) -> dict[str, str]:
    """Old key -> key, for files written by older programs."""
    return {old: field.key for field in fields(command).values() for old in field.aliases}


def defaults(command: str) -> dict[str, Any]:
    """Every option of the command with its default."""
    return {key: field.default for key, field in fields(command).items()}


def complete(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the defaults where a key is missing."""
    return {**defaults(command), **values}


def visible(command: str, values: Mapping[str, Any]) -> set[str]:
    """The keys of the options that apply with these values (missing ones count as default)."""
    filled = complete(command, values)
    return {key for key, field in fields(command).items() if field.when is None or field.when.holds(filled)}


def split_words(text: str) -> list[str]:
    r"""The words of a text as a terminal splits them: blanks separate, quotes join; a backslash is an ordinary sign.

    Raises:
        ValueError: for a quote without its partner.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escape = ""
    return list(lexer)


def convert(field: OptionField, value: Any, source: str = "") -> Any:
    """The value as the option's type; the empty text and the number that stands for "off" become None where allowed.

    Args:
        field: the option.
        value: from a command line (text), a TOML or JSON file, or a form.
        source: where it comes from, for the message ("on the command line", "in run.toml").

    Raises:
        UserError: naming source, key, value and what is allowed.
    """
    where = f" {source}" if source else ""
    try:
        made = _to_type(field, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{field.key}{where} is {value!r}, but must be {_WORDS[field.type]}.", field.key, allowed(field)
        ) from error
    if field.optional and field.off is not None and made == field.off and (made == 0 or _complaint(field, made)):
        return None
    complaint = problem(field, made)
    if complaint:
        raise UserError(f"{field.key}{where} is {value!r}, but {complaint}.", field.key)
    return made


def problem(field: OptionField, value: Any) -> str:
    """What is wrong with a value of the right type ("must be at least 1"), or the empty text."""
    if value is None:
        return "" if field.optional else "must be given"
    if field.optional and field.off is not None and value == field.off:
        return ""
    return _complaint(field, value)


def _complaint(field: OptionField, value: Any) -> str:
    for item in value if isinstance(value, list) else (value,):
        if field.choices and not field.custom and item not in field.choices:
            hint = nearest(str(item), [str(choice) for choice in field.choices]) if isinstance(item, str) else ""
            return f"must be {allowed_choices(field)}" + (f" ({hint.rstrip('.').lower()})" if hint else "")
        if isinstance(item, int | float) and not isinstance(item, bool):
            if field.minimum is not None and item < field.minimum:
                return f"must be at least {field.minimum:g}"
            if field.maximum is not None and item > field.maximum:
                return f"must be at most {field.maximum:g}"
    return ""


def allowed_choices(field: OptionField) -> str:
    """The choices as "one of a, b or c"."""
    names = [str(choice) for choice in field.choices]
    return names[0] if len(names) == 1 else f"one of {', '.join(names[:-1])} or {names[-1]}"


def allowed(field: OptionField) -> str:
    """A sentence with the range or the choices; empty if anything of the type goes."""
    if field.choices and not field.custom:
        return f"Allowed is {allowed_choices(field)}."
    low, high = field.minimum, field.maximum
    if low is not None and high is not None:
        return f"Allowed is {low:g} to {high:g}."
    if low is not None:
        return f"Allowed is {low:g} and more."
    return f"Allowed is {high:g} and less." if high is not None else ""


def _to_type(field: OptionField, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip() and field.optional and field.type != "str"):
        return None
    if field.type == "str":
        return _to_text(field, value)
    if field.type.startswith("list"):
        return _to_list(field.type, value)
    return _SCALARS[field.type](value)


def _to_text(field: OptionField, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError("no text")
    text = value if isinstance(value, str) else str(value)
    return None if field.optional and not text else text


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError("neither true nor false")


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _to_int(value: Any) -> int:
    if isinstance(value, str):
        # kept apart from float, which cannot hold large seeds exactly
        return int(value) if value.strip().lstrip("+-").isdigit() else _to_int(_to_float(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError("no whole number")
    return int(value)


def _to_int_or_float(value: Any) -> int | float:
    """Steps: a whole number from 1 on, a share below 1; "10%" is 0.1."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return _to_float(value.strip()[:-1]) / 100
    number = _to_float(value)
    if 0 < number < 1:
        return number
    return _to_int(value)


def _to_list(kind: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        value = split_words(value.replace(",", " ") if kind == "list[float]" else value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    elif not isinstance(value, Sequence):
        raise TypeError("no list")
    if kind == "list[float]":
        return [_to_float(item) for item in value]
    if any(not isinstance(item, str | int | float) for item in value):
        raise TypeError("no list of texts")
    return [str(item) for item in value]


_SCALARS = {"bool": _to_bool, "int": _to_int, "float": _to_float, "int_or_float": _to_int_or_float}
