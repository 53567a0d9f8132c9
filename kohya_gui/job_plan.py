"""What a job runs, whichever kind it is: a training, a data script, or Finetune's preparation alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kohya_gui import command, job_again, tools
from kohya_gui.command import Plan
from kohya_gui.job_queue import NONE, gpu_set
from sd_scripts.schema.errors import UserError

FINETUNE = "fine_tune"
METADATA = f"{tools.PREFIX}finetune_metadata"
"""The command of a job that only makes the lists of a Finetune form, without training."""


def build(name: str, values: Mapping[str, Any], *, job_dir: Path | None = None, allow_plugins: bool = False) -> Plan:
    """The plan of a command: a trainer's, a tool's, or Finetune's preparation.

    Raises:
        UserError: if the values make no command.
    """
    if name == METADATA:
        return _metadata(values, job_dir, allow_plugins)
    if tools.is_tool(name):
        return tools.build(name, values, job_dir=job_dir)
    return command.build(name, values, job_dir=job_dir, allow_plugins=allow_plugins)


def _metadata(values: Mapping[str, Any], job_dir: Path | None, allow_plugins: bool) -> Plan:
    """Only the programs that a Finetune training would run first."""
    whole = command.build(FINETUNE, values, job_dir=job_dir, allow_plugins=allow_plugins)
    if not whole.before:
        hint = "Choose the folder of the lists and the pictures, and which lists to make."
        raise UserError("Nothing is to be prepared.", "train_dir", hint)
    *before, last = whole.before
    return Plan(METADATA, last.argv, {}, "", whole.env, whole.notes, before=before)


def public_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that may be written into the job's folder."""
    if tools.is_tool(name) and name != METADATA:
        return dict(values)
    return command.without_secrets(FINETUNE if name == METADATA else name, values)


def programs(plan: Plan, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The programs of a plan as a job's folder holds them: those that run first, and the last one.

    Data scripts are told where the job's folder is, so that they report into it.
    """
    before = [{"name": step.name, "argv": _heard(step.argv, folder)} for step in plan.before]
    return before, _heard(plan.argv, folder) if tools.is_tool(plan.command) else list(plan.argv)


def _heard(argv: list[str], folder: Path) -> list[str]:
    if "--job_dir" in argv:
        return list(argv)
    return [*argv[:2], "--job_dir", str(folder), *argv[2:]]


def spec(plan: Plan, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a job's spec.json says of its command: everything that its supervisor and a later page need."""
    before, last = programs(plan, folder)
    return {
        "version": 1,
        "command": plan.command,
        "before": before,
        "argv": last,
        "cwd": str(command.PROJECT),
        "env": plan.env,
        "secrets": sorted(plan.secrets),
        "values": public_values(plan.command, values),
        "gpu_set": set_of(plan.command, values),
    }


def set_of(name: str, values: Mapping[str, Any]) -> str:
    """The GPUs a job needs, as jobs compare them; a tool that works on files alone needs none."""
    if name == METADATA:
        return gpu_set(None) if values.get("create_buckets", True) else NONE
    if tools.is_tool(name):
        return gpu_set(None) if tools.wants_gpu(tools.find_tool(name), values) else NONE
    return gpu_set(values.get("gpu_ids"))


def refuse_clash(name: str, values: Mapping[str, Any], others: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Keep two jobs that wait or run from writing the same files.

    Args:
        name: the new job's command.
        values: its values.
        others: command and values of every job that is not over.

    Raises:
        UserError: if one of them writes them.
    """
    present = list(others)
    if not tools.is_tool(name):
        taken = [given for other, given in present if not tools.is_tool(other)]
        job_again.refuse_same_files(values, taken)
        return
    key = place_key(name)
    place = values.get(key)
    if place and any(tools.is_tool(other) and given.get(place_key(other)) == place for other, given in present):
        raise UserError(
            f"A job that waits or runs works in {place}.", key, "Wait until it is over, or end it in the Jobs tab."
        )


def place_key(name: str) -> str:
    """The option of a tool that says where it works."""
    return "train_dir" if name == METADATA else tools.find_tool(name).folder
