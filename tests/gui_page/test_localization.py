"""Languages: every shipped file is sound, and a missing text stays English."""

import json
import string
from pathlib import Path

import pytest

from kohya_gui.localization import FOLDER, Words, languages, load
from sd_scripts.schema.errors import UserError


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_translation_keeps_the_placeholders(path: Path) -> None:
    table = load(path.stem).table
    assert len(table) > 50
    for text, translated in table.items():
        assert translated.strip() and placeholders(text) == placeholders(translated), text


def test_what_has_no_translation_stays_english() -> None:
    words = Words({"Save": "Speichern", "step {n}": "Schritt {n}"})
    assert (words("Save"), words("Open"), words("step {n}", n=3)) == ("Speichern", "Open", "Schritt 3")


def test_values_may_hold_braces() -> None:
    assert Words({})("{name} is open", name="{x}.json") == "{x}.json is open"


def test_english_needs_no_file(tmp_path: Path) -> None:
    assert load(None, tmp_path).language == load("en", tmp_path).language == "en"
    assert languages(tmp_path / "nowhere") == ["en"]


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "{"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "xx.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="xx.json"):
        load("xx", tmp_path)


def test_an_unknown_language_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UserError, match="en, de"):
        load("../de", tmp_path)
