"""Where facts about large folders are kept, and what happens where that place is not one's own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from sd_scripts.schema import filememory
from sd_scripts.schema.filememory import FEWEST, VARIABLE, cache_folder, facts_of
from sd_scripts.schema.filework import read_bytes


def read(path: str) -> tuple[int, str]:
    """Length and content of a file."""
    content = read_bytes(path)
    return len(content), content.decode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files enough to be remembered, old enough to be trusted."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    place = tmp_path / "files"
    place.mkdir()
    for number in range(FEWEST):
        (place / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    time.sleep(2.2 * filememory._TICK_NS / 1e9)
    return place


def test_a_memory_that_may_only_be_read_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(os.listdir(folder))
    first = facts_of(str(folder), names, "test", read, texts=True)
    assert first.fresh == len(names)

    def refused(*given: object, **named: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(os, "replace", refused)
    second = facts_of(str(folder), names, "test", read, texts=True)
    assert (second.fresh, second.texts) == (0, first.texts)
    (folder / names[3]).write_text("changed", encoding="utf-8")
    third = facts_of(str(folder), names, "test", read, texts=True)
    assert (third.fresh, third.texts[3]) == (1, "changed")


def test_a_memory_that_may_not_be_read_costs_only_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's folder that two accounts have named in KOHYA_GUI_CACHE."""
    names = sorted(os.listdir(folder))
    first = facts_of(str(folder), names, "test", read, texts=True)

    def refused(*given: object, **named: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    monkeypatch.setattr(filememory.tempfile, "mkstemp", refused)
    second = facts_of(str(folder), names, "test", read, texts=True)
    assert (second.fresh, second.texts) == (len(names), first.texts)


def test_without_a_home_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no name; other systems keep their caches elsewhere."""
    for name in (VARIABLE, "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives for an unknown user
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert sys.platform == "darwin" or cache_folder() is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_folder() is None
    monkeypatch.setenv("LOCALAPPDATA", str(Path.cwd()))
    assert cache_folder() == Path.cwd() / "kohya-gui"


def test_a_container_without_a_home_still_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    monkeypatch.setenv("LOCALAPPDATA", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    names = sorted(os.listdir(folder))
    for _ in range(2):
        assert facts_of(str(folder), names, "test", read, texts=True).fresh == len(names)
