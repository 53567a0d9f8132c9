"""What is known of a model before it becomes modules: configurations, weights, and what its file held beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Origin:
    """What a model's source held beside the weights that are trained; written back when the model is saved.

    Attributes:
        ballast: entries of an original single file that no module has (position numbers, the schedule, the last layer
            of SD2's text encoder), by their names there; None when the model came from a diffusers folder.
        epoch: counted by earlier trainings, as a .ckpt says.
        step: the same in steps.
    """

    ballast: dict[str, Tensor] | None = None
    epoch: int = 0
    step: int = 0


@dataclass
class Part:
    """A part of a model before it becomes a module: its configuration and its weights by diffusers' names."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
