"""docs/options.md says what the schema says."""

from pathlib import Path

import pytest

from sd_scripts.schema import document
from sd_scripts.schema.fields import fields


def test_the_documentation_is_fresh() -> None:
    assert document.main(["--check"]) == 0, "run python -m sd_scripts.schema.document"


def test_it_lists_every_option_in_a_whole_table_row() -> None:
    text = document.document().split("\n## No longer in use")[0]
    for key, field in fields("train_network").items():
        name = f"--{key}" if field.flag else key
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert row.replace("\\|", "").count("|") == 6, row


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
