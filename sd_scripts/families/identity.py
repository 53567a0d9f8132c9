"""Short texts that tell models apart, so that what one has encoded is not taken for another's work."""

from __future__ import annotations

import hashlib

import torch

from sd_scripts.families.base import Model


def vae_identity(model: Model) -> str:
    """A short text that changes with the VAE's weights: latents of another VAE are not reused.

    Hashes one small tensor, its first convolution: any retrained VAE differs there.
    """
    return _hash(next(iter(model.vae.state_dict().values())))


def text_identity(model: Model) -> str:
    """A short text that changes with the text encoders' weights: part of the last matrix of each."""
    last = [[value for value in encoder.state_dict().values() if value.ndim > 1][-1] for encoder in model.text_encoders]
    return "+".join(_hash(matrix[:16]) for matrix in last)


def _hash(values: torch.Tensor) -> str:
    plain = values.detach().float().cpu().contiguous()
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()[:16]
