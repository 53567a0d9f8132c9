"""What a training method is, to the loop: it attaches to a model, names its parameters, and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sd_scripts.families.base import Conditioning, Family, Model
from sd_scripts.networks.base import ParameterGroup


class Method(Protocol):
    """What is trained (a network, a whole model, an embedding), whatever the model family.

    The loop calls, in this order: `attach` once, `parameter_groups` once, `on_epoch_start` every epoch,
    `on_step_start` and `before_predict` every batch, `after_step` after every optimizer step, `save` and
    `metadata` whenever a file is written.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose `state_dict` is the training state, and which accelerate prepares."""
        ...

    @property
    def trains_unet(self) -> bool:
        """Whether gradients must flow through the U-Net's own adapters or weights."""
        ...

    @property
    def trains_text_encoder(self) -> bool:
        """Whether captions must be encoded anew, with gradients, in every step."""
        ...

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Freeze, insert and set train/eval modes, after the family's memory options.

        `weight_dtype` is what the frozen model is kept in, `network_dtype` what the trained weights are kept
        in (float32, except for full_fp16 and full_bf16).
        """
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """The groups for the optimizer, each with a name and a rate. Raises UserError when nothing trains."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter that an optimizer step may change (for clipping and all-reduce)."""
        ...

    def on_epoch_start(self) -> None:
        """Called before the first batch of every epoch."""
        ...

    def on_step_start(self, multipliers: torch.Tensor | None) -> None:
        """Called before every batch; `multipliers` [B] weigh the network per sample, None means 1."""
        ...

    def before_predict(self, conditioning: Conditioning, batch: Any) -> Conditioning:
        """Change the conditioning of this batch, or hand it on as it is."""
        ...

    def after_step(self) -> dict[str, float] | None:
        """Called after every optimizer step; figures worth showing, or None."""
        ...

    def evaluation(self) -> AbstractContextManager[None]:
        """For samples and validation: full strength, no dropout; everything as before afterwards."""
        ...

    def save(self, path: str | Path, dtype: torch.dtype | None, metadata: dict[str, str] | None) -> None:
        """Write the trained weights, complete or not at all; the suffix names the format."""
        ...

    def metadata(self) -> dict[str, str]:
        """This method's own `ss_*` entries."""
        ...


def count_parameters(groups: Sequence[ParameterGroup]) -> int:
    """Number of trained values over all groups."""
    return sum(parameter.numel() for group in groups for parameter in group.params)
