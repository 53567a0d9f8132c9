"""Folder preparation with real photographs: copied aside, swapped in, undone, and nothing half when killed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kohya_gui.paths import Roots
from kohya_gui.prepare import balance, folders
from kohya_gui.prepare.journal import PLACE, Journal
from sd_scripts.schema.errors import UserError


@pytest.fixture
def home(tmp_path: Path, photos: Path) -> Path:
    """A folder with `raw pictures`: four photographs with captions, a cache, and what belongs to no picture."""
    raw = tmp_path / "raw pictures"
    shutil.copytree(photos / "2_photo", raw)
    (raw / "rocket.txt").unlink()
    (raw / "coffee.npz").write_bytes(b"cache")
    (raw / "coffee.caption").write_text("more words")
    (raw / "notes.md").write_text("mine")
    return tmp_path


def values(home: Path, **more: Any) -> dict[str, Any]:
    return {
        "util_instance_prompt_input": "ohwx",
        "util_class_prompt_input": "cat",
        "util_training_images_dir_input": str(home / "raw pictures"),
        "util_training_images_repeat_input": 10,
        "util_training_dir_output": str(home / "train"),
        **more,
    }


def asked(home: Path, **more: Any) -> folders.Wanted:
    return folders.wanted(values(home, **more), Roots([home]))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders as None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_the_folders_of_a_training_are_made_and_undone(home: Path) -> None:
    before = tree(home)
    plan = folders.plan(asked(home), Roots([home]))
    assert tree(home) == before
    only = plan.folders[0]
    assert (only.pictures, only.without_caption, only.passed_over, only.replaces) == (4, 1, 2, None)
    assert only.target == home / "train" / "img" / "10_ohwx cat"

    seen = []
    made = folders.prepare(asked(home), Roots([home]), lambda done, of: seen.append((done, of)))
    assert seen[-1] == (8, 8) and made.size == plan.size
    assert sorted(os.listdir(home / "train" / "img" / "10_ohwx cat")) == [
        "astronaut.png", "astronaut.txt", "chelsea.png", "chelsea.txt", "coffee.caption", "coffee.png", "coffee.txt",
        "rocket.png",
    ]  # fmt: skip
    assert (home / "train" / "log").is_dir() and (home / "train" / "model").is_dir()
    assert made.form["train_data_dir"] == str(home / "train" / "img") and made.form["reg_data_dir"] is None
    assert {name: content for name, content in tree(home).items() if not name.startswith("train")} == before

    folders.undo(home / "train")
    assert tree(home) == before
    with pytest.raises(UserError, match="does not exist"):
        folders.undo(home / "train")


def test_what_stood_there_is_kept_and_comes_back(home: Path) -> None:
    place = home / "train" / "img" / "10_ohwx cat"
    place.mkdir(parents=True)
    (place / "old.png").write_bytes(b"precious")
    before = tree(home)
    assert folders.plan(asked(home), Roots([home])).folders[0].replaces == 1
    folders.prepare(asked(home), Roots([home]))
    folders.prepare(asked(home), Roots([home]))
    assert not (place / "old.png").exists() and len(list(place.iterdir())) == 8
    changes, size = folders.plan(asked(home), Roots([home])).kept
    assert changes == 2 and size > len(b"precious")
    folders.undo(home / "train")
    assert len(list(place.iterdir())) == 8
    folders.undo(home / "train")
    assert tree(home) == before


def test_what_undo_keeps_can_be_deleted_for_good(home: Path) -> None:
    for _ in range(2):
        folders.prepare(asked(home), Roots([home]))
    journal = Journal(home / "train")
    changes, size = journal.kept()
    shown = {name: content for name, content in tree(home).items() if PLACE not in name}
    assert changes == 2 and size > 0
    assert journal.forget() == size and journal.forget() == 0
    assert tree(home) == shown  # the pictures stay, and nothing of ours
    with pytest.raises(UserError, match="left to undo"):
        folders.undo(home / "train")


def test_work_done_in_a_prepared_folder_is_not_lost_by_undo(home: Path) -> None:
    folders.prepare(asked(home), Roots([home]))
    (home / "train" / "img" / "10_ohwx cat" / "rocket.txt").write_text("a rocket, by hand")
    change = folders.undo(home / "train")
    aside = Path(change.facts["aside"])
    assert (aside / "img" / "10_ohwx cat" / "rocket.txt").read_text() == "a rocket, by hand"
    assert not (home / "train" / "img").exists()


def test_undo_says_when_a_folder_was_renamed_since(home: Path) -> None:
    folders.prepare(asked(home), Roots([home]))
    balance.balance(home / "train" / "img", 100, False)
    with pytest.raises(UserError, match="no longer there"):
        folders.undo(home / "train")
    balance.undo(home / "train" / "img")
    folders.undo(home / "train")
    assert not (home / "train").exists()


def test_regularisation_pictures_get_their_own_folder(home: Path) -> None:
    shutil.copytree(home / "raw pictures", home / "others")
    more = {"util_regularization_images_dir_input": str(home / "others"), "util_regularization_images_repeat_input": 3}
    made = folders.prepare(asked(home, **more), Roots([home]))
    assert (home / "train" / "reg" / "3_cat" / "coffee.png").is_file()
    assert made.form["reg_data_dir"] == str(home / "train" / "reg")


@pytest.mark.parametrize(
    ("change", "key", "sentence"),
    [
        ({"util_instance_prompt_input": ""}, "util_instance_prompt_input", "missing"),
        ({"util_class_prompt_input": "../up"}, "util_class_prompt_input", "holds '/'"),
        ({"util_class_prompt_input": "x" * 300}, "util_class_prompt_input", "cannot be"),
        ({"util_training_images_dir_input": "/etc"}, "util_training_images_dir_input", "outside"),
        ({"util_training_images_dir_input": "nowhere"}, "util_training_images_dir_input", "does not exist"),
        ({"util_training_dir_output": ""}, "util_training_dir_output", "missing"),
        ({"util_training_dir_output": "/usr/share/x"}, "util_training_dir_output", "outside"),
    ],
)
def test_what_cannot_be_prepared_is_said_at_its_field(
    home: Path, change: dict[str, str], key: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        asked(home, **change)
    assert refused.value.key == key


def test_source_and_target_may_not_lie_in_each_other(home: Path) -> None:
    folders.prepare(asked(home), Roots([home]))
    inner = asked(home, util_training_images_dir_input=str(home / "train" / "img" / "10_ohwx cat"))
    with pytest.raises(UserError, match="lie in each other"):
        folders.plan(inner, Roots([home]))


def test_links_that_lead_out_are_neither_copied_nor_written_through(home: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(b"secret")
    (home / "raw pictures" / "secret.png").symlink_to(outside / "secret.png")
    names = [name for name, _ in folders.plan(asked(home), Roots([home])).folders[0].files]
    assert "secret.png" not in names
    (home / "train").mkdir()
    (home / "train" / "img").symlink_to(outside)
    with pytest.raises(UserError, match="leads out"):
        folders.prepare(asked(home), Roots([home]))
    assert os.listdir(outside) == ["secret.png"]


def test_a_full_disk_is_said_before_anything_is_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(home)
    monkeypatch.setattr(folders, "free_space", lambda path: 10)
    with pytest.raises(UserError, match="to be copied"):
        folders.prepare(asked(home), Roots([home]))
    assert tree(home) == before


def test_a_rename_that_fails_takes_the_others_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home / "raw pictures", home / "others")
    more = {"util_regularization_images_dir_input": str(home / "others")}
    before = tree(home)
    real, calls = os.rename, []

    def third_fails(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) == 2:
            raise PermissionError(13, "no", str(old))
        real(old, new)

    monkeypatch.setattr(os, "rename", third_fails)
    with pytest.raises(UserError, match="Nothing was changed"):
        folders.prepare(asked(home, **more), Roots([home]))
    assert tree(home) == before


KILLED = """
import os, sys
from pathlib import Path
from kohya_gui.paths import Roots
from kohya_gui.prepare import folders, journal

