"""Everything one run is made of, put together by `setup` and used by the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn

from sd_scripts.data.loader import BatchLoader
from sd_scripts.methods.base import Method
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.trainer.samples import SampleMaker
from sd_scripts.trainer.saving import Saver
from sd_scripts.trainer.step import StepMaths
from sd_scripts.trainer.validation import Validation
from sd_scripts.training.fused import FusedBackward
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.plan import RunPlan


@dataclass
class Run:
    """The parts of a run. `predictor` and `optimizer` are as accelerate prepared them."""

    accelerator: Accelerator
    reporter: Reporter
    method: Method
    predictor: nn.Module
    optimizer: Any
    created: CreatedOptimizer
    scheduler: Any
    loader: BatchLoader
    plan: RunPlan
    maths: StepMaths
    saver: Saver
    samples: SampleMaker
    validation: Validation | None
    accumulation: int
    max_grad_norm: float
    fused: FusedBackward | None
    seed: int
