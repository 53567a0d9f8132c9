"""Ways in which a run ends early that are not its own doing: a signal, a lost process, no memory, a full disk."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What torch says in the remaining processes when one of them is gone (gloo, NCCL, the store).
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "remote process has terminated",
    "remote process exited",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
    "application timeout caused pair closure",
    "socket timeout",
)


class TerminatedError(Exception):
    """The run was asked to end by a signal (kill, a closing session, a launcher whose other process died)."""


@contextmanager
def signals_end_the_run() -> Iterator[None]:
    """Inside the block SIGTERM raises TerminatedError, so that the run can say how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # launcher and page may both send it; the first one is enough
        raise TerminatedError(f"ended by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_lost_process(error: Exception, processes: int) -> bool:
    """Whether this error means that another process of the run has gone."""
    text = str(error).lower()
    return processes > 1 and isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)


def explain(error: Exception) -> tuple[str, str]:
    """A code and a way out for errors that come from the machine rather than from us."""
    text = str(error).lower()
    if "out of memory" in text or "can't allocate memory" in text or isinstance(error, MemoryError):
        return "memory", (
            "Out of memory: lower train_batch_size or resolution, or switch on gradient_checkpointing, cache_latents "
            "or fp8_base."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "disk", "The disk is full: make room, then resume from the last state."
    return "bug", "This is a fault of the program; the log holds the details."
