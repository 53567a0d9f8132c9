"""Captions changed for a whole folder, written by hand, and Finetune's lists: dry runs say what then happens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gui_bench import Bench

from kohya_gui import job_plan, tools
from kohya_gui.localization import load
from kohya_gui.paths import Roots
from kohya_gui.prepare import tags
from kohya_gui.prepare.lists import check_places, look_at_lists
from kohya_gui.prepare.looks import look
from kohya_gui.prepare.undo import undo_job
from sd_scripts.schema.caption_edit import CaptionEdit, with_words
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import tab_complete

WORDS = load(None)


@pytest.fixture
def cats(tmp_path: Path, photos: Path) -> Path:
    folder = tmp_path / "cats"
    shutil.copytree(photos / "2_photo", folder)
    (folder / "rocket.txt").unlink()
    return folder


# ---------------------------------------------------------------- one edit for all


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ({"text": "a cat"}, None, "a cat"),
        ({"text": "a cat"}, "old", None),
        ({"text": "a cat", "overwrite": True}, "old", "a cat"),
        ({"prefix": "ohwx", "postfix": "photo"}, None, "ohwx photo"),
        ({"prefix": "ohwx"}, "a cat", None),
        ({"prefix": "ohwx", "overwrite": True}, "a cat", "ohwx a cat"),
        ({"postfix": ", best", "overwrite": True}, "a cat", "a cat, best"),
        ({"text": "a cat", "prefix": "my", "postfix": "here"}, None, "my a cat here"),
        ({"find": "cat", "replace": "dog", "overwrite": True}, "a cat, cat", "a dog, dog"),
        ({"find": "zebra", "replace": "dog", "overwrite": True}, "a cat", None),
        ({"find": "cat", "overwrite": True}, None, None),
        ({"find": "(", "replace": "\\1", "overwrite": True}, "a (cat", "a \\1cat"),
    ],
)
def test_what_becomes_of_a_caption(edit: dict[str, Any], before: str | None, after: str | None) -> None:
    assert CaptionEdit(**edit).of(before) == after


def test_words_are_joined_without_stray_blanks() -> None:
    assert with_words("", " a cat ", "") == "a cat"
    assert with_words("ohwx, ", "a cat", ".") == "ohwx, a cat."


@pytest.mark.parametrize(("edit", "key"), [({}, "caption_text"), ({"find": "cat"}, "overwrite")])
def test_an_edit_that_does_nothing_is_refused(edit: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as refused:
        CaptionEdit(**edit).check()
    assert refused.value.key == key


def test_the_dry_run_of_captions_shows_before_and_after(cats: Path) -> None:
    tool = tools.TOOLS["basic_caption"]
    values = {
        "images_dir": str(cats),
        "caption_ext": "txt",
        "overwrite": True,
        "find_text": "a ",
        "replace_text": "one ",
    }
    found = look(tool, values, WORDS)
    assert dict(found.lines) == {
        "Pictures": "4", "New captions": "0", "Captions changed": "3", "Left as they are": "1",
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["chelsea.txt"] == ("a close-up of a tabby cat, whiskers", "one close-up of one tabby cat, whiskers")
    assert (cats / "chelsea.txt").read_text().startswith("a close-up")


def test_the_dry_run_of_a_captioner_counts(cats: Path) -> None:
    tool = tools.TOOLS["wd14_caption"]
    values = {"train_data_dir": str(cats), "caption_extension": ".txt"}
    assert dict(look(tool, values, WORDS).lines)["Captions written"] == "1"
    assert dict(look(tool, {**values, "overwrite": True}, WORDS).lines)["Captions written over"] == "3"
    assert dict(look(tool, {**values, "append_tags": True}, WORDS).lines)["Captions written"] == "4"


def test_the_dry_run_of_groups_counts_and_looks_for_files_in_the_way(cats: Path, tmp_path: Path) -> None:
    tool = tools.TOOLS["group_images"]
    values = {"input_folder": str(cats), "output_folder": str(tmp_path / "groups"), "group_size": 3}
    assert dict(look(tool, values, WORDS).lines)["Groups"] == "2 of 3, the last of 1"
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "group-0001-image-01.png").write_bytes(b"")
    with pytest.raises(UserError, match="already"):
        look(tool, values, WORDS)


def test_the_dry_run_of_any_other_tool_names_its_places(
    cats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(tools.TOOLS["group_images"], name="another")
    monkeypatch.setitem(tools.TOOLS, "another", other)
    new = tmp_path / "new"
    assert look(other, {"input_folder": str(cats), "output_folder": str(new)}, WORDS).lines == (
        ("Input folder", f"{cats} is there"),
        ("Output folder", f"{new} is not there"),
    )


# ---------------------------------------------------------------- by hand


def test_tags_are_ticked_in_the_order_of_the_quick_tags() -> None:
    quick = ["cat", "dog", "indoors"]
    assert tags.choices("sofa, dog", quick) == [("cat", False), ("dog", True), ("indoors", False), ("sofa", True)]
    assert tags.ticked("sofa, indoors", "cat", True, quick) == "cat, indoors, sofa"
    assert tags.ticked("cat, indoors, sofa", "indoors", False, quick) == "cat, sofa"
    assert tags.ticked("", "red", True, []) == "red"


def test_tags_are_collected_once_whatever_their_case_and_without_sentences(cats: Path) -> None:
    (cats / "rocket.txt").write_text("Spoon, American flag, night")
    found = tags.collect(tags.pictures(cats), ".txt", 3)
    assert found == ["american flag", "whiskers", "spoon", "night"]


def test_a_caption_is_written_beside_its_picture_only(cats: Path, tmp_path: Path) -> None:
    roots = Roots([cats])
    made = tags.write(roots, str(cats / "rocket.png"), "txt", "a rocket\r\n")
    assert made == cats / "rocket.txt" and made.read_text() == "a rocket"
    (tmp_path / "out.png").write_bytes(b"")
    for picture, ending in (
        (str(tmp_path / "out.png"), ".txt"),
        (str(cats / "nothing.png"), ".txt"),
        (str(cats / "coffee.txt"), ".txt"),
        (str(cats / "rocket.png"), "/../../x"),
        (str(cats / "rocket.png"), ".png"),
        (str(cats / "rocket.png"), ""),
    ):
        with pytest.raises(UserError):
            tags.write(roots, picture, ending, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats", "out.png"]
    (cats / "chelsea.txt").unlink()
    (cats / "chelsea.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(UserError, match="no plain file"):
        tags.write(roots, str(cats / "chelsea.png"), ".txt", "x")


def test_pages_of_five(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"")
    found = tags.pictures(tmp_path)
    assert [path.stem for path in found] == [str(number) for number in range(12)]
    assert tags.pages(found) == 3 and [row.picture.stem for row in tags.page(found, 3, ".txt", [])] == ["10", "11"]


# ---------------------------------------------------------------- Finetune's lists


def test_lists_are_made_now_by_the_programs_of_a_training_and_taken_back(
    bench: Bench, cats: Path, tmp_path: Path
) -> None:
    values = {
        "train_data_dir": str(cats), "train_dir": str(tmp_path / "lists"), "caption_extension": ".txt",
        "create_buckets": False, "pretrained_model_name_or_path": str(tmp_path / "no model"),
    }  # fmt: skip
    check_places(values, Roots([tmp_path]))
    found = dict(look_at_lists(tab_complete("finetune", values), WORDS).lines)
    target = tmp_path / "lists" / "meta_cap.json"
    assert found["Captions"] == "3 found, 1 missing" and found["List of captions"] == f"{target} is made"
    job = bench.store.create(job_plan.build(job_plan.METADATA, values), values, "lists")
    assert bench.store.tick() == [job.id]
    bench.wait(job.id, "done", "failed")
    assert bench.store.get(job.id).state == "done", bench.store.log(job.id)
    assert len(json.loads(target.read_text())) == 3
    assert undo_job(job.folder, Roots([tmp_path]))["removed"] == 1
    assert not target.exists()


def test_the_dry_run_of_lists_chooses_sizes(cats: Path, tmp_path: Path) -> None:
    values = {"train_data_dir": str(cats), "train_dir": str(tmp_path / "lists"), "caption_extension": ".txt"}
    found = look_at_lists(tab_complete("finetune", {**values, "resolution": "128,128"}), WORDS)
    assert sum(int(row[1]) for row in found.rows) == 4
    assert dict(found.lines)["Encoded pictures"].startswith("4 files")
    with pytest.raises(UserError, match="Is the ending right"):
        look_at_lists(tab_complete("finetune", {**values, "caption_extension": ".caption"}), WORDS)


def test_lists_of_folders_that_are_not_open_are_refused(cats: Path, tmp_path: Path) -> None:
    for change, key in (({"train_dir": "/etc"}, "train_dir"), ({"train_data_dir": ""}, "train_data_dir")):
        with pytest.raises(UserError) as refused:
            check_places({"train_data_dir": str(cats), "train_dir": str(tmp_path), **change}, Roots([tmp_path]))
        assert refused.value.key == key


def test_nothing_to_prepare_is_said() -> None:
    with pytest.raises(UserError, match="Nothing is to be prepared"):
        job_plan.build(job_plan.METADATA, {"train_data_dir": "x"})
