"""The accelerate object of a run: precision, processes, trackers, each decided from the options alone."""

from __future__ import annotations

import importlib.util
import os
import random
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.logging import LoggingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.trainer.spread import fsdp_plugin
from sd_scripts.trainer.trackers import log_folder, wanted_trackers


def ddp_settings(training: TrainingOptions, *, may_skip_modules: bool) -> DistributedDataParallelKwargs:
    """How gradients are exchanged. Looking for unused parameters costs time: only where modules may be left out."""
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=training.ddp_gradient_as_bucket_view,
        static_graph=training.ddp_static_graph,
        find_unused_parameters=may_skip_modules and not training.ddp_static_graph,
    )


def deepspeed_plugin(
    training: TrainingOptions, batch_size: int, mixed_precision: str, max_grad_norm: float = 0.0
) -> DeepSpeedPlugin | None:
    """DeepSpeed as the trainer's options or the launcher's ask for it, or None.

    Raises UserError where the package is missing.
    """
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes")
    if not training.deepspeed and not launched:
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "deepspeed needs the package deepspeed.", "deepspeed", "Install it on Linux: pip install deepspeed"
        )
    if training.deepspeed:
        plugin = DeepSpeedPlugin(
            zero_stage=training.zero_stage,
            offload_optimizer_device=training.offload_optimizer_device,
            offload_optimizer_nvme_path=training.offload_optimizer_nvme_path,
            offload_param_device=training.offload_param_device,
            offload_param_nvme_path=training.offload_param_nvme_path,
            zero3_init_flag=training.zero3_init_flag,
            zero3_save_16bit_model=training.zero3_save_16bit_model,
        )
    else:
        plugin = DeepSpeedPlugin(zero3_init_flag=False)  # the launcher's flags or its file say the rest
    settings = plugin.deepspeed_config
    # What the trainer's own options decide. No loader goes through accelerate, from which it would learn the batch
    # size, and DeepSpeed clips gradients by itself.
    plugin.gradient_accumulation_steps = training.gradient_accumulation_steps
    settings["gradient_accumulation_steps"] = training.gradient_accumulation_steps
    settings["train_micro_batch_size_per_gpu"] = batch_size
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings["train_batch_size"] = batch_size * training.gradient_accumulation_steps * processes
    plugin.gradient_clipping = max_grad_norm
    settings["gradient_clipping"] = max_grad_norm
    if mixed_precision == "fp16":
        half = settings.setdefault("fp16", {})
        half["enabled"] = True
        half["initial_scale_power"] = 0
        if training.fp16_master_weights_and_gradients or training.full_fp16:
            half["fp16_master_weights_and_grads"] = True
    return plugin


def make_accelerator(
    training: TrainingOptions,
    logging: LoggingOptions,
    mixed_precision: str,
    batch_size: int = 1,
    *,
    may_leave_out: bool = False,
    max_grad_norm: float = 0.0,
) -> Accelerator:
    """Make it. Raises UserError for a missing tracker package or DeepSpeed.

    Gradient accumulation is counted by the loop; accelerate only divides the loss by it.
    """
    trackers = wanted_trackers(logging)
    folder = log_folder(logging)
    handlers: list[Any] = [ddp_settings(training, may_skip_modules=may_leave_out)]
    if training.ddp_timeout:
        handlers.append(_patience(training))
    return Accelerator(
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        mixed_precision=mixed_precision,
        log_with=trackers or None,
        project_dir=str(folder) if folder else None,
        kwargs_handlers=handlers,
        deepspeed_plugin=deepspeed_plugin(training, batch_size, mixed_precision, max_grad_norm),
        fsdp_plugin=fsdp_plugin(),
        step_scheduler_with_optimizer=False,
    )


def _patience(training: TrainingOptions) -> InitProcessGroupKwargs:
    """How long processes wait for each other."""
    if not training.ddp_timeout:
        return InitProcessGroupKwargs()
    return InitProcessGroupKwargs(timeout=timedelta(minutes=training.ddp_timeout))


def common_seed(training: TrainingOptions, resumed: int | None = None) -> int:
    """The run's seed: the given one, else that of the state it goes on from, else a fresh one.

    It is the same in all processes. Each orders the batches by it and takes its share: with seeds of their own, shares
    would overlap.
    """
    known = resumed if training.seed is None else training.seed
    if known is not None:
        return known
    drawn = [random.SystemRandom().randrange(2**32)]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        PartialState(on_cpu, **_patience(training).to_kwargs())  # joins the processes, as the accelerator would later
        broadcast_object_list(drawn)
    return int(drawn[0])


def guess_device() -> torch.device:
    """The device that accelerate will choose, before it is made: its precision depends on it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
