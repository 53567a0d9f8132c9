"""Writes docs/options.md from the schema: `python -m sd_scripts.schema.document`; with `--check` only compares it."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from .commands import COMMANDS
from .fields import fields, trainer_fields
from .option import OptionField
from .parse import default_text
from .retired import RETIRED

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
_HEAD = """# Options

Made from `sd_scripts/schema` by `python -m sd_scripts.schema.document`; change it there.

An option is a flag on the command line (`--name value`, `--name=value`; a switch takes no value), a key in the TOML
file of `--config_file` (`name = value`, `true` for a switch), and a field on the page. The command line goes before the
file, the file before the default. Tables in the file are joined; their names don't matter.
"""


def document() -> str:
    """The whole text of docs/options.md."""
    parts = [_HEAD]
    for command in COMMANDS.values():
        flags = trainer_fields(command.name)
        parts.append(f"\n## {command.name}\n\n`accelerate launch {command.module}`\n")
        parts += _sections(flags.values(), "--")
        others = [field for field in fields(command.name).values() if field.key not in flags]
        parts.append(
            "\n## Only on the page\n\nFrom these the page works out the launcher's arguments, `--network_args` and "
            "flags.\n"
        )
        parts += _sections(others, "")
    parts.append(
        "\n## No longer in use\n\nThese keys of older files are ignored with a warning.\n\n| Key | Reason |\n| --- | "
        "--- |\n"
    )
    parts += [f"| `{key}` | {_cell(reason)} |\n" for key, reason in RETIRED.items()]
    return "".join(parts)


def _sections(found: Iterable[OptionField], prefix: str) -> list[str]:
    parts = []
    for title, members in groupby(found, key=lambda field: field.section):
        parts.append(f"\n### {title}\n\n{_TABLE}")
        parts += [_row(field, prefix) for field in members]
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
