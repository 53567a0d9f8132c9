"""Large folders: what is remembered between runs, and when it is read again."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_kit import blueprint
from PIL import Image

from kohya_gui.dataset_view import sizes_in
from sd_scripts.data.dataset import build
from sd_scripts.schema import filememory, filestamps
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.filememory import FEWEST, VARIABLE, cache_folder, facts_of
from sd_scripts.schema.filestamps import LaterStamps, read_stamps, stamps_of
from sd_scripts.schema.filework import read_bytes

COUNT = FEWEST + 44
OPENED: list[str] = []
ROOT = Path(__file__).resolve().parents[2]


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(watch)  # stays for good; it only keeps names


def encoded(size: tuple[int, int], ending: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, ending)
    return content.getvalue()


PICTURES = {
    (ending, size): encoded(size, "JPEG" if ending == "jpg" else "PNG")
    for ending in ("png", "jpg")
    for size in ((64, 64), (96, 64), (64, 96), (128, 48))
}

PICTURES_OF = [size for _, size in PICTURES]


def wait_a_tick() -> None:
    """Until files are old enough to be trusted: the time of their inodes cannot be set, so there is no other way."""
    time.sleep(2.2 * filememory._TICK_NS / 1e9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "folders"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A class folder of COUNT pictures, each with a caption."""
    place = tmp_path / "train" / "2_thing"
    place.mkdir(parents=True)
    kinds = list(PICTURES)
    for number in range(COUNT):
        ending, size = kinds[number % len(kinds)]
        (place / f"p{number:04d}.{ending}").write_bytes(PICTURES[ending, size])
        (place / f"p{number:04d}.txt").write_text(f"thing, tag{number % 7}", encoding="utf-8")
    wait_a_tick()
    return place


Scan = Callable[..., tuple[list[Any], list[str]]]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """scan() -> what was found of every picture, and the files of the picture folder that were opened for it."""

    def look(**values: Any) -> tuple[list[Any], list[str]]:
        OPENED.clear()
        values = {"enable_bucket": True, "bucket_reso_steps": 16} | values
        group, _ = build(blueprint(train_data_dir=tmp_path / "train", **values), 1)
        opened = [path for path in OPENED if os.path.dirname(path) == str(tmp_path / "train" / "2_thing")]
        found = [(r.path, r.caption, r.repeats, r.placement) for d in group.datasets for r in d.records]
        return [found, group.facts(), group.warnings, [d.order.pictures(1, 0) for d in group.datasets]], opened

    return look


def files_of_ours(place: Path) -> list[Path]:
    return sorted(place.glob("*.facts"))


def test_the_second_scan_opens_no_file_and_finds_the_same(many: Path, scan: Scan, own_cache: Path) -> None:
    first, opened = scan()
    assert len(opened) == 2 * COUNT
    assert len(files_of_ours(own_cache)) == 2
    assert sorted(os.listdir(many))[:2] == ["p0000.png", "p0000.txt"]
    assert not [name for name in os.listdir(many) if not name.endswith((".png", ".jpg", ".txt"))]
    before = [path.read_bytes() for path in files_of_ours(own_cache)]
    second, opened = scan()
    assert opened == []
    assert second == first
    assert [path.read_bytes() for path in files_of_ours(own_cache)] == before


def test_small_folders_are_not_remembered(many: Path, scan: Scan, own_cache: Path) -> None:
    for number in range(FEWEST - 1, COUNT):
        for path in many.glob(f"p{number:04d}.*"):
            path.unlink()
    first, _ = scan()
    second, opened = scan()
    assert second == first
    assert len(opened) == 2 * (FEWEST - 1)
    assert not own_cache.exists()


def test_every_change_is_seen(many: Path, scan: Scan) -> None:
    def of(result: list[Any], name: str) -> Any:
        return next(row for row in result[0] if os.path.basename(row[0]) == name)

    scan()
    (many / "p0000.png").write_bytes(PICTURES["png", (128, 48)])
    (many / "p0003.txt").write_text("other words", encoding="utf-8")
    (many / "p0008.png").unlink()
    (many / "q0000.png").write_bytes(PICTURES["png", (64, 96)])
    (many / "q0000.txt").write_text("new", encoding="utf-8")
    wait_a_tick()
    result, opened = scan()
    assert sorted(map(os.path.basename, opened)) == ["p0000.png", "p0003.txt", "q0000.png", "q0000.txt"]
    assert of(result, "p0000.png")[3].image == (128, 48)
    assert of(result, "p0003.png")[1] == "other words"
    assert of(result, "q0000.png")[1:] == ("new", 2, of(result, "q0000.png")[3])
    assert of(result, "q0000.png")[3].image == (64, 96)
    assert len(result[0]) == COUNT
    assert not [row for row in result[0] if row[0].endswith("p0008.png")]
    again, opened = scan()
    assert (again, opened) == (result, [])


