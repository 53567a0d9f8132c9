"""What a script tells whoever watches it as a job: events, the files it wrote, and what stood under their names before.

A script run by hand tells nobody: every method does nothing until `to` has opened a job's folder. In there lie then
`events.jsonl`, and `undo.jsonl` with `kept/`: enough to put every file back as it was.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd_scripts.events import EventWriter

EVENTS, UNDO, KEPT = "events.jsonl", "undo.jsonl", "kept"
MOST_NAMED = 50
_BETWEEN_EVENTS = 0.3


class Report:
    """One process's report; used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: EventWriter | None = None
        self._folder: Path | None = None
        self._written = 0
        self._numbers = itertools.count()
        self._last_phase = ("", 0.0)
        self._result = ""

    @property
    def heard(self) -> bool:
        """Whether anybody is told."""
        return self._events is not None

    @contextmanager
    def to(self, job_dir: Path, command: str) -> Iterator[None]:
        """Tell a job's folder, from the start event to the end of the context; the caller tells the end."""
        job_dir.mkdir(parents=True, exist_ok=True)
        kept = job_dir / KEPT
        # another script of the same job may have kept files before this one
        self._numbers = itertools.count(len(os.listdir(kept)) if kept.is_dir() else 0)
        self._written, self._result, self._last_phase, self._folder = 0, "", ("", 0.0), job_dir
        with EventWriter(job_dir / EVENTS) as events:
            self._events = events
            try:
                self.tell("start", command=command, total_steps=0, total_epochs=0)
                yield
            finally:
                self._events, self._folder = None, None

    def tell(self, kind: str, **fields: Any) -> None:
        """Add an event."""
        with self._lock:
            if self._events is not None:
                self._events.write(kind, **fields)

    def phase(self, name: str, done: int, of: int) -> None:
        """How far a piece of work is; told a few times a second at most, and always where it begins and ends."""
        now = time.monotonic()
        last, moment = self._last_phase
        if self.heard and (name != last or done == of or now - moment >= _BETWEEN_EVENTS):
            self._last_phase = (name, now)
            self.tell("phase", name=name, done=done, of=of)

    def result(self, text: str) -> None:
        """The sentence that says what came of it; the last one counts."""
        self._result = text

    def end(self, status: str, reason: str = "") -> None:
        """The last event: "done", "stopped" or "failed"."""
        self.tell("end", status=status, reason=reason or self._result, step=0, written=self._written)

    # ---- files

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Around the moment in which a file takes its name: what stood there is kept, what stands there is told.

        Raises:
            OSError: what stands there cannot be kept.
        """
        if self._folder is None or path.resolve().parent == self._folder.resolve():
            # what goes into the job's own folder is part of the report
            yield
            return
        with self._lock:
            name = self._keep(path)
            self._note({"path": os.path.abspath(path), "kept": name})
        yield
        found = os.stat(path)
        with self._lock:
            self._note({"path": os.path.abspath(path), "size": found.st_size, "time": found.st_mtime_ns})
            self._written += 1
        if self._written <= MOST_NAMED:
            self.tell(
                "save", path=str(path), step=0, epoch=0, bytes=found.st_size, final=False, state=False, checked=False
            )

    def _keep(self, path: Path) -> str | None:
        """Keep a file that is about to be replaced; the name of the copy, None where there is no file."""
        assert self._folder is not None
        if not path.exists():
            return None
        kept = self._folder / KEPT
        kept.mkdir(exist_ok=True)
        name = f"{next(self._numbers):06d}{path.suffix}"
        try:
            # a file is never written into, only replaced, so a second name keeps its content without a copy
            os.link(path, kept / name)
        except OSError:
            shutil.copy2(path, kept / name)
        return name

    def _note(self, entry: dict[str, Any]) -> None:
        assert self._folder is not None
        with open(self._folder / UNDO, "ab", buffering=0) as file:
            file.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")


report = Report()
"""The report of this process."""
