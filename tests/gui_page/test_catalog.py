"""Every language says all that the page says, and nothing that it says no more."""

import json

import pytest

from kohya_gui import catalog
from kohya_gui.localization import FOLDER

COMPLETE = ("zh-CN", "zh-TW", "ja", "de", "fr", "es")


@pytest.fixture(scope="module")
def needed() -> dict[str, str]:
    return catalog.texts()


@pytest.mark.parametrize("language", COMPLETE)
def test_a_language_is_complete_and_has_nothing_stale(language: str, needed: dict[str, str]) -> None:
    table = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    missing = [text for text in needed if text not in table]
    stale = [text for text in table if text not in needed]
    assert (missing, stale) == ([], []), f"python -m kohya_gui.catalog {language} shows {len(missing)} and {len(stale)}"


@pytest.mark.parametrize("language", COMPLETE)
def test_a_language_is_no_copy_of_english(language: str, needed: dict[str, str]) -> None:
    table = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    long = [text for text in needed if len(text.split()) >= 5]
    same = [text for text in long if table.get(text) == text]
    assert len(same) < len(long) / 50, same[:5]


def test_the_catalogue_knows_every_kind_of_text(needed: dict[str, str]) -> None:
    origins = {origin.partition(" in ")[0] for origin in needed.values()}
    assert {"tab", "label", "help", "unit", "section", "page", "group", "words", "sentence", "preset"} <= origins
    assert needed["Start training"].startswith("words in ")
    assert needed["Model and pictures"] == "page"


def test_gaps_are_found(needed: dict[str, str]) -> None:
    table = dict.fromkeys(needed, "x")
    table.pop("Start training")
    assert catalog.missing_and_stale({**table, "Nothing says this": "x"}) == (["Start training"], ["Nothing says this"])
