"""What an optimizer keeps for each weight, and what its step takes for a moment, without running it on real weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sd_scripts.methods.base import Method
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.trainer.memory_tracker import StepTracker
from sd_scripts.training.optimizer_table import OptimizerEntry, find
from sd_scripts.training.optimizers import create, parse_arguments, wanted_type

# bitsandbytes keeps one byte a number for tensors of at least this many, with one float32 for every block of 256.
_LEAST_FOR_8_BITS, _BLOCK = 4096, 256
_ONE_MOMENT = ("Lion", "SGD", "RMSprop", "Adagrad", "LARS")


@dataclass(frozen=True)
class OptimizerNeed:
    """Bytes of the whole state, and bytes that a step needs beside state, weights and gradients; a remark or ""."""

    state: int
    step: int
    note: str = ""


def optimizer_need(
    method: Method,
    groups: Sequence[ParameterGroup],
    options: OptimizerOptions,
    *,
    several_at_once: bool,
    allow_plugins: bool = False,
) -> OptimizerNeed:
    """What the chosen optimizer needs for these groups of fake parameters; call it under a fake tensor mode.

    Args:
        method: changes the fresh optimizer as in a run.
        groups: what is trained.
        options: the optimizer's.
        several_at_once: torch's own optimizers step all weights together, as they do on CUDA.
        allow_plugins: an optimizer of a foreign package may be imported.

    Raises:
        UserError: there is no such optimizer, or it refuses its arguments.
    """
    entry = find(wanted_type(options), allow_plugins)
    parameters = [parameter for group in groups for parameter in group.params]
    largest = max((parameter.numel() for parameter in parameters), default=0)
    if entry.module.startswith("bitsandbytes"):
        return OptimizerNeed(sum(_bitsandbytes(entry, options, parameter) for parameter in parameters), 0)
    created = create(groups, options, allow_plugins=allow_plugins)
    method.prepare_optimizer(created)
    try:
        return _measured(created.optimizer, several_at_once)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (code of other packages, which may do anything to a tensor without values)
        note = (
            f"{entry.name} could not be tried without weights ({type(error).__name__}); "
            "two float32 numbers a weight are assumed for it."
        )
        return OptimizerNeed(8 * sum(parameter.numel() for parameter in parameters), 4 * largest, note)


def _bitsandbytes(entry: OptimizerEntry, options: OptimizerOptions, parameter: nn.Parameter) -> int:
    """Bytes of the state of one parameter: its kernels take no fake tensors, but its sizes are documented."""
    count = parameter.numel()
    moments = 1 if any(name in entry.cls for name in _ONE_MOMENT) else 2
    arguments = parse_arguments(options.optimizer_args, "optimizer_args")
    least = int(arguments.get("min_8bit_size", _LEAST_FOR_8_BITS))
    if "8bit" not in entry.cls or count < least:
        return moments * 4 * count
    return moments * (count + 4 * -(-count // _BLOCK))


def _measured(optimizer: Optimizer, several_at_once: bool) -> OptimizerNeed:
    """Step once for every kind of parameter (group, shape, type), and count it as often as there are such."""
    together = several_at_once and type(optimizer).__module__.startswith("torch.optim")
    groups, state, steps = optimizer.param_groups, 0, [0]
    for group in groups:
        kinds: dict[tuple[Any, ...], list[Tensor]] = {}
        for parameter in group["params"]:
            kinds.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
        for alike in kinds.values():
            settings = {**group, "params": alike[:1]}
            if together and settings.get("foreach", 0) is None and not settings.get("fused"):
                settings["foreach"] = True
            kept, extra = _one_step(optimizer, settings)
            state += kept * len(alike)
            steps.append(extra * (len(alike) if settings.get("foreach") else 1))
    optimizer.param_groups = groups
    return OptimizerNeed(state, sum(steps) if together else max(steps))


def _one_step(optimizer: Optimizer, group: dict[str, Any]) -> tuple[int, int]:
    """(bytes kept, bytes needed beside them) of a first step with one parameter."""
    (parameter,) = group["params"]
    with StepTracker() as tracker:
        parameter.grad = torch.empty_like(parameter)
        tracker.gradients([parameter.grad])
        tracker.restart()
        optimizer.param_groups = [group]
        optimizer.step()
        parameter.grad = None
        kept = _bytes(optimizer.state.get(parameter, {}))
        # A weight that the step replaced is counted by the tracker from its first use on.
        extra = max(0, tracker.peak.activations - kept)
    optimizer.state.pop(parameter, None)
    return kept, extra


def _bytes(state: dict[str, Any]) -> int:
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
