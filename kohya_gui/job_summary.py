"""The view of a job that is over, kept in its folder: hundreds of old jobs need not be read line by line at each start.

It is only a copy. Where it does not fit the events and the exit note beside it, these are read again.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from kohya_gui import supervisor
from kohya_gui.job_log import FileMade, Sample
from kohya_gui.job_view import OVER, JobView
from kohya_gui.supervisor import read_json, write_json

FILE = "summary.json"
VERSION = 1


def _stamp(folder: Path) -> list[int]:
    """Length and time of change of what the summary was made from."""
    found = []
    for name in ("events.jsonl", supervisor.EXIT, supervisor.SPEC):
        try:
            facts = os.stat(folder / name)
            found += [facts.st_size, facts.st_mtime_ns]
        except FileNotFoundError:
            found += [-1, 0]
    return found


def write(folder: Path, view: JobView) -> None:
    """Keep the view. A disk that is full or read-only only makes the next start slower."""
    content = {name: value for name, value in dataclasses.asdict(view).items() if name != "folder"}
    try:
        write_json(folder / FILE, {"version": VERSION, "of": _stamp(folder), "view": content})
    except OSError:
        return


def read(folder: Path, spec: dict[str, Any]) -> JobView | None:
    """The view kept for this job; None if there is none or the folder has changed since."""
    stored = read_json(folder / FILE)
    if stored is None or stored.get("version") != VERSION or stored.get("of") != _stamp(folder):
        return None
    content = stored.get("view")
    if not isinstance(content, dict) or content.get("id") != spec.get("id") or content.get("state") not in OVER:
        return None
    try:
        files = [FileMade(**item) for item in content.pop("files")]
        samples = [Sample(**item) for item in content.pop("samples")]
        return JobView(**content, folder=folder, files=files, samples=samples)
    except (TypeError, KeyError):
        # written by another version of this page
        return None
