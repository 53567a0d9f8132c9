"""The batch that the trainer gets."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Batch:
    """Pictures of one bucket with everything that goes with them.

    images: [B, 3, H, W] in -1..1, or None when latents are cached; latents: [B, 4, h, w], unscaled, or None;
    loss_weights: [B], the prior weight for regularisation pictures; network_multipliers: [B]; masks: [B, H, W] in 0..1
    of the picture's size, or None; conditioning_images: [B, 3, H, W] in -1..1, or None; original_sizes, target_sizes:
    [B, 2] as (height, width); crop_top_lefts: [B, 2] as (top, left); index: number of the batch before shuffling;
    attributes: the custom attributes of every picture's subset; text_outputs: what the text encoders give for the
    captions, by name, each [B, ...], or None when that is not cached.
    """

    images: Tensor | None
    latents: Tensor | None
    captions: list[str]
    loss_weights: Tensor
    network_multipliers: Tensor
    masks: Tensor | None
    conditioning_images: Tensor | None
    original_sizes: Tensor
    crop_top_lefts: Tensor
    target_sizes: Tensor
    paths: list[str]
    flipped: list[bool]
    index: int = 0
    attributes: list[dict[str, Any]] = field(default_factory=list)
    text_outputs: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.captions)
