"""The denoising loop of the sample pictures, and the way from latents to a picture.

The model comes in as callables, so nothing here depends on a model family. The loop leaves no trace in the training:
no gradients, and every random stream stands where it stood before.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.sampling.schedulers import FALLBACK, known_sampler, make_scheduler
from sd_scripts.schema.errors import UserError

_SEED_BITS = 32


@dataclass(frozen=True)
class PromptEncoding:
    """What the model is told about B prompts.

    `hidden` is [B, T, D]; `pooled` [B, P] and `sizes` [B, 6] (pixels: original height and width, top and left of the
    crop, target height and width) are for models that look at them, else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return self.hidden.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PromptEncoding:
        """The same elsewhere; sizes stay float32, since 16 bits cannot count pixels."""
        return PromptEncoding(
            self.hidden.to(device, dtype),
            None if self.pooled is None else self.pooled.to(device, dtype),
            None if self.sizes is None else self.sizes.to(device, torch.float32),
        )

    def then(self, other: PromptEncoding) -> PromptEncoding:
        """These prompts and, after them, the others, which have the same parts and lengths."""
        return PromptEncoding(
            torch.cat([self.hidden, other.hidden]),
            None if self.pooled is None or other.pooled is None else torch.cat([self.pooled, other.pooled]),
            None if self.sizes is None or other.sizes is None else torch.cat([self.sizes, other.sizes]),
        )


Predict = Callable[[Tensor, Tensor, PromptEncoding], Tensor]
EncodePrompt = Callable[[SamplePrompt, "str | None"], "tuple[PromptEncoding, PromptEncoding | None]"]
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Backend:
    """What the loop needs of a model.

    `encode(prompt, negative)` returns the encodings of the prompt and of the negative text (None for None), weights
    applied, with the same number of tokens. `predict(latents [B, C, h, w], timesteps [B], encoding of B prompts)`
    returns the model's output, shaped as the latents; with guidance B is 2, the negative prompt first.
    `decode(latents [1, C, h, w])` gets the scaled latents of the loop and returns pixels [1, 3, H, W] in -1..1.
    """

    predict: Predict
    encode: EncodePrompt
    decode: Decode
    prediction_type: str = "epsilon"
    latent_channels: int = 4
    latent_factor: int = 8


@contextmanager
def untouched_randomness(device: torch.device | str = "cpu") -> Iterator[None]:
    """Put the random streams of python, numpy, torch's CPU and `device` back afterwards, also after an error."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = torch.device(device)
    # Other kinds of devices keep one stream nobody draws from here: all noise comes from a generator on the CPU.
    has_streams = device.type in ("cuda", "xpu")
    try:
        with torch.random.fork_rng([_index(device)] if has_streams else [], device_type=_kind(device, has_streams)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _index(device: torch.device) -> int:
    return int(getattr(torch, device.type).current_device()) if device.index is None else device.index


def _kind(device: torch.device, has_streams: bool) -> str:
    return device.type if has_streams else "cuda"


def fresh_seed() -> int:
    """A seed from the system's entropy; the training's own random streams are not asked."""
    return secrets.randbits(_SEED_BITS)


def guided(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: from the negative prompt's output past the prompt's, `scale` times the way."""
    return negative + scale * (positive - negative)


@torch.no_grad()
def sample_latents(
    predict: Predict,
    positive: PromptEncoding,
    negative: PromptEncoding | None = None,
    *,
    width: int,
    height: int,
    steps: int,
    scale: float = 1.0,
    sampler: str = FALLBACK,
    prediction_type: str = "epsilon",
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    latent_channels: int = 4,
    latent_factor: int = 8,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoise one picture of `width` x `height` pixels and return its scaled latents [1, C, h, w], float32.

    `positive` and `negative` are one prompt each; the negative one counts only for `scale` above 1, else the model runs
    once a step. Noise is drawn on the CPU in float32, so that a seed means the same on every device and in every
    process; the model is called in `dtype`, the arithmetic around it is float32. `on_step(done, of)` reports progress.
    Raises UserError where the latents stop being numbers.
    """
    with untouched_randomness(device), torch.autocast(torch.device(device).type, enabled=False):
        generator = torch.Generator("cpu").manual_seed(seed)
        scheduler = make_scheduler(sampler, prediction_type)
        shape = (1, latent_channels, height // latent_factor, width // latent_factor)
        latents = torch.randn(shape, generator=generator).to(device)
        scheduler.set_timesteps(steps, device=device)
        latents = latents * scheduler.init_noise_sigma
        context = (negative.then(positive) if negative is not None and scale > 1 else positive).to(device, dtype)
        use_guidance = len(context) > 1
        extra = {"generator": generator} if _takes_generator(scheduler) else {}
        for done, timestep in enumerate(scheduler.timesteps, 1):
            inputs = scheduler.scale_model_input(latents, timestep).to(dtype)
            batch = inputs.repeat(len(context), 1, 1, 1)
            output = predict(batch, timestep.expand(len(context)), context).float()
            if use_guidance:
                output = guided(output[:1], output[1:], scale)
            latents = scheduler.step(output, timestep, latents, return_dict=True, **extra).prev_sample
            if on_step is not None:
                on_step(done, len(scheduler.timesteps))
    _check_numbers(latents, "the sample picture")
    return latents


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in type(scheduler).step.__code__.co_varnames[: type(scheduler).step.__code__.co_argcount]


def _check_numbers(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            f"{what} became NaN or infinite",
            hint="half precision may be too small for this model: try no_half_vae, or bf16 instead of fp16",
        )


@torch.no_grad()
def decode_latents(decode: Decode, latents: Tensor) -> Image.Image:
    """The picture of latents [1, C, h, w]. Raises UserError where the decoder gives no numbers."""
    with torch.autocast(latents.device.type, enabled=False):
        pixels = decode(latents).float()
    _check_numbers(pixels, "the decoded sample picture")
    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


@torch.no_grad()
def render(
    backend: Backend,
    prompt: SamplePrompt,
    *,
    sampler: str = FALLBACK,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Make the picture of a prompt; `sampler` counts where the prompt names none.

    The picture's `info` holds the "seed" and the "sampler" that were used, which `save_png` writes into the file.
    Raises UserError for a wrong prompt weight or a picture that is not made of numbers.
    """
    seed = fresh_seed() if prompt.seed is None else prompt.seed
    wanted = prompt.sampler or sampler
    used = wanted if known_sampler(wanted) else FALLBACK
    negative = (prompt.negative or "") if prompt.scale > 1 else None
    with untouched_randomness(device):
        wanted_encoding, unwanted = backend.encode(prompt, negative)
        latents = sample_latents(
            backend.predict,
            wanted_encoding,
            unwanted,
            width=prompt.width,
            height=prompt.height,
            steps=prompt.steps,
            scale=prompt.scale,
            sampler=used,
            prediction_type=backend.prediction_type,
            seed=seed,
            device=device,
            dtype=dtype,
            latent_channels=backend.latent_channels,
            latent_factor=backend.latent_factor,
            on_step=on_step,
        )
        image = decode_latents(backend.decode, latents)
    image.info.update(seed=str(seed), sampler=used)
    return image
