"""What was read from the files of a folder, remembered between runs, so that only new and changed files are opened.

For every folder and kind of fact there is one file in the user's cache folder, never beside the pictures. A fact holds
as long as its file has the same name, length, time of change and time of its inode. A file of ours that is damaged,
missing or not writable costs nothing but the time to read everything again.

The environment variable KOHYA_GUI_CACHE names another cache folder, or switches this off with `off`.
"""

import contextlib
import hashlib
import logging
import os
import struct
import sys
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_scripts.schema.filestamps import LaterStamps, stamps_of
from sd_scripts.schema.filework import in_parallel
from sd_scripts.schema.stamp_process import STAMP

VARIABLE = "KOHYA_GUI_CACHE"
FEWEST = 256
"""Files from which on remembering is worth a file in the cache folder."""

_MAGIC = b"kohya-gui file facts 1 " + sys.byteorder.encode() + b"\n"
_HEAD = struct.Struct("=QQQI")  # files, bytes of the names, bytes of the texts, checksum of all that follows
_MOST_FILES, _MOST_BYTES, _LARGEST = 256, 1 << 30, 1 << 28
_ENDING, _UNFINISHED = ".facts", ".part"
_DAY = 24 * 3600
_TICK_NS, _COARSE_NS, _COARSE_STEP = 20_000_000, 2_000_000_000, 10_000_000
_UNSETTLED = STAMP.pack(-2, 0, 0)

logger = logging.getLogger(__name__)


def _numbers(count: int = 0) -> "array[int]":
    return array("q", bytes(8 * count))


@dataclass(slots=True)
class Facts:
    """A number and a text for each of some files; `texts` is empty where there are none. fresh: files opened now."""

    numbers: "array[int]"
    texts: list[str]
    fresh: int = 0


@dataclass(slots=True)
class _Stored:
    """Content of one of our files."""

    names: list[str]
    stamps: bytes
    facts: Facts


