"""Stamps of many files: what tells whether they changed since they were read."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from sd_scripts.schema import stamp_process
from sd_scripts.schema.filework import READ_FLAGS, in_parallel
from sd_scripts.schema.stamp_process import GONE, STAMP, looker

_WORTH_A_PROCESS = 20_000
_BY_FOLDER = os.stat in os.supports_dir_fd

logger = logging.getLogger(__name__)


def stamps_of(folder: str, names: Sequence[str]) -> bytes:
    """Stamps of files in a folder, in order; see `read_stamps`. Raises OSError where the folder cannot be opened."""
    if not _BY_FOLDER:
        with os.scandir(folder) as entries:
            there = {entry.name: _stamp(entry.stat()) for entry in entries if entry.is_file()}
        return b"".join([there.get(name, GONE) for name in names])
    handle = os.open(folder, READ_FLAGS)
    try:
        return b"".join(in_parallel(looker(handle), names))
    finally:
        os.close(handle)


def _stamp(status: os.stat_result) -> bytes:
    return STAMP.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_stamps(stamps: bytes) -> Iterator[tuple[int, int, int]]:
    """Of every file its length in bytes, and in ns its time of change and that of its inode; length -1: it is gone."""
    return STAMP.iter_unpack(stamps)


class LaterStamps:
    """Stamps that another process collects while this one does something else; to be used in a `with` statement.

    Asking for the stamps of 100,000 files takes a quarter of a second, which the threads of one Python process cannot
    share. Where there are few files, one core or no way to start the process, they are collected in this one when they
    are asked for, and with `here` always.
    """

    def __init__(self, folder: str, names: Sequence[str], *, here: bool = False) -> None:
        self._folder = folder
        self.names = names
        self.begun = time.time_ns()
        self._process: subprocess.Popen[bytes] | None = None
        several = _BY_FOLDER and (os.cpu_count() or 1) > 1
        if not here and several and sys.executable and len(names) >= _WORTH_A_PROCESS:
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-I", "-S", stamp_process.__file__, self._folder]  # isolated, no site packages
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            if self._process.stdin is not None:
                with self._process.stdin as names:
                    names.write(b"\0".join(map(os.fsencode, self.names)))
        except OSError as error:
            logger.debug("no second process looks at the files of %s: %s", self._folder, error)

    def collect(self) -> bytes:
        """The stamps, as `stamps_of` gives them. Raises OSError where the folder cannot be opened."""
        if self._process is not None and self._process.stdout is not None:
            found = self._process.stdout.read()
            if self._process.wait() == 0 and len(found) == STAMP.size * len(self.names):
                return found
        return stamps_of(self._folder, self.names)

    def __enter__(self) -> "LaterStamps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
