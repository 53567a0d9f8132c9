"""What a run tells: events for the page, lines for the console and the log file. One voice, rank 0 only."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from sd_scripts.events import Control, EventWriter
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.logging import LoggingOptions
from sd_scripts.training.notice import Notice

LOGGER_NAME = "sd_scripts"
# The page asks once a second; more events than this only grow the file.
_PROGRESS_SECONDS = 0.5
_CONSOLE_SECONDS = 5.0


def make_logger(options: LoggingOptions, is_main: bool) -> logging.Logger:
    """The run's logger: to the console (rich, or plain), or to the file that was asked for.

    Processes other than the first speak from WARNING upwards only. Raises UserError when the file cannot be opened.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.propagate = False
    level = options.console_log_level or "INFO"
    logger.setLevel(level if is_main else max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handler: logging.Handler
    if options.console_log_file:
        try:
            handler = logging.FileHandler(options.console_log_file, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"The log file '{options.console_log_file}' cannot be written: {error.strerror}.",
                "console_log_file",
                "Choose a file in a folder that exists.",
            ) from error
        handler.setFormatter(plain)
    elif options.console_log_simple or not sys.stderr.isatty():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(plain)
    else:
        handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    logger.addHandler(handler)
    return logger


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, else the peak resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(info.peak_wset)
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux kilobytes


class Reporter:
    """Events and console lines of one run. `folder` None means that this process writes no events."""

    def __init__(self, options: LoggingOptions, folder: Path | None) -> None:
        self.logger = make_logger(options, folder is not None)
        self._writer = EventWriter(folder / "events.jsonl") if folder else None
        self._control = Control(folder / "control") if folder else None
        self._last_progress = 0.0
        self._last_line = 0.0
        self._phase = ""
        # Tables go where the log lines go; 120 columns where that is a file.
        log = next((item for item in self.logger.handlers if isinstance(item, logging.FileHandler)), None)
        width = None if sys.stderr.isatty() and log is None else 120
        self.console = Console(stderr=log is None, file=log.stream if log else None, width=width)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the run."""
        return self._writer is not None

    def event(self, kind: str, **fields: Any) -> None:
        """Write an event; nothing on the processes that don't."""
        if self._writer:
            self._writer.write(kind, **fields)

    def requests(self) -> list[str]:
        """What the person asked for since the last call: any of "stop", "save", "sample"."""
        return self._control.take() if self._control else []

    def phase(self, name: str, done: int | None = None, of: int | None = None) -> None:
        """Say what is being done. Progress inside one phase is thinned to two events a second; the end is kept."""
        now = time.monotonic()
        is_new = name != self._phase
        if not is_new and done != of and now - self._last_progress < _PROGRESS_SECONDS:
            return
        self._last_progress = now
        if is_new:
            self.logger.info(name if of is None else f"{name}: {of}")
        self._phase = name
        self.event("phase", name=name, done=done, of=of)

    def say(self, text: str) -> None:
        """A plain line on the console."""
        self.logger.info(text)

    def warn(self, code: str, message: str, hint: str = "", key: str | None = None) -> None:
        """Something the person should know that does not stop the run."""
        self.logger.warning(f"{message} {hint}".strip())
        self.event("warn", code=code, message=message, hint=hint, key=key)

    def notices(self, notices: Iterable[Notice]) -> None:
        """Warn of each."""
        for notice in notices:
            self.warn(notice.code, notice.message, notice.hint, notice.key)

    def error(self, code: str, message: str, hint: str = "", key: str | None = None) -> None:
        """What ended the run."""
        self.logger.error(f"{message} {hint}".strip())
        self.event("error", code=code, message=message, hint=hint, key=key)

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print a table (rank 0 only). Cells are taken literally, whatever brackets a folder's name has."""
        if not self.is_main:
            return
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def step(self, **fields: Any) -> None:
        """One finished optimizer step: always an event, a console line every few seconds."""
        self.event("step", **fields)
        now = time.monotonic()
        if now - self._last_line < _CONSOLE_SECONDS and fields["step"] != fields["of"]:
            return
        self._last_line = now
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in fields["lr"].items())
        self.logger.info(
            f"step {fields['step']}/{fields['of']} epoch {fields['epoch']}/{fields['epochs']} "
            f"loss {fields['loss']:.4f} average {fields['avg_loss']:.4f} rate {rates} "
            f"{fields['speed']:.2f} it/s {fields['eta'] / 60:.0f} min left"
        )

    def close(self) -> None:
        """Close the event file."""
        if self._writer:
            self._writer.close()
            self._writer = None
