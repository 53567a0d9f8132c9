"""Class folders, flat folders, captions by name."""

from pathlib import Path

import pytest

from sd_scripts.schema.errors import DataError
from sd_scripts.schema.folders import (
    caption_advice,
    ignored_entries,
    list_folder,
    parse_class_folder,
    scan_class_folders,
)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("10_sks dog", (10, "sks dog")),
        ("5_my_token_here class", (5, "my_token_here class")),
        ("3_", (3, "")),
        ("7", (7, "")),
        (" 4_sp", (4, "sp")),
        ("0_zero", None),
        ("-2_neg", None),
        ("abc_def", None),
        ("2.5_x", None),
        ("1e2_x", None),
    ],
)
def test_folder_names(name: str, wanted: tuple[int, str] | None) -> None:
    assert parse_class_folder(name) == wanted


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def test_class_folders_are_found_with_captions(tmp_path: Path) -> None:
    fill(tmp_path / "10_sks dog", "b.PNG", "a.jpg", "a.txt", "._a.jpg", "notes.md", "x_1_2_3_4.webp", "x.txt")
    fill(tmp_path / "2_cat", "c.avif")
    fill(tmp_path / "notes", "d.png")
    dog, cat = scan_class_folders(tmp_path, "txt")
    assert (dog.repeats, dog.class_tokens, dog.images) == (10, "sks dog", ["a.jpg", "b.PNG", "x_1_2_3_4.webp"])
    assert dog.captions == ["a.txt", None, "x.txt"]
    assert dog.captions_found == 2
    assert (cat.repeats, cat.class_tokens, cat.images, cat.captions_found) == (2, "cat", ["c.avif"], 0)
    assert ignored_entries(tmp_path) == ["notes"]


def test_a_flat_folder_counts_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "a.caption")
    (folder,) = scan_class_folders(tmp_path)
    assert (folder.flat, folder.repeats, folder.class_tokens, len(folder.images)) == (True, 1, "", 2)
    assert folder.captions == ["a.caption", None]


def test_an_empty_root_has_no_folders(tmp_path: Path) -> None:
    assert scan_class_folders(tmp_path) == []


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        scan_class_folders(tmp_path / "no such place")
    assert "no such place" in str(caught.value)
    fill(tmp_path, "a.png")
    with pytest.raises(DataError, match="is a file"):
        scan_class_folders(tmp_path / "a.png")


def test_the_wrong_caption_ending_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "1_a", "a.png", "a.txt", "b.png", "b.txt")
    folder = list_folder(tmp_path / "1_a", ".caption")
    advice = caption_advice(folder, ".caption")
    assert advice is not None
    assert "2 of 2" in advice
    assert "2 .txt" in advice
    assert caption_advice(list_folder(tmp_path / "1_a", "txt"), "txt") is None


def test_without_captions_the_class_words_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "1_red fox", "a.png", "b.png", "b.caption")
    (folder,) = scan_class_folders(tmp_path)
    advice = caption_advice(folder, ".caption")
    assert advice is not None
    assert "1 of 2" in advice
    assert '"red fox"' in advice


def test_names_with_blanks_quotes_and_other_scripts(tmp_path: Path) -> None:
    fill(tmp_path / '3_ein "schöner" 犬', "-a b'c.png", "日本.jpg", "日本.caption")
    (folder,) = scan_class_folders(tmp_path)
    assert folder.class_tokens == 'ein "schöner" 犬'
    assert folder.captions_found == 1
