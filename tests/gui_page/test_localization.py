"""Languages: every shipped file is sound, and a missing text stays English."""

import json
import string
from html import escape
from pathlib import Path

import pytest

from kohya_gui.kohya_labels import labels_by_key, old_labels
from kohya_gui.localization import FOLDER, OWN_NAMES, Language, Words, languages, load
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


GERMAN = Language(
    "de",
    {
        "Save": "Speichern",
        "step {n}": "Schritt {n}",
        "{when} or {other}": "{other} oder {when}",
        "The folder {path} does not exist.": "Den Ordner {path} gibt es nicht.",
        "There are {n} pictures in {name}.": "In {name} liegen {n} Bilder.",
        "Rank": "Rang",
        "{n} of {m}": "{n} von {m}",
        "{size} free": "{size} frei",
        "There {0} for {1} text encoder{2}.": "{0}: {1} Textencoder.",
        "{name} must be a number.": "{name} muss eine Zahl sein.",
        "Say 'no' & go": "Sag \u201enein\u201c & geh",
    },
)


def test_what_is_said_while_the_page_is_built_is_translated_when_it_is_sent() -> None:
    words = Words({})
    with words.building():
        save = words("Save")
        both = words("{when} or {other}", when=words("step {n}", n=3), other="<b>{n}</b>")
    assert save != "Save" and words("Save") == "Save"
    assert words.finish(f"<p>{save}: {both}</p>", GERMAN) == "<p>Speichern: <b>{n}</b> oder Schritt 3</p>"
    assert words.finish(f"{save}: {both}", Language()) == "Save: step 3 or <b>{n}</b>"


def test_text_that_was_escaped_for_html_is_found_and_escaped_again() -> None:
    words = Words({})
    with words.building():
        marked = escape(words("Say 'no' & go"))
    assert words.finish(marked, GERMAN, html=True) == "Sag \u201enein\u201c &amp; geh"
    assert words.finish(marked, Language(), html=True) == "Say &#x27;no&#x27; &amp; go"


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Save", "Speichern"),
        ("The folder /a/{b}/The folder does not exist.", None),
        ("The folder /a b/c does not exist.", "Den Ordner /a b/c gibt es nicht."),
        ("There are 1,234 pictures in my (new) set.", "In my (new) set liegen 1,234 Bilder."),
        ("Rank must be a number.", "Rang muss eine Zahl sein."),
        ("The folder of the pictures.", "The folder of the pictures."),
        ("3 of 12", "3 von 12"),
        ("65.0 GB free", "65.0 GB frei"),
        ("There are 2 for 1 text encoder.", "are 2: 1 Textencoder."),
        ("There step 3 for 2 text encoders.", "Schritt 3: 2 Textencoder."),
        ("Nobody translated this.", "Nobody translated this."),
        ("", ""),
    ],
)
def test_sentences_made_elsewhere_are_found_by_their_pattern(sentence: str, expected: str | None) -> None:
    said = GERMAN.said(sentence)
    assert said == expected if expected is not None else "/a/{b}/" in said


def test_a_request_is_answered_in_its_language(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text(json.dumps({"Save": "Speichern"}), encoding="utf-8")
    (tmp_path / "broken.json").write_text("[", encoding="utf-8")
    wanted = iter(("de", "de", "", "", "xx", "xx", "../de", "../de", "broken", "broken"))
    words = load(None, tmp_path)
    words.listen(lambda: next(wanted))
    assert (words("Save"), words.language) == ("Speichern", "de")
    for _ in range(4):
        assert (words("Save"), words.language) == ("Save", "en")


def test_the_menu_has_every_language_by_its_own_name(tmp_path: Path) -> None:
    for name in ("de", "zh-CN", "tlh"):
        (tmp_path / f"{name}.json").write_text("{}", encoding="utf-8")
    offered = load("de", tmp_path).offered()
    assert list(offered.items()) == [("en", "English"), ("zh-CN", "简体中文"), ("de", "Deutsch"), ("tlh", "tlh")]
    assert set(languages()) <= set(OWN_NAMES)


def test_a_slip_in_a_translation_breaks_nothing_and_brings_no_html(tmp_path: Path) -> None:
    table = {"step {n}": "Schritt {m} {n.__class__}", "Save": '<img src=x onerror="alert(1)">', "Open": " "}
    (tmp_path / "xx.json").write_text(json.dumps(table), encoding="utf-8")
    words = load("xx", tmp_path)
    assert words("step {n}", n=3) == "Schritt {m} {n.__class__}"
    assert "<" not in words("Save") and '"' not in words("Save") and words("Open") == "Open"
    (tmp_path / "yy.json").write_text('{"a": "\\ue000b\\ue003"}', encoding="utf-8")
    with pytest.raises(UserError):
        load("yy", tmp_path)


def test_a_file_made_for_kohya_ss_works_when_dropped_in(tmp_path: Path) -> None:
    theirs = {"Network Rank (Dimension)": "网络秩", "Learning rate ": "学习率", "LR Scheduler": "调度器"}
    (tmp_path / "zh-XX.json").write_text(json.dumps(theirs), encoding="utf-8")
    words = load("zh-XX", tmp_path)
    assert words("Rank") == "网络秩" and words("Learning rate") == "学习率"
    assert "Network Rank (Dimension)" in old_labels("Rank")
    labels = labels_by_key()
    assert len(labels) > 150 and all(labels.values())


def test_an_error_is_said_in_the_language_of_the_page_sentence_by_sentence() -> None:
    table = {"{path} is no file": "{path} ist keine Datei", "Choose another file.": "Nimm eine andere."}
    words = Words(table, "de")
    assert (
        words.error(UserError("a.txt is no file", hint="Choose another file."))
        == "a.txt ist keine Datei. Nimm eine andere."
    )
    assert words.error(UserError("What is this?", hint="Look.")) == "What is this? Look."
    assert Words({}).error(UserError("No.")) == "No."
