"""docs/options.md says what the schema says."""

from pathlib import Path

import pytest

from sd_scripts.schema import document
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import fields, trainer_fields
from sd_scripts.schema.retired import retired


def test_the_documentation_is_fresh() -> None:
    assert document.main(["--check"]) == 0, "run python -m sd_scripts.schema.document"


@pytest.mark.parametrize("command", COMMANDS)
def test_it_lists_every_option_once_in_a_whole_table_row(command: str) -> None:
    main, others = document.document().split("\n## What differs")
    page_only = others.split("\n## Only on the page")[1].split("\n## No longer in use")[0]
    for key, field in fields(command).items():
        name = f"--{key}" if field.flag else key
        (row,) = [line for line in (main + page_only).splitlines() if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in row.replace("\\|", "").strip("|").split("|")]
        if len(cells) == 6:
            assert (f"`{command}`" in cells[-1]) != ("all but" in cells[-1]), row
        else:
            assert len(cells) == 5, row
            assert not field.flag or all(key in trainer_fields(name) for name in COMMANDS), row


def test_what_differs_is_said_with_its_trainers() -> None:
    part = document.document().split("\n## What differs")[1].split("\n## ")[0]
    for command in COMMANDS.values():
        for key in command.defaults:
            assert any(line.startswith(f"| `--{key}`") and f"`{command.name}`" in line for line in part.splitlines())
    assert "| `--save_model_as` | text | `pt` |" in part


def test_the_ignored_keys_are_listed_with_reasons() -> None:
    part = document.document().split("\n## No longer in use")[1]
    for command in COMMANDS:
        for key, reason in retired(command).items():
            assert f"| `{key}` | {reason} |" in part


def test_a_stale_file_is_noticed_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(document, "TARGET", tmp_path / "options.md")
    assert document.main(["--check"]) == 1
    assert "not fresh" in capsys.readouterr().err
    assert document.main([]) == 0
    assert document.main(["--check"]) == 0
    (tmp_path / "options.md").write_text("old", encoding="utf-8")
    assert document.main(["--check"]) == 1
