"""Writes docs/options.md from the schema: `python -m sd_scripts.schema.document`; with `--check` only compares it."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from .commands import COMMANDS
from .fields import fields, trainer_fields
from .option import OptionField
from .parse import default_text
from .retired import retired

TARGET = Path(__file__).resolve().parents[2] / "docs" / "options.md"

_TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "int_or_float": "number or share",
    "bool": "switch",
    "list[str]": "several texts",
    "list[float]": "several numbers",
}
_TABLE = "| Option | Type | Default | Allowed | What it does |\n| --- | --- | --- | --- | --- |\n"
_WIDE_TABLE = "| Option | Type | Default | Allowed | What it does | Trainers |\n| --- | --- | --- | --- | --- | --- |\n"
_HEAD = """# Options

Made from `sd_scripts/schema` by `python -m sd_scripts.schema.document`; change it there.

An option is a flag on the command line (`--name value`, `--name=value`; a switch takes no value), a key in the TOML
file of `--config_file` (`name = value`, `true` for a switch), and a field on the page. The command line goes before the
file, the file before the default. Tables in the file are joined; their names don't matter.
"""


def document() -> str:
    """The whole text of docs/options.md."""
    shared, single = _records()
    parts = [_HEAD, "\n## The trainers\n\n| Command | What it trains |\n| --- | --- |\n"]
    parts += [f"| `accelerate launch {command.module}` | {command.title} |\n" for command in COMMANDS.values()]
    parts.append("\n`sdxl_train_control_net_lllite_old.py` is the last one under its older name.\n")
    parts.append("\n## Options of every trainer\n")
    parts += _sections(shared.values(), "--")
    parts.append("\n## Options of some trainers\n")
    parts += _sections(
        (record for record, _ in single.values()), "--", {key: names for key, (_, names) in single.items()}
    )
    records = shared | {key: record for key, (record, _) in single.items()}
    parts += _deviations(records)
    parts += _page_only()
    parts += _retired()
    return "".join(parts)


def _records() -> tuple[dict[str, OptionField], dict[str, tuple[OptionField, list[str]]]]:
    """The options of every trainer, and those of some with the trainers' names; each as its first trainer has it."""
    found: dict[str, tuple[OptionField, list[str]]] = {}
    for command in COMMANDS:
        for key, field in trainer_fields(command).items():
            found.setdefault(key, (field, []))[1].append(command)
    shared = {key: field for key, (field, names) in found.items() if len(names) == len(COMMANDS)}
    single = {key: (field, names) for key, (field, names) in found.items() if key not in shared}
    # options of one section stand together, whichever trainer brought them
    order = list(dict.fromkeys(field.section for field, _ in single.values()))
    return shared, dict(sorted(single.items(), key=lambda item: order.index(item[1][0].section)))


def _sections(
    found: Iterable[OptionField], prefix: str, trainers: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """A table for each run of options of one section; `trainers` are the names for a column of their own."""
    parts = []
    for title, members in groupby(found, key=lambda field: field.section):
        parts.append(f"\n### {title}\n\n{_TABLE if trainers is None else _WIDE_TABLE}")
        for field in members:
            names = "" if trainers is None else f"| {_names(trainers[field.key])} "
            parts.append(_row(field, prefix).replace("|\n", f"{names}|\n"))
    return parts


def _names(names: Sequence[str]) -> str:
    """The trainers that have an option, by the shorter of the two lists."""
    missing = [name for name in COMMANDS if name not in names]
    if len(missing) < len(names) - 1:
        return "all but " + ", ".join(f"`{name}`" for name in missing)
    return ", ".join(f"`{name}`" for name in names)


def _deviations(records: Mapping[str, OptionField]) -> list[str]:
    """The rows of options that some trainers offer otherwise than the tables above say."""
    found: dict[str, dict[str, list[str]]] = {}
    for command in COMMANDS:
        for key, field in trainer_fields(command).items():
            row = _row(field, "--")
            if row != _row(records[key], "--"):
                found.setdefault(key, {}).setdefault(row, []).append(command)
    parts = [
        f"\n## What differs\n\nWhere a trainer has an option of the tables above in another form.\n\n{_WIDE_TABLE}"
    ]
    return parts + [
        row.replace("|\n", f"| {_names(names)} |\n") for rows in found.values() for row, names in rows.items()
    ]


def _page_only() -> list[str]:
    others = {
        key: field
        for command in COMMANDS
        for key, field in fields(command).items()
        if key not in trainer_fields(command)
    }
    text = (
        "\n## Only on the page\n\nFrom these the page works out the launcher's arguments, `--network_args` and flags.\n"
    )
    return [text, *_sections(others.values(), "")]


def _retired() -> list[str]:
    parts = [
        "\n## No longer in use\n\nThese keys of older files and scripts are ignored with a warning.\n\n"
        "| Key | Reason | Where |\n| --- | --- | --- |\n"
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for command in COMMANDS:
        for key, reason in retired(command).items():
            reasons.setdefault((key, reason), []).append(command)
    for (key, reason), names in sorted(reasons.items()):
        where = "every trainer" if len(names) == len(COMMANDS) else _names(names)
        parts.append(f"| `{key}` | {_cell(reason)} | {where} |\n")
    return parts


def _row(field: OptionField, prefix: str) -> str:
    default = default_text(field)
    shown = default if default in ("none", "empty", "on", "off") else f"`{default}`"
    cells = (f"`{prefix}{field.key}`", _TYPES[field.type], shown, _range(field), field.help)
    return "".join(f"| {_cell(cell)} " for cell in cells) + "|\n"


def _range(field: OptionField) -> str:
    if field.choices:
        return ", ".join(f"`{choice}`" for choice in field.choices) + (" or another" if field.custom else "")
    low, high = field.minimum, field.maximum
    unit = f" {field.unit}" if field.unit else ""
    if low is not None and high is not None:
        return f"{low:.15g} to {high:.15g}{unit}"
    if low is not None:
        return f"{low:.15g} or more{unit}"
    return f"up to {high:.15g}{unit}" if high is not None else field.unit


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, or with --check compare it; 1 if it is not fresh."""
    parser = argparse.ArgumentParser(prog="python -m sd_scripts.schema.document", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is not fresh")
    arguments = parser.parse_args(argv)
    text = document()
    if arguments.check:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET.name} is not fresh; run python -m sd_scripts.schema.document", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
