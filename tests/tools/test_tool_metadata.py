"""Captions and tags into metadata files, as the known scripts write them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from script_kit import Run

from sd_scripts.finetune import clean_captions_and_tags, merge_captions_to_metadata, merge_dd_tags_to_metadata
from sd_scripts.finetune.cleaning import clean_caption, clean_tags

TINY_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


def test_the_file_is_byte_for_byte_what_is_known(pictures: Path, tmp_path: Path, script: Run) -> None:
    out = tmp_path / "meta data.json"
    done = script("finetune/merge_captions_to_metadata.py", pictures, out)
    assert done.returncode == 0, done.stderr
    # sorted by path, name without ending as key, two blanks of indent, \u escapes, no line end at the end
    assert out.read_bytes() == (
        b'{\n  "Kaffee \\u00fc": {\n    "caption": "a photo of Kaffee \\u00fc"\n  },\n'
        b'  "an astronaut": {\n    "caption": "a photo of an astronaut"\n  },\n'
        b'  "rocket": {\n    "caption": "a photo of rocket"\n  },\n'
        b'  "\\u732b": {\n    "caption": "a photo of \\u732b"\n  }\n}'
    )


def test_tags_join_captions_in_the_file_that_is_there(pictures: Path, tmp_path: Path, script: Run) -> None:
    out = tmp_path / "meta.json"
    assert merge_captions_to_metadata.main([str(pictures), str(out)]) == 0
    done = script("finetune/merge_dd_tags_to_metadata.py", pictures, out, "--debug")
    assert done.returncode == 0, done.stderr
    assert "1girl, blue_eyes, 猫" in done.stdout
    assert json.loads(out.read_text())["猫"] == {"caption": "a photo of 猫", "tags": "1girl, blue_eyes, 猫"}


def test_in_json_is_read_and_left_as_it_is(pictures: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text('{"elsewhere": {"caption": "kept", "own": 3}}')
    assert merge_dd_tags_to_metadata.main([str(pictures), str(second), "--in_json", str(first)]) == 0
    entries = json.loads(second.read_text())
    assert entries["elsewhere"] == {"caption": "kept", "own": 3} and len(entries) == 5
    assert first.read_text() == '{"elsewhere": {"caption": "kept", "own": 3}}'


def test_folders_below_with_whole_paths(pictures: Path, tmp_path: Path) -> None:
    below = pictures / "deep" / "er"
    below.mkdir(parents=True)
    (below / "rocket.png").write_bytes((pictures / "rocket.png").read_bytes())
    (below / "rocket.cap").write_text("another rocket")
    out = tmp_path / "meta.json"
    argv = [str(pictures), str(out), "--recursive", "--full_path", "--caption_extention", ".cap"]
    assert merge_captions_to_metadata.main(argv) == 0
    assert json.loads(out.read_text()) == {str(below / "rocket.png"): {"caption": "another rocket"}}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{p}", "{o}", "--recursive"], "recursive needs full_path"),
        (["{p}/nowhere", "{o}"], "does not exist"),
        (["{p}", "{o}", "--caption_extension", ".xyz"], "None of 4 pictures"),
        (["{p}", "{o}", "--in_json", "{p}/none.json"], "cannot be read"),
        (["{p}", "{o}", "--in_json", "{p}/rocket.txt"], "is no metadata file"),
        (["{p}", "{o}", "--fullpath"], "full_path?"),
        (["{p}"], "out_json"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], words: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.json"
    filled = [item.format(p=pictures, o=out) for item in argv]
    assert merge_captions_to_metadata.main(filled) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not out.exists()


def test_a_picture_without_caption_keeps_its_entry_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "rocket.caption").unlink()
    out = tmp_path / "meta.json"
    assert merge_captions_to_metadata.main([str(pictures), str(out)]) == 0
    assert "rocket" not in json.loads(out.read_text())
    assert "1 pictures have no .caption file" in capsys.readouterr().out


def test_ten_thousand_pictures_are_quick(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number:05d}.png").write_bytes(TINY_PNG)
        (folder / f"{number:05d}.txt").write_text(f"tag {number}")
    out = tmp_path / "meta.json"
    start = time.monotonic()
    assert merge_dd_tags_to_metadata.main([str(folder), str(out)]) == 0
    assert clean_captions_and_tags.main([str(out), str(out)]) == 0
    assert time.monotonic() - start < 10
    assert len(json.loads(out.read_text())) == 10_000


@pytest.mark.parametrize(
    ("tags", "cleaned"),
    [
        ("1girl, long_hair, blue_eyes, ^_^", "1girl, long hair, blue eyes, ^_^"),
        ("1girl, solo, rating:safe", "1girl, solo"),
        ("1girl, shirt, white_shirt, hair_ornament, star_hair_ornament", "1girl, white shirt, star hair ornament"),
        ("2girls, blue_eyes, red_eyes, black_hair, blonde_hair, long_hair", "2girls, long hair"),
        ("2girls, long_hair, short_hair, black_hair", "2girls, black hair"),
        ("2boys, blue_eyes, ponytail, short_hair", "2boys, blue eyes, ponytail, short hair"),
        ("multiple_girls, hime_cut, bob_cut, ahoge, side_braid, long_sleeves, sleeveless", "multiple girls"),
        ("1girl, blue_eyes, red_eyes, black_hair, white_hair", "1girl, blue eyes, red eyes, black hair, white hair"),
    ],
)
def test_tags_are_cleaned(tags: str, cleaned: str) -> None:
    assert clean_tags(tags) == cleaned
    assert clean_tags(cleaned) == cleaned


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("an anime anime girl with a hat", "a girl with a hat"),
        ("two young women and a ladybug", "two girls and a ladybug"),
        ("a cartoon image of a cartoon lady", "an image of a girl"),
        ("an anime cartoon image of a person", "an image of a girl"),
        ("a cartoon drawing of a cat", "a drawing of a cat"),
        ("a photo of a cat", "a photo of a cat"),
    ],
)
def test_captions_are_cleaned(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


def test_cleaning_a_file_keeps_what_it_does_not_know(tmp_path: Path, script: Run) -> None:
    path = tmp_path / "meta.json"
    entry = {"caption": "a woman", "tags": "1girl, red_hat", "train_resolution": [64, 128], "more": None}
    path.write_text(json.dumps({"b": entry, "a": {}}))
    done = script("finetune/clean_captions_and_tags.py", "ignored old folder", path, tmp_path / "out.json", "--debug")
    assert done.returncode == 0, done.stderr
    assert "FROM: a woman" in done.stdout and "TO:   a girl" in done.stdout
    cleaned = entry | {"caption": "a girl", "tags": "1girl, red hat"}
    assert (tmp_path / "out.json").read_text() == json.dumps({"b": cleaned, "a": {}}, indent=2)
