"""The folder of a job: its name and the files that are there before it starts."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kohya_gui.command import Plan
from sd_scripts.schema.errors import UserError

EVENTS, CONTROL, CONFIG = "events.jsonl", "control", "config.toml"
# what a data script keeps so that its files can be put back
UNDO, KEPT = "undo.jsonl", "kept"


def folder_name(name: str, job_id: str, moment: float) -> str:
    """`<date>-<name>-<id>`, with a name that every file system takes."""
    plain = re.sub(r"[^\w-]+", "_", name, flags=re.UNICODE).strip("_-")[:40] or "job"
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(moment))}-{plain}-{job_id}"


def write_command(folder: Path, bound: Plan) -> None:
    """Make the folder with what the command reads.

    Raises:
        OSError: if the disk does not take it.
    """
    folder.mkdir()
    (folder / CONTROL).mkdir()
    for file, text in {CONFIG: bound.toml_text, **bound.files}.items():
        (folder / file).write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def told(what: str) -> Iterator[None]:
    """A disk that is full or forbidden is told in a sentence.

    Raises:
        UserError: for any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}.", hint="Look at the disk.") from error
