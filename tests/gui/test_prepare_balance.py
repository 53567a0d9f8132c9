"""Dataset balancing: the rules for repeats, renames that change names with each other, undo, and what is refused."""

import os
from pathlib import Path

import pytest

from kohya_gui.prepare import balance
from kohya_gui.prepare.journal import Journal
from sd_scripts.schema.errors import UserError


def make(root: Path, **folders: int) -> Path:
    for name, count in folders.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(b"")
    return root


def names(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if not name.startswith("."))


@pytest.mark.parametrize(
    ("name", "pictures", "steps", "insecure", "new"),
    [
        ("10_cat", 4, 1000, False, "250_cat"),
        ("10_cat", 3, 1000, False, "333_cat"),
        ("10_cat", 300, 100, False, "1_cat"),
        ("10_cat man", 4, 6, False, "2_cat man"),
        ("{2}10_cat", 4, 1000, False, "500_cat"),
        ("{0.5}10_cat", 4, 1000, False, "125_cat"),
        ("10_cat", 0, 1000, False, "0_cat"),
        ("cat", 4, 1000, False, "cat"),
        ("cat", 4, 1000, True, "250_cat"),
        ("{2}cat", 4, 1000, True, "500_cat"),
    ],
)
def test_the_rules(tmp_path: Path, name: str, pictures: int, steps: int, insecure: bool, new: str) -> None:
    make(tmp_path, **{name: pictures, "1_other": 1})
    found = {item.old: item for item in balance.plan(tmp_path, steps, insecure)}
    assert found[name].new == new
    assert names(tmp_path) == sorted([name, "1_other"])


def test_folders_that_give_each_other_their_names_and_get_them_back(tmp_path: Path) -> None:
    make(tmp_path, **{"1_x": 5, "20_x": 100, "3_z": 10})
    found = balance.balance(tmp_path, 100, False)
    assert {item.old: item.new for item in found} == {"1_x": "20_x", "20_x": "1_x", "3_z": "10_z"}
    assert names(tmp_path) == ["10_z", "1_x", "20_x"]
    assert (len(os.listdir(tmp_path / "1_x")), len(os.listdir(tmp_path / "20_x"))) == (100, 5)
    balance.undo(tmp_path)
    assert names(tmp_path) == ["1_x", "20_x", "3_z"]
    assert (len(os.listdir(tmp_path / "1_x")), len(os.listdir(tmp_path / "20_x"))) == (5, 100)
    assert sorted(os.listdir(tmp_path)) == names(tmp_path)
    with pytest.raises(UserError, match="left to undo"):
        balance.undo(tmp_path)


def test_a_balanced_folder_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, **{"25_x": 4})
    balance.balance(tmp_path, 100, False)
    assert sorted(os.listdir(tmp_path)) == ["25_x"]


def test_an_interrupted_renaming_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, **{"1_x": 5, "20_x": 100})
    real, calls = os.rename, []

    class Killed(BaseException):
        pass

    def killed(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) == 3:
            raise Killed
        real(old, new)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(Killed):
        balance.balance(tmp_path, 100, False)
    monkeypatch.undo()
    assert names(tmp_path) == []
    with Journal(tmp_path).locked():
        pass
    assert (len(os.listdir(tmp_path / "1_x")), len(os.listdir(tmp_path / "20_x"))) == (100, 5)


def test_what_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", **{"1_x": 5, "2_x": 5})
    with pytest.raises(UserError, match="same name"):
        balance.balance(tmp_path / "a", 100, False)
    with pytest.raises(UserError, match="no folder named like"):
        balance.plan(tmp_path / "a" / "1_x", 100, False)
    with pytest.raises(UserError, match="does not exist"):
        balance.plan(tmp_path / "nowhere", 100, False)
    make(tmp_path / "b", **{"1_x": 5})
    (tmp_path / "b" / "20_x").write_text("a file")
    with pytest.raises(UserError, match="in the way"):
        balance.balance(tmp_path / "b", 100, False)


def test_a_link_to_a_folder_elsewhere_is_not_renamed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", **{"5_far": 1})
    make(tmp_path / "in", **{"1_x": 5})
    (tmp_path / "in" / "9_far").symlink_to(tmp_path / "elsewhere" / "5_far")
    balance.balance(tmp_path / "in", 100, True)
    assert names(tmp_path / "in") == ["20_x", "9_far"]


def test_undo_says_when_a_folder_was_renamed_since(tmp_path: Path) -> None:
    make(tmp_path, **{"1_x": 5})
    balance.balance(tmp_path, 100, False)
    (tmp_path / "20_x").rename(tmp_path / "mine")
    with pytest.raises(UserError, match="no longer"):
        balance.undo(tmp_path)
    assert names(tmp_path) == ["mine"]
