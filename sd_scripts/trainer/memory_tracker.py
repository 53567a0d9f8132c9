"""Counting what fake tensors would take: which of it is weights, gradients, optimizer state or activations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _ModState
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_TOTAL = "Total"
_READS_A_NUMBER = torch.ops.aten._local_scalar_dense.default
_ASKS_FOR_DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class Split:
    """Bytes at one moment. `activations` is everything that is none of the others, temporaries too."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


class StepTracker(MemTracker):
    """torch's tracker of tensor memory, for one training step on fake tensors.

    Two things differ from torch's own. Its figures for every module are left out: they take most of the time, and a
    text encoder that is called several times in a step ends them. And a number that the step reads out of a tensor,
    which a fake tensor does not have, is 1 or True: losses count as finite, norms as harmless.

    Kinds follow from what is said with `weights`, `gradients` and `optimizer`; all other memory is activations.
    """

    def __enter__(self) -> StepTracker:
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _READS_A_NUMBER:
            return _one(args[0])
        result = func(*args, **(kwargs or {}))
        if func is _ASKS_FOR_DEVICE:  # two of three calls
            return result
        if isinstance(result, Tensor):
            self._track(_MemRefType.ACT, result)
        else:
            tree_map_only(Tensor, partial(self._track, _MemRefType.ACT), result)
        self._update_peak_stats(_ModState.PEAK_FW)
        return result

    def _mark(self, kind: Any, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._update_and_maybe_create_winfos(tensor, kind)

    def weights(self, modules: Iterable[nn.Module]) -> None:
        """The parameters and buffers of these modules are weights."""
        for module in modules:
            self._mark(_MemRefType.PARAM, module.parameters())
            self._mark(_MemRefType.BUFFER, module.buffers())

    def gradients(self, tensors: Iterable[Tensor]) -> None:
        """These tensors are gradients."""
        self._mark(_MemRefType.GRAD, tensors)

    def optimizer(self, tensors: Iterable[Tensor]) -> None:
        """These tensors are state of the optimizer."""
        self._mark(_MemRefType.OPT, tensors)

    def elsewhere(self, tensor: Tensor) -> Tensor:
        """The tensor lies in other memory than that which is counted."""
        storage = tensor.untyped_storage()
        found, _ = self._WINFO.get(storage, (None, None))
        if found is not None:
            usage = self._curr_mem_snap[found.device]
            usage[found.reftype] -= found.mem_consumed
            usage[_TOTAL] -= found.mem_consumed
            found.mem_consumed = 0
        return tensor

    def restart(self) -> None:
        """Forget the peak so far."""
        self._peak_mem.clear()
        self._peak_mem_snap.clear()
        self._update_peak_stats(_ModState.PEAK_FW)

    @property
    def now(self) -> Split:
        """What is there at the moment."""
        return _split(self.get_tracker_snapshot("current"))

    @property
    def peak(self) -> Split:
        """What was there when it was most, since the last restart."""
        return _split(self.get_tracker_snapshot("peak"))


def _one(value: Tensor) -> bool | int | float:
    if value.dtype == torch.bool:
        return True
    return 1.0 if value.is_floating_point() else 1


def _split(usage: dict[torch.device, dict[str, int]]) -> Split:
    def of(*kinds: Any) -> int:
        return sum(place[kind] for place in usage.values() for kind in kinds)

    kinds = _MemRefType
    return Split(
        weights=of(kinds.PARAM, kinds.BUFFER),
        gradients=of(kinds.GRAD),
        optimizer=of(kinds.OPT),
        activations=of(kinds.ACT, kinds.TEMP, kinds.OTH),
    )


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """All tensors in an optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def offloaded(tracker: StepTracker) -> AbstractContextManager[Any]:
    """Inside, what is kept for the backward pass lies elsewhere and comes back when it is needed."""

    def pack(tensor: Tensor) -> Tensor:
        return tracker.elsewhere(tensor.clone())

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.clone()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def norms_as_on_cuda(modules: Iterable[nn.Module]) -> None:
    """From now on the norms of these modules take and give float32 under autocast, as on CUDA and not on a CPU.

    A norm whose forward pass was replaced before (by a network that trains it) stays as it is.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, (nn.LayerNorm, nn.GroupNorm)) and "forward" not in part.__dict__:
                part.forward = partial(_wide_norm, part)


def _wide_norm(norm: nn.LayerNorm | nn.GroupNorm, value: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return type(norm).forward(norm, value)
    weight = None if norm.weight is None else norm.weight.float()
    bias = None if norm.bias is None else norm.bias.float()
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(value.float(), norm.normalized_shape, weight, bias, norm.eps)
    return F.group_norm(value.float(), norm.num_groups, weight, bias, norm.eps)
