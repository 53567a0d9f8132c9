"""A small real model, a network on it, and a few steps of training, for the tests of networks and methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from sd_scripts.families.base import Model
from sd_scripts.families.common import LatentDiffusion
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions

FAMILY = StableDiffusion()
XL_FAMILY = StableDiffusionXL()
CAPTIONS = ["a photo of a cat", "a dog"]


def model(version: str = "sd1", shallow: bool | None = None) -> Model:
    """The same small model every time; of SDXL's rows of equal layers only the first, unless told otherwise."""
    made = build_tiny(version, shallow=version == "sdxl" if shallow is None else shallow)
    return Model(made.unet, made.text_encoders, made.tokenizers, made.vae, version, made.prediction_type)


def family_of(base: Model) -> LatentDiffusion:
    """The family of a model."""
    return XL_FAMILY if base.version == "sdxl" else FAMILY


def method(rate: float = 1e-2, rates: dict[str, Any] | None = None, **options: Any) -> NetworkMethod:
    """A method with these network options."""
    return NetworkMethod(NetworkOptions(**options), OptimizerOptions(learning_rate=rate, **(rates or {})))


def attached(
    base: Model, rate: float = 1e-2, checkpointing: bool = False, rates: dict[str, Any] | None = None, **options: Any
) -> NetworkMethod:
    """A method whose network is in the model."""
    made = method(rate, rates, **options)
    made.attach(base, family_of(base), gradient_checkpointing=checkpointing, weight_dtype=torch.float32)
    return made


def pipeline(base: Model) -> StableDiffusionPipeline:
    """diffusers' own program around a model of version 1 or 2."""
    return StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def output(base: Model) -> Tensor:
    """The U-Net's output for fixed latents, steps and captions, through text encoder and U-Net."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    family = family_of(base)
    conditioning = family.encode_captions(base, CAPTIONS, options=ModelOptions())
    if base.version == "sdxl":
        conditioning.sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64], [96, 80, 8, 0, 64, 64]])
    return family.predict(base, noisy, torch.tensor([500, 100]), conditioning)


def train(base: Model, made: NetworkMethod, steps: int = 2) -> list[float]:
    """Some steps towards zero output; the losses."""
    groups = [
        {"params": group.params} | ({} if group.lr is None else {"lr": group.lr}) for group in made.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    made.on_epoch_start()
    losses = []
    for _ in range(steps):
        made.on_step_start(None, 0)
        loss = output(base).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.after_step()
        losses.append(loss.item())
    return losses


def trained_file(
    path: Path,
    steps: int = 2,
    dtype: torch.dtype | None = None,
    version: str = "sd1",
    shallow: bool | None = None,
    **options: Any,
) -> tuple[Model, Path]:
    """A small model with a trained network in it, and the network's file."""
    torch.manual_seed(0)
    base = model(version, shallow)
    made = attached(base, **options)
    train(base, made, steps)
    made.save(path, dtype, {"ss_v2": "False"})
    made.module.eval()
    return base, path
