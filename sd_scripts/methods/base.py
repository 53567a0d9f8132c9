"""What a training method is, to the loop: it attaches to a model, names its parameters, and saves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Family, Guide, Model
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.training.optimizers import CreatedOptimizer

Replacement = tuple[str, str | tuple[str, ...]]
"""What stands in captions, and what comes in its place; from an empty text the whole caption is replaced, and of
several texts one is drawn."""


@dataclass(frozen=True)
class ScalarNames:
    """What trackers call a step's figures: those of sd-scripts, where each script has its own.

    loss: the step's loss; rate: the only learning rate, or None where each group's stands under `lr/`.
    """

    loss: str = "loss/current"
    rate: str | None = None


class Method(ABC):
    """What is trained (a network, a whole model, an embedding), whatever the model family.

    The loop calls, in this order: `attach` once, `parameter_groups` once, `on_epoch_start` every epoch,
    `on_step_start` and `before_predict` every batch, `after_step` after every optimizer step, `save` and
    `metadata` whenever a file is written. What most methods do not need does nothing here.

    Attributes:
        needs_control_images: whether every picture must come with one that steers.
        saves_whole_model: whether the model itself is trained and written, its frozen parts too.
        notes: what files say about themselves: "all" (`ss_*` and `modelspec.*`), "modelspec" or "none".
        adapter: the kind of file for `modelspec.architecture` ("lora", "textual_inversion", "lllite", "controlnet"),
            None for a whole model.
        project: the name under which trackers keep the run.
        scalar_names: what trackers call its figures.
    """

    needs_control_images: bool = False
    saves_whole_model: bool = False
    notes: Literal["all", "modelspec", "none"] = "modelspec"
    adapter: str | None = None
    project: str = "network_train"
    scalar_names: ScalarNames = ScalarNames()

    @property
    def may_leave_out(self) -> bool:
        """Whether a step may leave a trained weight without gradient; known before `attach`."""
        return False

    def required_files(self) -> list[tuple[str, str]]:
        """(option key, path) of every file the method will read; looked for before anything is loaded."""
        return []

    def prepare_model(self, model: Model, family: Family, weight_dtype: torch.dtype) -> None:  # noqa: B027 (optional)
        """Change the freshly loaded model for good, before anything is encoded with it and kept."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module whose `state_dict` is the training state, and which accelerate prepares."""

    @property
    @abstractmethod
    def trains_unet(self) -> bool:
        """Whether gradients must flow through the U-Net's own adapters or weights."""

    @property
    @abstractmethod
    def trains_text_encoder(self) -> bool:
        """Whether captions must be encoded anew, with gradients, in every step."""

    @property
    @abstractmethod
    def file_format(self) -> str:
        """What `save` writes: "safetensors", "ckpt", "pt", "diffusers" or "diffusers_safetensors" (folders).

        Known after `attach`: a whole model is written as it was read unless told otherwise.
        """

    @property
    def default_name(self) -> str | None:
        """The name of the files where no output_name is given; None for the usual one."""
        return None

    @abstractmethod
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

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """The groups for the optimizer, each with a name and a rate. Raises UserError when nothing trains."""

    def prepare_optimizer(self, created: CreatedOptimizer) -> None:  # noqa: B027 (optional)
        """Change how the fresh optimizer steps. Raises UserError where it cannot."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter that an optimizer step may change (for clipping and all-reduce)."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def caption_replacements(self) -> tuple[Replacement, ...]:
        """What is replaced in captions when they are composed; asked for before anything is loaded."""
        return ()

    def check_captions(self, captions: Iterable[str]) -> list[str]:
        """Look at the training captions as they are written, before anything is loaded; sentences of warning.

        Raises UserError where nothing could be learned from them.
        """
        return []

    def rewrite_prompt(self, text: str) -> str:
        """A sample prompt, positive or negative, as the model is to read it."""
        return text

    def on_epoch_start(self) -> None:
        """Called before the first batch of every epoch."""
        self.module.train()

    def on_step_start(self, multipliers: Tensor | None, step: int) -> None:  # noqa: B027 (optional)
        """Called before every batch.

        Args:
            multipliers: [B], the strength of a network per sample; None means 1.
            step: optimizer steps done before it.
        """

    def before_predict(self, conditioning: Conditioning, batch: Any, noisy: Tensor, timesteps: Tensor) -> Conditioning:
        """Change the conditioning of this batch, or hand it on as it is. Runs inside the wrapped forward pass."""
        return conditioning

    def after_step(self) -> dict[str, float] | None:
        """Called after every optimizer step; figures worth showing, or None."""
        return None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """For samples and validation: full strength, no dropout; every module is back in its own mode afterwards."""
        modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training

    def guide(
        self, prompt: SamplePrompt, device: torch.device, dtype: torch.dtype
    ) -> AbstractContextManager[Guide | None]:
        """What steers the predictions of one sample picture, while it is made. Raises UserError."""
        return nullcontext()

    @abstractmethod
    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the trained weights in `file_format`, complete or not at all."""

    def metadata(self) -> dict[str, str]:
        """This method's own `ss_*` entries."""
        return {}


def freeze(model: Model) -> None:
    """No gradients for any part of the model, and no dropout in it."""
    for part in (model.unet, *model.text_encoders, model.vae):
        part.requires_grad_(False)
        part.eval()


def count_parameters(groups: Sequence[ParameterGroup]) -> int:
    """Number of trained values over all groups."""
    return sum(parameter.numel() for group in groups for parameter in group.params)
