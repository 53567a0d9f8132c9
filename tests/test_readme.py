"""What the documents tell people to type is understood, and what they point to is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kohya_gui.cli import build_parser
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import trainer_fields

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])


def lines() -> Iterator[list[str]]:
    """The words of every command in the shell blocks of all documents."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def script_of(words: list[str], folder: str) -> int | None:
    """Where the script stands in a command."""
    return next((n for n, word in enumerate(words) if word.startswith(folder) and word.endswith(".py")), None)


def test_scripts_are_there_and_know_the_flags() -> None:
    seen = 0
    for words in lines():
        number = script_of(words, "sd_scripts/")
        if number is None:
            continue
        seen += 1
        assert (ROOT / words[number]).is_file(), words
        name = Path(words[number]).stem
        if name in COMMANDS:
            flags = {word.partition("=")[0].removeprefix("--") for word in words[number + 1 :] if word.startswith("--")}
            assert flags - {"help"} <= set(trainer_fields(name)), words
    assert seen >= 4


def test_subcommands_of_the_page_are_understood() -> None:
    found = [words[number + 1 :] for words in lines() if (number := script_of(words, "kohya_gui.py")) is not None]
    assert {"check", "train"} <= {words[0] for words in found}
    for words in found:
        build_parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), target


def test_every_trainer_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}.py`" not in text] == []