def cache_folder() -> Path | None:
    """Folder of everything this program keeps only to be quicker; None where it is switched off or there is no home."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "no", "none", "false"):
        return None
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "kohya-gui" if os.path.isabs(base) else None


def facts_of(
    folder: str,
    names: Sequence[str],
    kind: str,
    read: Callable[[str], tuple[int, str]],
    *,
    texts: bool = False,
    stamps: LaterStamps | None = None,
) -> Facts:
    """A number and a text for every file, remembered from an earlier run or read now.

    Args:
        names: of files in the folder; some may come twice.
        kind: what the facts are and how they are read; facts of another kind are kept apart.
        read: a file's path -> its number and text. A number below 0 is handed on, but not remembered. What it raises
            ends the reading.
        texts: whether there are texts at all.
        stamps: of the same files, begun earlier.
    """
    place = _place(folder, kind) if len(names) >= FEWEST else None
    # the time before the stamps: a change during the reading must look new the next time
    begun, found = stamps.begun if stamps is not None else time.time_ns(), b""
    if place is not None:
        try:
            found = stamps.collect() if stamps is not None else stamps_of(folder, names)
        except OSError:
            place = None  # reading says what is wrong
    stored = _load(place) if place is not None else None
    facts, missing = _recall(stored, names, found, texts)
    prefix = os.path.join(folder, "")
    for number, (value, text) in zip(missing, in_parallel(lambda i: read(prefix + names[i]), missing)):
        facts.numbers[number] = value
        if texts:
            facts.texts[number] = text
    facts.fresh = len(missing)
    if place is not None and (missing or stored is None or len(stored.names) != len(names)):
        _save(place, _Stored(list(names), _settled(found, facts, missing, begun), facts))
    return facts


def _recall(stored: _Stored | None, names: Sequence[str], stamps: bytes, texts: bool) -> tuple[Facts, Sequence[int]]:
    """Facts that still hold, and the numbers of the files that must be read."""
    empty = Facts(_numbers(len(names)), [""] * len(names) if texts else [])
    if stored is None or bool(stored.facts.texts) != texts:
        return empty, range(len(names))
    same_names = stored.names == names
    if same_names and stored.stamps == stamps:
        return stored.facts, ()
    where = {} if same_names else {name: number for number, name in enumerate(stored.names)}
    missing = []
    there, width = stored.stamps, STAMP.size
    for number, name in enumerate(names):
        old = number if same_names else where.get(name)
        stamp = stamps[number * width : (number + 1) * width]
        if old is not None and there[old * width : (old + 1) * width] == stamp:
            empty.numbers[number] = stored.facts.numbers[old]
            if texts:
                empty.texts[number] = stored.facts.texts[old]
        else:
            missing.append(number)
    return empty, missing


def _settled(stamps: bytes, facts: Facts, read_now: Sequence[int], now: int) -> bytes:
    """The stamps to remember: without those of files that can change once more without showing it.

    Two changes within one tick of a file system's clock leave the same time: a file that changed just before it was
    looked at is read again the next time. Whole hundredths of a second tell a clock that may tick only every 2 s.
    """
    kept = bytearray(stamps)
    for number in read_now:
        start = number * STAMP.size
        _, changed, inode = STAMP.unpack_from(stamps, start)
        latest = max(changed, inode)
        unsettled = latest > now - (_COARSE_NS if latest % _COARSE_STEP == 0 else _TICK_NS)
        if unsettled or facts.numbers[number] < 0 or (facts.texts and "\0" in facts.texts[number]):
            kept[start : start + STAMP.size] = _UNSETTLED
    return bytes(kept)


def _place(folder: str, kind: str) -> Path | None:
    base = cache_folder()
    if base is None:
        return None
    key = f"{kind}\0{os.path.realpath(folder)}".encode("utf-8", "surrogatepass")
    return base / "folders" / (hashlib.blake2b(key, digest_size=16).hexdigest() + _ENDING)


def _load(place: Path) -> _Stored | None:
    """Content of a file of ours; None where it is missing, damaged or of another version."""
    try:
        content = memoryview(place.read_bytes())
        start = len(_MAGIC) + _HEAD.size
        if content[: len(_MAGIC)] != _MAGIC:
            raise ValueError("of another version")
        count, names_length, texts_length, checksum = _HEAD.unpack(content[len(_MAGIC) : start])
        body, fixed = content[start:], STAMP.size + 8
        if len(body) != fixed * count + names_length + texts_length or zlib.crc32(body) != checksum:
            raise ValueError("damaged")
        with contextlib.suppress(OSError):  # a folder of somebody else, or one that nobody may write to
            os.utime(place)  # used lately: the last to be cleared away
    except FileNotFoundError:
        return None
    except (OSError, ValueError, struct.error) as error:
        logger.debug("%s is not used: %s", place, error)
        return None
    numbers = _numbers()
    numbers.frombytes(body[STAMP.size * count : fixed * count])
    names = _split(body[fixed * count : fixed * count + names_length])
    texts = _split(body[fixed * count + names_length :]) if texts_length else []
    if len(names) != count or len(texts) not in (0, count):
        return None
    return _Stored(names, bytes(body[: STAMP.size * count]), Facts(numbers, texts))


def _joined(texts: list[str]) -> bytes:
    """Texts, each with a zero at its end: one empty text then differs from none at all."""
    return "".join([f"{text}\0" for text in texts]).encode("utf-8", "surrogatepass")


def _split(content: memoryview) -> list[str]:
    return str(content, "utf-8", "surrogatepass").split("\0")[:-1]


def _save(place: Path, stored: _Stored) -> None:
    """Write a file whole or not at all; where that is not possible, it is only a pity."""
    names = _joined(stored.names)
    texts = _joined([text if "\0" not in text else "" for text in stored.facts.texts])
    body = b"".join([stored.stamps, stored.facts.numbers.tobytes(), names, texts])
    if len(body) > _LARGEST:
        logger.debug("%s would be too large", place)
        return
    temporary = None
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=_UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + _HEAD.pack(len(stored.names), len(names), len(texts), zlib.crc32(body)))
            file.write(body)
        os.replace(temporary, place)
        _clear(place.parent)
    except OSError as error:
        logger.debug("%s cannot be written: %s", place, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _clear(folder: Path) -> None:
    """Delete what was not used for longest beyond a number and a total size, and what a stopped process left."""
    found = []
    now = time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat()
            if entry.name.endswith(_ENDING):
                found.append((status.st_mtime, status.st_size, entry.path))
            elif entry.name.endswith(_UNFINISHED) and status.st_mtime < now - _DAY:
                os.unlink(entry.path)
    total = 0
    for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
        total += size
        if number >= _MOST_FILES or total > _MOST_BYTES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
