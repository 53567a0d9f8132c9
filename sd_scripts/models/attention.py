"""How attention is computed, and what is kept in memory for the backward pass."""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sd_scripts.models.build import text_core
from sd_scripts.schema.errors import UserError

QUERY_CHUNK = 1024  # rows of queries worked on at a time by the memory-saving attention


class ChunkedAttnProcessor:
    """Attention over slices of the queries; each slice is computed again in the backward pass.

    The full table of attention weights never exists: memory grows with the length of the sequence, not its square.
    Results equal those of the plain computation to rounding.
    """

    def __init__(self, chunk: int = QUERY_CHUNK) -> None:
        self.chunk = chunk

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """[B, T, C] (or [B, C, H, W] in the VAE) -> the same shape. Stable Diffusion uses no masks here."""
        if attention_mask is not None:
            raise ValueError("the memory-saving attention takes no mask")
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
        rows = [_slice(part, key, value, attn.scale) for part in query.split(self.chunk, dim=2)]
        out = torch.cat(rows, dim=2).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _weigh(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    weights = torch.softmax(query.float() @ key.float().transpose(-1, -2) * scale, dim=-1)
    return weights.to(value.dtype) @ value


def _slice(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if not (query.requires_grad or key.requires_grad or value.requires_grad):
        return _weigh(query, key, value, scale)
    return cast(Tensor, checkpoint(_weigh, query, key, value, scale, use_reentrant=False))


def use_attention(
    unet: UNet2DConditionModel, vae: nn.Module | None = None, *, xformers: bool = False, mem_eff_attn: bool = False
) -> str:
    """Choose how the U-Net attends: PyTorch's own kernels unless asked otherwise.

    Args:
        unet: changed in place.
        vae: with xformers its attention changes too.
        xformers: the package's kernels.
        mem_eff_attn: slices of queries, slower and with least memory.

    Returns:
        What was chosen: "sdpa", "xformers" or "mem_eff_attn".

    Raises:
        UserError: xformers is asked for and not installed, or does not run here.
    """
    if mem_eff_attn:
        unet.set_attn_processor(ChunkedAttnProcessor())
        return "mem_eff_attn"
    if xformers:
        _use_xformers(unet, vae)
        return "xformers"
    unet.set_attn_processor(AttnProcessor2_0())
    return "sdpa"


def _use_xformers(unet: UNet2DConditionModel, vae: nn.Module | None) -> None:
    if importlib.util.find_spec("xformers") is None:
        raise UserError(
            "xformers is chosen but not installed.",
            key="xformers",
            hint="Run: pip install --no-deps xformers - or switch xformers off; PyTorch's own attention is as fast.",
        )
    try:
        for part in (unet, vae):
            if part is not None:
                part.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, RuntimeError, NotImplementedError, AttributeError, ModuleNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"xformers is installed but does not work here: {reason}",
            key="xformers",
            hint="Switch xformers off; PyTorch's own attention is as fast.",
        ) from error


def use_gradient_checkpointing(unet: nn.Module, text_encoders: list[nn.Module], *, text: bool = True) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    It acts while a module is in training mode, so the modules are put there; dropout is zero in these models, so
    nothing else changes by it. `text` False leaves the text encoders alone (they are not trained).
    """
    unet.enable_gradient_checkpointing()
    unet.train()
    for encoder in text_encoders if text else []:
        core = text_core(encoder)
        encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        core.train()
        encoder.train()
