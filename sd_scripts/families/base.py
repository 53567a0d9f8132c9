"""What a model family is: the protocol between the training loop and a kind of diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd_scripts.sampling.prompts import SamplePrompt
    from sd_scripts.schema.loss import LossOptions
    from sd_scripts.schema.model import ModelOptions
    from sd_scripts.schema.training import TrainingOptions
    from sd_scripts.training.noise import Schedule


@dataclass
class Model:
    """A loaded base model.

    Attributes:
        unet: the denoiser.
        text_encoders: one for sd, two for sdxl.
        tokenizers: one for each text encoder.
        vae: pictures <-> latents.
        version: "sd1", "sd2", ...
        prediction_type: "epsilon" or "v_prediction".
        source: file, folder or hub id it came from.
        extras: facts only the family itself uses.
    """

    unet: nn.Module
    text_encoders: list[nn.Module]
    tokenizers: list[Any]
    vae: nn.Module
    version: str
    prediction_type: str
    source: str = ""
    extras: dict[str, Any] = field(default_factory=dict)


Residuals = tuple[tuple[Tensor, ...], Tensor]
"""What a ControlNet adds to the U-Net: one tensor a skip connection (12 for SD), and one for the middle block."""


@dataclass
class Conditioning:
    """Encoded captions, and whatever else steers a prediction.

    Attributes:
        hidden: [B, T, C]; T is 77 for one chunk of 75 tokens, 152 for two, 227 for three.
        pooled: [B, P], or None for families without it.
        sizes: [B, 6] float32: original height and width, top and left of the crop, target height and width in pixels;
            None for families that do not look at it.
        layers: hidden states [B, T, C] of their own for each cross-attention block, from the input to the output;
            None where all see `hidden`.
        residuals: what a ControlNet adds, or None.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    layers: tuple[Tensor, ...] | None = None
    residuals: Residuals | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """The same on another device or in another type; the sizes stay float32."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype)

        residuals = self.residuals
        return Conditioning(
            moved(self.hidden),
            None if self.pooled is None else moved(self.pooled),
            None if self.sizes is None else self.sizes.to(device),
            None if self.layers is None else tuple(moved(layer) for layer in self.layers),
            None if residuals is None else (tuple(moved(part) for part in residuals[0]), moved(residuals[1])),
        )


Guide = Callable[[Conditioning, Tensor, Tensor], Conditioning]
"""(conditioning, noisy latents [B, 4, h, w], timesteps [B]) -> conditioning with what steers this one prediction."""


@dataclass
class Views:
    """The model under kohya's names, for network plugins; the leaves are the model's own layers."""

    unet: nn.Module
    text_encoders: list[nn.Module]


class Family(Protocol):
    """What the loop asks of a kind of model."""

    name: str
    latent_scale: float
    caches_text: bool

    def load(self, options: ModelOptions, dtype: torch.dtype, device: torch.device | str) -> Model:
        """Read the model named by the options. Raises UserError."""
        ...

    def apply_memory_options(self, model: Model, options: TrainingOptions) -> None:
        """Choose attention, fp8 storage and memory layout; called once, before any network is attached."""
        ...

    def use_gradient_checkpointing(self, model: Model, *, text: bool) -> None:
        """Compute activations twice instead of keeping them; called before the method attaches."""
        ...

    def encode_images(self, model: Model, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> unscaled latents [B, 4, H/8, W/8]."""
        ...

    def encode_captions(self, model: Model, captions: list[str], *, options: ModelOptions) -> Conditioning:
        """Captions -> text-encoder output, with gradients where the encoders train."""
        ...

    def text_outputs(self, model: Model, captions: list[str], *, options: ModelOptions) -> list[dict[str, Tensor]]:
        """What of each caption's encoding is worth keeping, float32 on the CPU; where `caches_text` is true."""
        ...

    def from_text_outputs(
        self, outputs: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
    ) -> Conditioning:
        """The conditioning of a batch from kept outputs, each stacked to [B, ...]."""
        ...

    def predict(self, model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for noisy scaled latents [B, 4, h, w] at `timesteps` [B]."""
        ...

    def views(self, model: Model) -> Views:
        """The model under kohya's names."""
        ...

    def noise_schedule(self, options: LossOptions) -> Schedule:
        """How much noise each timestep adds."""
        ...

    def sample(
        self,
        model: Model,
        prompt: SamplePrompt,
        *,
        sampler: str,
        options: ModelOptions,
        device: torch.device | str,
        dtype: torch.dtype,
        guide: Guide | None = None,
    ) -> Image:
        """Make the picture of a prompt; `guide` is asked before every prediction."""
        ...

    def save(
        self,
        model: Model,
        path: Path,
        *,
        file_format: str,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the whole model, complete or not at all.

        Args:
            file_format: "safetensors" or "ckpt" for one file in the original layout, "diffusers" or
                "diffusers_safetensors" for a folder.
            dtype: of the written weights; None keeps each as it is.
            epoch, step: trained in this run; a .ckpt records them.
        """
        ...

    def kind(self, model: Model) -> dict[str, bool]:
        """Facts for metadata: v2, v_param, is_sdxl."""
        ...
