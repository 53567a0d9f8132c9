"""Weights and optimizer state spread over several processes: FSDP and DeepSpeed's ZeRO, reached through accelerate.

What is spread is `Predictor`, that is, what is trained; a frozen base model stays whole in every process. It is spread
as one unit: the families call the U-Net and the text encoders directly, past wrappers around their parts.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as whole
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.training.optimizers import CreatedOptimizer

_PREFIX = "trained."  # of the names in Predictor, whose only submodule is what is trained
# These look at whole tensors, or at all of them together; a process that holds a share cannot.
_NEEDS_WHOLE = ("adafactor", "one_rate", "schedule_free")


def fsdp_asked() -> bool:
    """Whether the launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """FSDP as the launcher's flags or file ask for it, or None; what cannot be otherwise here is set.

    Every process reads the model, so nothing is sent around at the start; the optimizer is made before the weights are
    spread, so they keep their own parameters.
    """
    if not fsdp_asked():
        return None
    second = os.environ.get("FSDP_VERSION", "1") == "2"
    # Numbers are lowered by autocast inside, as in any other run; FSDP's own way would round the batch's sizes too.
    keep: Any = MixedPrecisionPolicy(cast_forward_inputs=False)
    if not second:
        keep = MixedPrecision(cast_forward_inputs=False, cast_root_forward_inputs=False)
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=keep,
        auto_wrap_policy="NO_WRAP",
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
        use_orig_params=None if second else True,
        sync_module_states=None if second else False,
    )


def is_fsdp(accelerator: Accelerator) -> bool:
    """Whether weights and optimizer are spread by FSDP, of either version."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed holds the optimizer."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's stage: from 1 on the optimizer is spread, from 2 on gradients, with 3 the weights; else 0."""
    return int(accelerator.state.deepspeed_plugin.zero_stage) if is_deepspeed(accelerator) else 0


def check_spread(
    accelerator: Accelerator, config: TrainConfig, method: Method, created: CreatedOptimizer, *, validates: bool
) -> None:
    """Raise UserError where this run cannot be spread as asked; does nothing for a run that is not."""
    if fsdp_asked() and not is_fsdp(accelerator):
        raise UserError(
            "FSDP was asked for, but accelerate uses it with several GPUs only.",
            "extra_accelerate_launch_args",
            "Start at least two processes on GPUs, or leave --use_fsdp out.",
        )
    if not is_fsdp(accelerator) and not is_deepspeed(accelerator):
        return
    name = "FSDP" if is_fsdp(accelerator) else "DeepSpeed"
    if method.adapter == "textual_inversion":
        message = f"{name} is not for the embeddings of a few words: every process has room for them."
        raise UserError(message, None, "Leave it out.")
    if created.rules in _NEEDS_WHOLE:
        raise UserError(
            f"{created.name} looks at whole weights, which {name} spreads.",
            "optimizer_type",
            "Choose AdamW, Lion or SGDNesterov.",
        )
    if is_fsdp(accelerator) and created.name.startswith("bitsandbytes"):
        raise UserError(
            f"{created.name} keeps its state in blocks that FSDP cannot put together again.",
            "optimizer_type",
            "Choose AdamW.",
        )
    if validates and zero_stage(accelerator) == 3:
        raise UserError(
            "Validation does not go with ZeRO stage 3: all processes would have to measure as many pictures.",
            "validation_split",
            "Leave it out, or use stage 2.",
        )
    network = getattr(config, "network", None)
    if network is not None and network.scale_weight_norms:
        raise UserError(f"scale_weight_norms looks at whole weights, which {name} spreads.", "scale_weight_norms")
    if network is not None and str(network.network_module).endswith("networks.dylora"):
        raise UserError(
            f"DyLoRA trains other ranks in every step, and {name} would move all of them.",
            "network_module",
            "Leave it out, or train with networks.lora.",
        )
    full = getattr(config, "full", None)
    if full is not None and full.stop_text_encoder_training and full.stop_text_encoder_training > 0:
        raise UserError(
            f"stop_text_encoder_training cannot change in the middle of a run what {name} has spread.",
            "stop_text_encoder_training",
            "Give -1 to leave the text encoder out from the start.",
        )
    if full is not None and full.stochastic_rounding:
        raise UserError(f"stochastic_rounding does not go with {name}.", "stochastic_rounding")


@contextmanager
def whole_weights(accelerator: Accelerator, predictor: nn.Module) -> Iterator[None]:
    """Inside, every process has the trained weights whole, to read them. All processes enter and leave together.

    With FSDP the modules may also be called, though not `predictor` itself.
    """
    if is_fsdp(accelerator):
        with _put_together(predictor):
            yield
    elif zero_stage(accelerator) == 3:
        zero = importlib.import_module("deepspeed").zero
        with zero.GatheredParameters(list(predictor.parameters()), modifier_rank=None):
            yield
    else:
        yield