home, when = Path(sys.argv[1]), sys.argv[2]
def progress(done, of):
    if when == "copying" and done == 3:
        os.kill(os.getpid(), 9)
real, count = os.rename, [0]
def rename(old, new):
    count[0] += 1
    if when == "swapping" and count[0] == 2:
        os.kill(os.getpid(), 9)
    real(old, new)
os.rename = rename
values = {
    "util_instance_prompt_input": "ohwx", "util_class_prompt_input": "cat", "util_training_images_repeat_input": 10,
    "util_training_images_dir_input": str(home / "raw pictures"), "util_training_dir_output": str(home / "train"),
}
folders.prepare(folders.wanted(values, Roots([home])), Roots([home]), progress)
"""


@pytest.mark.parametrize("when", ["copying", "swapping"])
def test_a_killed_preparation_leaves_nothing_half(home: Path, when: str) -> None:
    place = home / "train" / "img" / "10_ohwx cat"
    place.mkdir(parents=True)
    (place / "old.png").write_bytes(b"precious")
    before = tree(home)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(home), when], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    shown = {name: content for name, content in tree(home).items() if PLACE not in name}
    # killed while copying, the folder is as it was; killed between two renames, it is away until the next look
    assert shown == before if when == "copying" else "train/img/10_ohwx cat" not in shown
    assert folders.plan(asked(home), Roots([home])).interrupted == 1

    journal = Journal(home / "train")
    with journal.locked():
        pass
    if when == "copying":
        assert tree(home) == before
    else:
        assert len(list(place.iterdir())) == 8
        folders.undo(home / "train")
        assert tree(home) == before


def test_two_pages_do_not_prepare_one_folder_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "train").mkdir()
    monkeypatch.setattr("kohya_gui.prepare.journal._WAIT_SECONDS", 0.05)
    with Journal(home / "train").locked(), pytest.raises(UserError, match="another page"):
        folders.prepare(asked(home), Roots([home]))