def test_the_same_length_with_another_time_is_a_change(many: Path, scan: Scan) -> None:
    result, _ = scan()
    picture, caption = many / "p0000.png", many / "p0000.txt"
    swapped = PICTURES["png", (64, 96)]
    content = picture.read_bytes()
    padded = swapped + b"\0" * (len(content) - len(swapped)) if len(swapped) < len(content) else swapped
    picture.write_bytes(padded)
    caption.write_text("thinG, tag0", encoding="utf-8")
    os.utime(picture, ns=(10**18, 2 * 10**18))
    assert len(caption.read_bytes()) == len("thing, tag0")
    result, opened = scan()
    assert sorted(map(os.path.basename, opened)) == ["p0000.png", "p0000.txt"]
    assert (result[0][0][1], result[0][0][3].image) == ("thinG, tag0", (64, 96))


@pytest.mark.skipif(sys.platform == "win32", reason="a file's inode has no time there")
def test_a_change_with_the_old_length_and_time_put_back_is_seen(many: Path, scan: Scan) -> None:
    scan()
    caption = many / "p0005.txt"
    status = caption.stat()
    wait_a_tick()
    caption.write_text("thinG, tag5", encoding="utf-8")
    os.utime(caption, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (caption.stat().st_size, caption.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    result, opened = scan()
    assert list(map(os.path.basename, opened)) == ["p0005.txt"]
    assert result[0][5][1] == "thinG, tag5"


def test_files_that_changed_a_moment_ago_are_not_trusted(many: Path, scan: Scan) -> None:
    caption = many / "p0005.txt"
    caption.write_text("thing, tag5", encoding="utf-8")
    scan()
    _, opened = scan()
    assert list(map(os.path.basename, opened)) in ([], ["p0005.txt"])  # the first scan itself may outlast the tick
    future = caption.stat().st_mtime_ns + 10**12
    os.utime(caption, ns=(future, future))
    for _ in range(2):
        assert list(map(os.path.basename, scan()[1])) == ["p0005.txt"]


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "foreign", "folder"])
def test_a_damaged_memory_is_ignored_and_made_anew(many: Path, scan: Scan, own_cache: Path, damage: str) -> None:
    first, _ = scan()
    for path in files_of_ours(own_cache):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        new = {"torn": content[: len(content) // 3], "flipped": content, "empty": b"", "foreign": b"x" * 4096}
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            path.write_bytes(bytes(new[damage]))
    second, opened = scan()
    assert second == first
    assert len(opened) == 2 * COUNT
    if damage != "folder":
        assert scan()[1] == []


def test_other_rules_for_captions_have_their_own_memory(many: Path, scan: Scan) -> None:
    (many / "p0001.txt").write_text("one\ntwo", encoding="utf-8")
    wait_a_tick()
    assert scan()[0][0][1][1] == "one"
    assert scan(enable_wildcard=True)[0][0][1][1] == "one\ntwo"
    assert scan()[0][0][1][1] == "one"
    assert scan(enable_wildcard=True)[1] == []


def test_empty_and_missing_captions_are_remembered_as_such(many: Path, scan: Scan) -> None:
    (many / "p0001.txt").write_bytes(b"")
    (many / "p0002.txt").unlink()
    (many / "p0004.txt").write_bytes(b" \n")
    wait_a_tick()
    first, _ = scan()
    assert [row[1] for row in first[0][:5]] == ["thing, tag0", "thing", "thing", "thing, tag3", ""]
    assert any("1 caption files are empty" in warning for warning in first[2])
    assert scan() == (first, [])


def test_an_unwritable_cache_folder_is_said_once_quietly(
    many: Path, scan: Scan, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.parent.write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.DEBUG, "sd_scripts.schema.filememory"):
        first, _ = scan()
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * len(caplog.records)
    assert any("cannot be written" in record.message for record in caplog.records)
    assert scan()[0] == first


def test_it_can_be_switched_off_and_lies_in_the_usual_place(
    many: Path, scan: Scan, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert cache_folder() is None
    scan()
    assert len(scan()[1]) == 2 * COUNT
    assert not own_cache.exists()
    monkeypatch.delenv(VARIABLE)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "kohya-gui"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "kohya-gui"


def test_a_broken_picture_is_still_named_and_nothing_is_remembered(many: Path, scan: Scan, own_cache: Path) -> None:
    (many / "p0100.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"p0100\.png"):
            scan()
    assert not files_of_ours(own_cache)


def test_odd_names_are_remembered(tmp_path: Path, own_cache: Path) -> None:
    place = tmp_path / "odd"
    place.mkdir()
    names = ['a "b".txt', "日本.txt", "new\nline.txt"] + [f"{number}.txt" for number in range(FEWEST)]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"not\xffutf8.txt"))
    for name in names:
        (place / name).write_text(f"<{len(name)}>", encoding="utf-8")
    wait_a_tick()

    def read(path: str) -> tuple[int, str]:
        return len(read_bytes(path)), "with\0zero" if path.endswith("/7.txt") else os.path.basename(path)

    first = facts_of(str(place), names, "test", read, texts=True)
    second = facts_of(str(place), names, "test", read, texts=True)
    assert (list(second.numbers), second.texts) == (list(first.numbers), first.texts)
    assert (first.fresh, second.fresh) == (len(names), 1)  # a text with a zero is read again


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import os
from sd_scripts.schema.filememory import facts_of
from sd_scripts.schema.filework import read_bytes
names = sorted(os.listdir(sys.argv[2]))
for turn in range(30):
    part = names[turn % 3 :]
    facts = facts_of(sys.argv[2], part, "together", lambda path: (len(read_bytes(path)), path), texts=True)
    assert facts.texts == [os.path.join(sys.argv[2], name) for name in part]
    assert list(facts.numbers) == [os.path.getsize(text) for text in facts.texts]
"""


def test_two_processes_at_once_do_not_disturb_each_other(many: Path, own_cache: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(ROOT), str(many)]
    running = [subprocess.Popen(command, env=os.environ.copy(), stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        assert process.communicate(timeout=120)[1] == b""
        assert process.returncode == 0
    assert len(files_of_ours(own_cache)) == 1
    assert not list(own_cache.glob("*.part"))


def test_the_memory_does_not_grow_without_bound(
    many: Path, scan: Scan, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir(parents=True)
    left = own_cache / "stopped.part"
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    for number in range(5):
        old = own_cache / f"{number}.facts"
        old.write_bytes(b"x" * 10)
        os.utime(old, (1000 + number, 1000 + number))
    monkeypatch.setattr(filememory, "_MOST_FILES", 4)
    scan()
    names = {path.name for path in own_cache.iterdir()}
    assert len(names) == 4
    assert {"3.facts", "4.facts"} < names
    monkeypatch.setattr(filememory, "_MOST_BYTES", 100)
    (many / "p0000.txt").write_text("again", encoding="utf-8")
    scan()
    assert files_of_ours(own_cache) == []


def test_what_the_folder_remembers_itself_is_left_alone_while_nothing_changes(many: Path, scan: Scan) -> None:
    first, _ = scan(cache_info=True)
    stored = many / "metadata_cache.json"
    content = json.loads(stored.read_text(encoding="utf-8"))
    assert len(content) == COUNT
    assert content[str(many / "p0001.png")]["resolution"] == [96, 64]
    status = stored.stat()
    assert scan(cache_info=True) == (first, [])
    assert stored.stat() == status
    (many / "p0001.txt").write_text("changed", encoding="utf-8")
    scan(cache_info=True)
    assert json.loads(stored.read_text(encoding="utf-8"))[str(many / "p0001.png")]["caption"] == "changed"


def test_the_page_and_the_trainers_remember_together(many: Path, scan: Scan) -> None:
    scan()
    OPENED.clear()
    names = sorted(name for name in os.listdir(many) if not name.endswith(".txt"))
    assert sizes_in(str(many), names) == [PICTURES_OF[number % len(PICTURES_OF)] for number in range(COUNT)]
    assert not [path for path in OPENED if path.endswith((".png", ".jpg"))]
    (many / "p0010.png").write_bytes(b"no picture")
    wait_a_tick()
    for _ in range(2):
        OPENED.clear()
        sizes = sizes_in(str(many), names)
        assert (sizes[10], sizes[11]) == (None, PICTURES_OF[11 % len(PICTURES_OF)])
    (many / "p0010.png").write_bytes(PICTURES["png", (64, 96)])
    assert sizes_in(str(many), names)[10] == (64, 96)


@pytest.mark.parametrize("python", [sys.executable, "/nowhere/python", "/bin/false", ""])
def test_another_process_finds_the_stamps_or_this_one_does(
    many: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    names = sorted(os.listdir(many)) + ["gone.png", "日本 'x'.png"]
    (many / names[-1]).write_bytes(b"12345")
    monkeypatch.setattr(filestamps, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(sys, "executable", python)
    with LaterStamps(str(many), names) as stamps:
        assert (stamps._process is not None) == (os.path.exists(python) and (os.cpu_count() or 1) > 1)
        found = stamps.collect()
    assert found == stamps_of(str(many), names)
    rows = list(read_stamps(found))
    assert rows[-2:] == [(-1, 0, 0), (5, *rows[-1][1:])]
    assert rows[0][:2] == ((many / names[0]).stat().st_size, (many / names[0]).stat().st_mtime_ns)


def test_a_process_that_is_not_needed_any_more_ends(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filestamps, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(DataError), LaterStamps(str(many), sorted(os.listdir(many))) as stamps:
        raise DataError("a picture is broken")
    assert stamps._process is not None
    assert stamps._process.returncode is not None


def test_pictures_read_by_two_processes_are_the_same(
    many: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    first, _ = scan()
    kept = [path.read_bytes() for path in files_of_ours(own_cache)]
    for path in files_of_ours(own_cache):
        path.unlink()
    monkeypatch.setattr(filestamps, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert scan()[0] == first
    assert [path.read_bytes() for path in files_of_ours(own_cache)] == kept
    assert scan() == (first, [])