@contextmanager
def _put_together(predictor: nn.Module) -> Iterator[None]:
    """Inside, whole copies stand in the places of the spread parameters.

    FSDP's own whole parameters cannot be lent out: version 2 spreads them as soon as a state_dict is asked for, version
    1 frees their memory while somebody may still hold it.
    """
    if isinstance(predictor, FullyShardedDataParallel):
        inner = predictor.module
        with FullyShardedDataParallel.summon_full_params(predictor, writeback=False):
            copies = [value.detach().clone() for _, _, value in _places(inner)]
    else:
        inner = predictor
        copies = [value.full_tensor() if isinstance(value, DTensor) else value for _, _, value in _places(inner)]
    own = _places(inner)
    try:
        for (part, name, value), copy in zip(own, copies, strict=True):
            part.register_parameter(name, nn.Parameter(copy.detach(), value.requires_grad))
        yield
    finally:
        for part, name, value in own:
            part.register_parameter(name, value)


def _places(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter with the module that holds it and its name there, in a fixed order."""
    return [
        (part, name, value)
        for part in module.modules()
        for name, value in part.named_parameters(recurse=False, remove_duplicate=False)
    ]


@contextmanager
def callable_weights(accelerator: Accelerator, predictor: nn.Module) -> Iterator[None]:
    """Inside, the trained modules may be called past `predictor`, for samples and validation.

    ZeRO's own hooks gather what each module needs, and would be in the way of weights that are whole already; then all
    processes must call the same modules in the same order.
    """
    if zero_stage(accelerator) == 3:
        yield
    else:
        with whole_weights(accelerator, predictor):
            yield


def in_step(accelerator: Accelerator) -> bool:
    """Whether no process can call the modules without the others."""
    return zero_stage(accelerator) == 3


def clip(accelerator: Accelerator, predictor: nn.Module, parameters: Iterable[nn.Parameter], limit: float) -> Any:
    """Clip the gradients to `limit` (infinite: only measure); their norm before, over all processes' shares.

    None where DeepSpeed does not tell.
    """
    if isinstance(predictor, FullyShardedDataParallel):
        accelerator.unscale_gradients()
        # An infinite limit would multiply by inf / norm before it is cut to 1, which is fine for all norms but 0.
        return predictor.clip_grad_norm_(limit if math.isfinite(limit) else torch.finfo(torch.float32).max)
    norm = accelerator.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _weights(accelerator: Accelerator, predictor: nn.Module) -> dict[str, Tensor]:
    """The trained module's whole state_dict in the first process, nothing in the others; called in all."""
    with whole_weights(accelerator, predictor):
        if not accelerator.is_main_process:
            return {}
        found = accelerator.unwrap_model(predictor).state_dict()
        return {name.removeprefix(_PREFIX): value.detach().cpu().clone() for name, value in found.items()}


class SpreadState:
    """Weights and optimizer state of FSDP for training states: put together for writing, spread again when read.

    The result is what one process would have written, so a state can be read however many processes there are.
    """

    def __init__(self, accelerator: Accelerator, predictor: nn.Module, created: CreatedOptimizer) -> None:
        self._accelerator, self._predictor, self._created = accelerator, predictor, created

    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in the trained module; called in all processes, filled in the first."""
        return _weights(self._accelerator, self._predictor)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take the weights over; called in all processes with the same."""
        named = {_PREFIX + name: value for name, value in weights.items()}
        whole.set_model_state_dict(self._predictor, named, options=_READING)

    def optimizer(self) -> dict[str, Any]:
        """The optimizer's state_dict as one process has it; called in all processes, filled in the first."""
        # On a CPU there is nothing to move away, and FSDP would take that for a copy of what it then overwrites.
        options = whole.StateDictOptions(full_state_dict=True, cpu_offload=self._accelerator.device.type != "cpu")
        found = whole.get_optimizer_state_dict(self._predictor, self._created.optimizer, options=options)
        values = found.get("state", {})
        state = {number: values[name] for number, name in enumerate(self._names()) if name in values}
        return {"state": state, "param_groups": self._created.optimizer.state_dict()["param_groups"]}

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take an optimizer's state over; called in all processes with the same. Raises KeyError, ValueError."""
        names = dict(enumerate(self._names()))
        groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
        named = {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
        whole.set_optimizer_state_dict(self._predictor, self._created.optimizer, named, options=_READING)

    def _names(self) -> list[str]:
        """The names of the optimizer's parameters, in its order."""
        wrapped = isinstance(self._predictor, FullyShardedDataParallel)
        inner = self._predictor.module if wrapped else self._predictor
        known = {id(parameter): name for name, parameter in inner.named_parameters(remove_duplicate=False)}
        groups = self._created.optimizer.param_groups
        return [known[id(parameter)] for group in groups for parameter in group["params"]]


_READING = whole.StateDictOptions(full_state_dict=True)


class DeepSpeedShards:
    """The shares of weights and optimizer that DeepSpeed's processes write into a training state, each its own.

    DeepSpeed reads them with pickle, which runs what is in them: a state of somebody else is to be trusted first.
    """

    def __init__(self, accelerator: Accelerator, predictor: nn.Module) -> None:
        self._accelerator, self._predictor = accelerator, predictor

    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in the trained module; called in all processes, filled in the first."""
        return _weights(self._accelerator, self._predictor)

    def write(self, folder: Path) -> None:
        """Write this process's share; called in all processes, which must see the same folder."""
        self._accelerator.save_state(str(folder), safe_serialization=False)

    def read(self, folder: Path) -> None:
        """Take this process's share over; called in all processes."""
        self._accelerator.load_state(str(folder))
