"""One TensorBoard for the whole page: started and stopped from the Jobs tab, shown through the page's own address.

It listens on this machine only, below a path nobody can guess; browsers reach it through `kohya/tensorboard/`, behind
the page's login. So it works wherever the page works, and no other port has to be opened.
"""

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kohya_gui.job_process import clean_environment
from kohya_gui.paths import Roots
from sd_scripts.schema.errors import UserError

FIRST_PORT, MORE_PORTS = 6006, 100
START_SECONDS = 60.0
_CHILD = Path(__file__).with_name("tensorboard_child.py")


@dataclass(frozen=True)
class Board:
    """A TensorBoard that runs: what it shows, and where it listens. `address` is for the page itself."""

    folder: Path
    port: int
    address: str
    ready: bool


def first_port(environment: Mapping[str, str] = os.environ) -> int:
    """The port to try first: TENSORBOARD_PORT, or 6006.

    Raises:
        UserError: if the variable holds no port.
    """
    text = environment.get("TENSORBOARD_PORT", "").strip()
    if not text:
        return FIRST_PORT
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise UserError(f"TENSORBOARD_PORT is {text[:40]!r}, which is no port.", hint="Give a number such as 6006.")
    return int(text)


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on.

    Raises:
        UserError: if a hundred in a row are taken.
    """
    last = min(first + MORE_PORTS, 65536)
    for port in range(first, last):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if os.name != "nt":
                # a port that was used a minute ago is free; on Windows this would take one that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"The ports {first} to {last - 1} are all taken.", hint="Set TENSORBOARD_PORT to another one.")


class TensorBoard:
    """Starts, watches and ends the one process. Safe to use from several sessions.

    Args:
        roots: the folders whose logs may be shown.
    """

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._board: Board | None = None

    def running(self) -> Board | None:
        """What runs now; None if nothing does."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return None
            return self._board

    def start(self, folder: str) -> Board:
        """Show the logs of a folder, in place of what was shown before. Waits until it answers.

        Raises:
            UserError: if the folder is outside the allowed ones or missing, TensorBoard is not installed, or it does
                not start.
        """
        if not folder.strip():
            raise UserError(
                "No log folder is known yet.", "logging_dir", "Set one for a training, or type where the logs are."
            )
        real = self.roots.inside(folder)
        if not real.is_dir():
            raise UserError(f"The log folder {real} does not exist.", "logging_dir", "A training with logs makes it.")
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("TensorBoard is not installed.", hint="Install it with: pip install tensorboard")
        with self._lock:
            self._end()
            port = free_port(first_port())
            prefix = f"/{secrets.token_urlsafe(16)}"
            self._process, self._said = _launch({"logdir": str(real), "port": port, "prefix": prefix})
            self._board = Board(real, port, f"http://127.0.0.1:{port}{prefix}/", ready=False)
            process, said, board = self._process, self._said, self._board
        if not _answers(process, board):
            text = _last_line(said)
            with self._lock:
                # another session may have started its own in the meantime
                if self._process is process:
                    self._end()
            raise UserError(f"TensorBoard did not start{': ' + text if text else '.'}", hint="Try it in a terminal.")
        with self._lock:
            if self._process is process:
                self._board = Board(board.folder, board.port, board.address, ready=True)
        return Board(board.folder, board.port, board.address, ready=True)

    def stop(self) -> None:
        """End it; nothing happens if it does not run."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, said = self._process, self._said
        self._process = self._said = self._board = None
        if process is not None:
            if process.stdin is not None:
                # a process that was killed has closed the other end already
                _close(process.stdin)
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if said is not None:
            said.close()


def _close(file: IO[bytes]) -> None:
    try:
        file.close()
    except BrokenPipeError:
        return


def _launch(asked: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", IO[bytes]]:
    said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=clean_environment(os.environ, {"PYTHONUTF8": "1"}),
            start_new_session=os.name != "nt",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
    except OSError as error:
        said.close()
        raise UserError(f"TensorBoard cannot be started: {error.strerror or error}.") from error
    return process, said


def _answers(process: "subprocess.Popen[bytes]", board: Board) -> bool:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", board.port), timeout=1):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def _last_line(said: IO[bytes]) -> str:
    """What the process said last, in one line."""
    try:
        said.seek(0)
        lines = said.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    except (OSError, ValueError):
        # another session has ended it in the meantime
        return ""
    return lines[-1][:300] if lines else ""
