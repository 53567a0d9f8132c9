"""Starting a job's supervisor, and finding out whether it still lives."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from kohya_gui import supervisor
from kohya_gui.supervisor import read_json, write_json

LAUNCHED = "launched.json"
START_SECONDS = 20.0
_TOLERANCE = 3.0
# left over from whatever started the page, these would silently change what the trainer does
_SCRUBBED = ("ACCELERATE_", "FSDP_", "MEGATRON_", "PARALLELISM_CONFIG_", "TORCHELASTIC_", "GRADIO_")
_SCRUBBED_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}


def clean_environment(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a trainer: ours without launcher settings and without the page's password, plus `extra`."""
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith(_SCRUBBED) and name not in _SCRUBBED_NAMES and not name.startswith("KOHYA_GUI_")
    }
    return {**kept, **extra}


def launch(folder: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start the supervisor of a job folder, detached from the page.

    Raises:
        OSError: if no process can be started.
    """
    write_json(folder / LAUNCHED, {"time": time.time(), "pid": None})
    script = str(Path(supervisor.__file__).resolve())
    command = [sys.executable, "-P", script, str(folder)]
    plain = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "DETACHED_PROCESS", 0)
    flags = [plain | getattr(subprocess, "CREATE_BREAKAWAY_FROM_JOB", 0), plain] if os.name == "nt" else [0]
    while True:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                cwd=str(folder),
                close_fds=True,
                start_new_session=os.name != "nt",
                creationflags=flags.pop(0),
            )
            break
        except PermissionError:
            # a Windows job object may forbid breaking away; then the plain flags must do
            if not flags:
                raise
    write_json(folder / LAUNCHED, {"time": time.time(), "pid": process.pid})
    return process


def same_process(pid: Any, started: Any, marker: str) -> "psutil.Process | None":
    """The living process with this id, if it is the one meant and no later one under the same number.

    Args:
        pid: process id.
        started: when it was started, in seconds since 1970.
        marker: text on its command line or in its environment, asked if the times differ (a clock may have been set).
    """
    if not isinstance(pid, int):
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if isinstance(started, int | float) and abs(process.create_time() - started) < _TOLERANCE:
            return process
        if any(marker in part for part in process.cmdline()) or process.environ().get(supervisor.MARKER) == marker:
            return process
    except (psutil.Error, OSError):
        return None
    return None


def alive(folder: Path) -> bool:
    """Whether the job's supervisor, or the trainer below a supervisor that was killed, still runs."""
    launched = read_json(folder / LAUNCHED)
    if launched is None:
        return False
    noted = read_json(folder / supervisor.STARTED)
    if noted is None:
        moment = launched.get("time")
        if same_process(launched.get("pid"), moment, folder.name):
            return True
        # between the two writes of a page that was killed just then, only time can tell
        return launched.get("pid") is None and isinstance(moment, int | float) and time.time() - moment < START_SECONDS
    return bool(
        same_process(noted.get("pid"), noted.get("started"), folder.name)
        or same_process(noted.get("child"), noted.get("child_started"), folder.name)
    )


def kill(folder: Path, grace: float) -> None:
    """Ask the supervisor to end the tree; where there is none any more, end the orphaned trainer from here."""
    write_json(folder / supervisor.KILL, {"grace": grace})
    noted = read_json(folder / supervisor.STARTED) or {}
    if same_process(noted.get("pid"), noted.get("started"), folder.name):
        return
    orphan = same_process(noted.get("child"), noted.get("child_started"), folder.name)
    if orphan is None:
        return
    tree = [*orphan.children(recursive=True), orphan]
    for process in tree:
        _end(process, force=False)
    for process in psutil.wait_procs(tree, timeout=grace)[1]:
        _end(process, force=True)


def _end(process: "psutil.Process", force: bool) -> None:
    try:
        process.kill() if force else process.terminate()
    except psutil.NoSuchProcess:
        return


class FileLock:
    """A lock between processes and threads, held by an open file; the system frees it when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def take(self, seconds: float) -> bool:
        """Try for this long; True if the lock is held now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        until = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() >= until:
                file.close()
                return False
            time.sleep(0.02)
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            _unlock(self._file)
            self._file.close()
            self._file = None


if os.name == "nt":
    import msvcrt

    def _try_lock(file: Any) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

    def _unlock(file: Any) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    def _try_lock(file: Any) -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _unlock(file: Any) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
