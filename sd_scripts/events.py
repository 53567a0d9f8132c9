"""The stream of events between a running trainer and whoever watches it: one JSON object a line, and files as requests.

The trainer writes; the page, another browser or `tail -f` reads, each from its own offset. Nothing here needs more than
the standard library, so that the page can read a run without loading a trainer.
"""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

VERSION = 1
REQUESTS = ("stop", "save", "sample")
# No space, quota used up, file as large as it may be.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_MOST_WAITING = 1 << 22


def _finite(value: Any, path: str, bad: list[str]) -> Any:
    """The value with NaN and infinities replaced by None; their places are added to `bad`."""
    if isinstance(value, float) and not math.isfinite(value):
        bad.append(f"{path} was {value}")
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{path}.{key}" if path else str(key), bad) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{path}[{index}]", bad) for index, item in enumerate(value)]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # numpy and torch scalars know how to become Python numbers; anything else is shown as text rather than lost
    item = getattr(value, "item", None)
    return _finite(item(), path, bad) if callable(item) else str(value)


class EventWriter:
    """Appends events to a file, each flushed at once, so that a killed run loses at most the line being written.

    A disk that takes no more does not end the run: events wait in memory and go into the file with a later one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._ends_torn()
        self._file = self.path.open("ab", buffering=0)
        # a killed run left half a line; ended here, it is skipped by readers and does not swallow our first event
        self._waiting = b"\n" if torn else b""

    def _ends_torn(self) -> bool:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def write(self, kind: str, **fields: Any) -> None:
        """Add one event of this kind. A NaN or an infinity becomes null, and `warning` says which field it was."""
        bad: list[str] = []
        event = {"v": VERSION, "t": round(time.time(), 3), "kind": kind}
        event.update(_finite(fields, "", bad))
        if bad:
            event["warning"] = "; ".join(bad)
        self._waiting += json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        self._drain()

    def _drain(self) -> None:
        """Write what waits, as much as the disk takes; a line that was written in part goes on where it ended."""
        try:
            while self._waiting:
                written = self._file.write(self._waiting) or 0
                self._waiting = self._waiting[written:]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if len(self._waiting) > _MOST_WAITING:
                # only whole lines may go: what stands at the front may be the rest of one
                first = self._waiting.find(b"\n") + 1
                newest = self._waiting.find(b"\n", len(self._waiting) - _MOST_WAITING // 2) + 1
                self._waiting = self._waiting[:first] + self._waiting[newest:]

    def close(self) -> None:
        """Close the file; more events cannot be written."""
        if not self._file.closed:
            self._drain()
            self._file.close()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path | str, offset: int = 0, most_steps: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events after `offset` bytes and the offset to go on from.

    With `most_steps`, about that many `step` events are read where there are more: the first, the last, and between
    them every n-th. All other events are always read.

    A last line without its end is left for the next call. A complete line that is no JSON object (a run killed in the
    middle of a line and started again) is skipped. A missing file holds no events. If the file is shorter than
    `offset`, it was replaced, and reading starts over.
    """
    file_path = Path(path)
    if not file_path.exists():
        return [], 0
    with file_path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < offset:
            offset = 0
        file.seek(offset)
        block = file.read()
    complete = block.rfind(b"\n") + 1
    events = []
    for line in _thinned(block[:complete].splitlines(), most_steps):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
    return events, offset + complete


def _thinned(lines: list[bytes], most_steps: int) -> list[bytes]:
    """The lines without most of their step events, if these are more than `most_steps` (and that is not 0)."""
    if not most_steps or len(lines) <= most_steps:
        return lines
    # as `EventWriter` writes them; a line of another hand is simply kept
    steps = [number for number, line in enumerate(lines) if b'"kind": "step"' in line[:80]]
    every = max(len(steps) // most_steps, 1)
    left_out = set(steps[1:-1]) - set(steps[::every])
    return [line for number, line in enumerate(lines) if number not in left_out]


class Control:
    """Requests to a running trainer, as files in a folder: the same on every system, and a restart loses none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def request(self, name: str) -> None:
        """Ask the trainer for `stop`, `save` or `sample`. Asking twice before it looks is asking once.

        Raises:
            ValueError: for any other name.
        """
        if name not in REQUESTS:
            raise ValueError(f"{name!r} cannot be requested, only {', '.join(REQUESTS)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).touch()

    def take(self) -> list[str]:
        """The open requests, which are thereby taken: their files are gone afterwards."""
        taken = []
        for name in REQUESTS:
            try:
                (self.folder / name).unlink()
            except FileNotFoundError:
                continue
            taken.append(name)
        return taken
