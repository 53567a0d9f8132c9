"""What a job's values become when it is resumed or run once more."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kohya_gui.job_log import JobLog
from kohya_gui.job_view import PROJECT, JobView, newest_state
from sd_scripts.schema.errors import UserError

_RESUMABLE = ("stopped", "failed", "interrupted")
_MOST_NAMES = 10_000


def resumed(view: JobView, spec: Mapping[str, Any], log: JobLog) -> tuple[dict[str, Any], int]:
    """The values of a job that goes on where this one ended, and the step it goes on from.

    The state is looked for now, not when the job ended: a later run may have removed old ones. Without one of its own
    the job goes on from where it had been resumed itself, or starts over.

    Raises:
        UserError: if the job still runs or waits, or is complete.
    """
    if view.state not in _RESUMABLE:
        hint = "Run it again instead." if view.state == "done" else "Stop it first."
        raise UserError(f"{view.name!r} cannot be resumed, it is {view.state}.", hint=hint)
    values = dict(spec.get("values") or {})
    if view.tool:
        # scripts leave out what is done already, so going on is running again
        return values, 0
    newest = newest_state(log)
    if newest is None:
        return values, int(spec.get("initial_step") or 0)
    # what was listed and encoded before that training belongs to its state: it is not made once more
    ready = {key: False for key in ("create_caption", "create_buckets") if values.get("train_dir")}
    return {**values, **ready, "resume": newest.path}, newest.step


def target(values: Mapping[str, Any]) -> tuple[Path, str]:
    """Folder and name under which a job writes."""
    return PROJECT / str(values.get("output_dir") or "."), str(values.get("output_name") or "last")


def refuse_same_files(values: Mapping[str, Any], taken: Iterable[Mapping[str, Any]]) -> None:
    """Keep two jobs in the queue from writing over each other's files; a name left open is not looked at.

    Raises:
        UserError: if a job of `taken` writes under the same name into the same folder.
    """
    name = values.get("output_name")
    if name and any(target(values) == target(other) for other in taken):
        text = f"A job that waits or runs writes {name} into the same folder."
        raise UserError(text, "output_name", "Choose another name, or both would write the same files.")


def beside(values: Mapping[str, Any], taken: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The values with an output name under which nothing lies and no job of `taken` writes: cat, cat-2, cat-3 ..."""
    busy = {target(other) for other in taken}
    folder, name = target(values)
    try:
        present = [entry.name for entry in folder.iterdir()]
    except OSError:
        present = []
    for number in range(1, _MOST_NAMES):
        new = name if number == 1 else f"{name}-{number}"
        # name.safetensors, name-000004.safetensors, name-step00000100-state: but name-2.safetensors is another's
        own = (f"{new}.", f"{new}-step", f"{new}-state", f"{new}-0")
        if (folder, new) not in busy and not any(entry.startswith(own) for entry in present):
            return dict(values) if number == 1 else {**values, "output_name": new}
    raise UserError(f"{folder} holds too many runs called {name}.", "output_name", "Choose another name.")
