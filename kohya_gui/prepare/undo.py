"""Taking back what a job's scripts wrote: files that were replaced come back, files that were new go."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui.job_folder import KEPT, UNDO
from kohya_gui.paths import Roots
from kohya_gui.supervisor import read_json, write_json
from sd_scripts.schema.errors import UserError

UNDONE = "undone.json"


@dataclass
class Written:
    """One file that a job wrote: the copy of what stood there first (None: nothing), and its length and time of
    change as the job left it (None: the job was killed just then)."""

    kept: str | None
    size: int | None = None
    time: int | None = None


def written(folder: Path) -> dict[str, Written]:
    """The files a job wrote, in the order in which it did."""
    found: dict[str, Written] = {}
    try:
        lines = (folder / UNDO).read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        entry = _entry(line)
        path = str(entry.get("path", ""))
        if path and "kept" in entry:
            # written twice: what stood there before the first time is what comes back
            found.setdefault(path, Written(entry["kept"]))
        if path in found and isinstance(entry.get("size"), int):
            found[path].size, found[path].time = entry["size"], entry.get("time")
    return found


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        # a killed job left half a line
        return {}
    return entry if isinstance(entry, dict) else {}


def can_undo(folder: Path) -> bool:
    """Whether a job wrote files and was not taken back yet."""
    return (folder / UNDO).is_file() and not (folder / UNDONE).exists()


def undo_job(folder: Path, roots: Roots) -> dict[str, int]:
    """Put every file back that a job wrote; one that was changed since stays.

    Returns:
        how many were "restored", "removed" and left as "changed".

    Raises:
        UserError: the job was taken back already, wrote nothing, or a file lies where the page may not write.
    """
    if read_json(folder / UNDONE) is not None:
        raise UserError("This was undone already.")
    files = written(folder)
    if not files:
        raise UserError("No file was written, so there is nothing to undo.")
    for path in files:
        roots.inside(path)
    counts = {"restored": 0, "removed": 0, "changed": 0}
    for path, entry in reversed(files.items()):
        try:
            counts[_put_back(Path(path), entry, folder)] += 1
        except OSError as error:
            raise UserError(f"{path} cannot be put back: {error.strerror or error}.", hint="Try again.") from error
    write_json(folder / UNDONE, {"time": time.time(), **counts})
    return counts


def _put_back(path: Path, entry: Written, folder: Path) -> str:
    kept = folder / KEPT / Path(entry.kept).name if entry.kept else None
    if not _as_left(path, entry):
        # an undo that was interrupted has put some back already
        return "restored" if kept is not None and _same(path, kept) else "changed"
    if kept is None:
        path.unlink(missing_ok=True)
        return "removed"
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.copy2(kept, aside)
    os.replace(aside, path)
    return "restored"


def _as_left(path: Path, entry: Written) -> bool:
    try:
        facts = path.stat()
    except FileNotFoundError:
        # a new file that is gone is as it was before; a replaced one has been taken away by somebody
        return entry.kept is None
    return entry.size is None or (facts.st_size, facts.st_mtime_ns) == (entry.size, entry.time)


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and _digest(path) == _digest(other)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
