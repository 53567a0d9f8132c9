"""Hidden states of their own for each cross-attention block of a U-Net (extended textual inversion)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

KEY = "encoder_hidden_states"


def cross_attention_blocks(unet: nn.Module) -> list[nn.Module]:
    """The U-Net's transformers from the input to the output; 16 of them in Stable Diffusion 1 and 2."""
    stages = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [block for stage in stages for block in getattr(stage, "attentions", None) or ()]


def own_hidden_states(unet: nn.Module) -> int:
    """Teach every transformer of the U-Net to take its own part of hidden states [B, blocks, T, C].

    Hidden states [B, T, C] go through as before. It stays in the model, and knows by the shape alone what to do: the
    backward pass calls the blocks again under gradient checkpointing, long after the prediction. Doing it twice is
    harmless. Returns how many transformers there are.
    """
    blocks = cross_attention_blocks(unet)
    for index, block in enumerate(blocks):

        def take(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], place: int = index
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            hidden = keywords.get(KEY)
            if hidden is None or hidden.ndim != 4:
                return None
            return arguments, {**keywords, KEY: hidden[:, place]}

        block.register_forward_pre_hook(take, with_kwargs=True)
    return len(blocks)


def stacked(layers: tuple[Tensor, ...], blocks: int) -> Tensor:
    """Hidden states [B, T, C] of each block as one tensor [B, blocks, T, C].

    Raises:
        ValueError: there are not as many as blocks.
    """
    if len(layers) != blocks:
        raise ValueError(f"{len(layers)} hidden states for {blocks} cross-attention blocks")
    return torch.stack(layers, dim=1)
