"""What a run will need before it is started: memory of one step, trained numbers, files; for `--plan_only`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sd_scripts.data.dataset import DatasetGroup
from sd_scripts.families.base import Family
from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.naming import Saves
from sd_scripts.trainer.accelerating import guess_device
from sd_scripts.trainer.endings import TerminatedError
from sd_scripts.trainer.fake_run import FakeRun, fake_run
from sd_scripts.training.plan import RunPlan
from sd_scripts.training.precision import resolve

# What CUDA's context, its libraries and blocks that cannot be used wholly take beside the tensors: seen between 0.5
# and 0.8 GiB, so this is an assumption, and it is not part of `peak`.
CUDA_EXTRA = 600 * 2**20
# A name, type, shape and place in a file's header.
_HEADER_ENTRY = 110
# More names tell nobody anything.
MOST_FILES = 1000


def planned_device() -> str:
    """ "cuda" unless this machine is told to compute elsewhere: a plan is mostly made for another machine's GPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    return "cuda" if guess_device().type in ("cuda", "cpu") else "cpu"


def plan_memory(
    config: TrainConfig, family: Family, method: Method, group: DatasetGroup, plan: RunPlan, device: str
) -> dict[str, Any]:
    """The parts of a plan that need the model's shapes, ready for JSON.

    Keys: `memory` (peak, weights, gradients, optimizer, activations in bytes, device, largest_bucket, batch_size,
    extra), `trained_parameters`, `files` (name, bytes), `memory_notes`; where the prediction fails all but `files` are
    None and `memory_problem` says why. Nothing is raised: a plan without memory is a plan.
    """
    with _quietly():
        try:
            run = fake_run(config, family, method, group, plan, device)
        except UserError as error:
            return _unknown(config, method, plan, str(error))
        except TerminatedError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever cannot be done without numbers: said, not hidden)
            reason = str(error).strip().splitlines()
            text = f"The memory could not be predicted: {type(error).__name__}: {reason[0] if reason else ''}".strip()
            return _unknown(config, method, plan, text)
    return {
        "memory": {
            "peak": run.peak.total,
            "weights": run.peak.weights,
            "gradients": run.peak.gradients,
            "optimizer": run.peak.optimizer,
            "activations": run.peak.activations,
            "device": run.device,
            "largest_bucket": [run.batch.width, run.batch.height],
            "batch_size": run.batch.pictures,
            "extra": CUDA_EXTRA if run.device == "cuda" else 0,
        },
        "trained_parameters": run.trained,
        "files": _files(config, method, plan, _file_bytes(config, method, run), run.state_bytes),
        "memory_notes": run.notes,
    }


def _unknown(config: TrainConfig, method: Method, plan: RunPlan, problem: str) -> dict[str, Any]:
    try:
        files = _files(config, method, plan, None, None)
    except RuntimeError:  # the form of the result follows from a model that could not be looked at
        files = []
    return {"memory": None, "trained_parameters": None, "files": files, "memory_problem": problem}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks that methods make when they attach, and without torch's on what no tensor comes of."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _file_bytes(config: TrainConfig, method: Method, run: FakeRun) -> int:
    """About the size of one save."""
    precision = resolve(config.training, config.saving, run.device)
    # A whole model is written as it was read for training; frozen parts are not written in their lower precision.
    kept = precision.trained if method.saves_whole_model else None
    return sum(_stored(value, precision.save or kept) + _HEADER_ENTRY for value in run.file_tensors.values())


def _stored(value: Tensor, dtype: torch.dtype | None) -> int:
    size = dtype.itemsize if dtype is not None and value.is_floating_point() else value.element_size()
    return value.numel() * size


def _files(
    config: TrainConfig, method: Method, plan: RunPlan, size: int | None, state: int | None
) -> list[dict[str, Any]]:
    """Everything that is written, in order, also what a later save removes again; at most MOST_FILES."""
    options = config.saving
    saves = Saves.of(options, plan, method.file_format, method.default_name)
    found: list[dict[str, Any]] = []

    def add(file: str, folder: str, with_state: bool) -> None:
        found.append({"name": file, "bytes": size})
        if with_state:
            found.append({"name": folder, "bytes": state})

    last = saves.at_end()
    for names in saves.moments(plan):
        ends = names == last
        if ends or len(found) < MOST_FILES:
            add(names.file.name, names.state.name, options.save_state or (ends and options.save_state_on_train_end))
    return found


def sentences(facts: dict[str, Any]) -> list[str]:
    """What `plan_memory` found, for people."""
    if "memory_problem" in facts:
        return [facts["memory_problem"]]
    memory, files = facts["memory"], facts["files"]
    width, height = memory["largest_bucket"]
    parts = ", ".join(f"{name} {_gib(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations"))
    lines = [
        f"{facts['trained_parameters']:,} parameters are trained",
        f"predicted peak memory of a step on {memory['device']}: {_gib(memory['peak'])} ({parts}), "
        f"for {memory['batch_size']} of {width}x{height}",
    ]
    if memory["extra"]:
        lines.append(f"beside it CUDA itself takes about {_gib(memory['extra'])} (assumed)")
    lines += facts["memory_notes"]
    total = sum(file["bytes"] or 0 for file in files)
    shown = ", ".join(f"{file['name']} ({_gib(file['bytes'])})" for file in files[:5])
    more = f" and {len(files) - 5} more, {_gib(total)} in all" if len(files) > 5 else ""
    return [*lines, f"to be written: {shown}{more}"]


def _gib(size: int | None) -> str:
    if size is None:
        return "size unknown"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.1f} MiB"
