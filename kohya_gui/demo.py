"""The demo project: made once by the trainers' own tool, as a process of its own, then filled in and started."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kohya_gui import command
from kohya_gui.jobs import JobStore
from sd_scripts.schema.errors import UserError

COMMAND = "train_network"
NAME = "demo.json"


def prepare(project: Path, folder: str = "demo") -> dict[str, Any]:
    """Make the demo project if it is not there, and give the form's values for it.

    Args:
        project: the project's folder; the demo lies in it.
        folder: the demo's folder in it.
    Raises:
        UserError: if it cannot be made, with the end of what the tool said.
    """
    target = project / folder
    settings = target / "demo.json"
    if not settings.is_file():
        print("Making the demo project: a small model and ten pictures. This takes some seconds.", flush=True)
        made = subprocess.run(
            [sys.executable, "-m", "sd_scripts.tools.make_demo", "--out", str(target)],
            cwd=project,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if made.returncode != 0 or not settings.is_file():
            said = (made.stderr or made.stdout).strip().splitlines()[-1:]
            raise UserError("The demo project could not be made.", hint=said[0] if said else "")
    return read(settings)


def read(settings: Path) -> dict[str, Any]:
    """The values of the demo's saved form, with its paths made absolute.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        values = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{settings} cannot be read: {error}.", hint="Remove the folder; it is made again.") from error
    known = {key: value for key, value in values.items() if key not in ("format", "version", "tab", "description")}
    for key in ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "logging_dir", "sample_prompts"):
        text = known.get(key)
        if isinstance(text, str) and text and not Path(text).is_absolute():
            known[key] = str((settings.parent / text).resolve())
    return known


def start(jobs: JobStore, values: Mapping[str, Any]) -> str | None:
    """Start the demo's training, unless one runs or waits already; gives the job's id."""
    busy = next((view.id for view in jobs.list() if view.running or view.state == "waiting"), None)
    if busy:
        return busy
    plan = command.build(COMMAND, values)
    job = jobs.create(plan, values, str(values.get("output_name") or "demo"))
    jobs.tick()
    return job.id
