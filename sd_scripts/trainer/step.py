"""One training step's mathematics: from a batch to a loss per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sd_scripts.data.batch import Batch
from sd_scripts.families.base import Conditioning, Family, Model
from sd_scripts.methods.base import Method
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.training import loss as losses
from sd_scripts.training import noise
from sd_scripts.training.noise import NoiseSample, Schedule

Draw = Callable[[Tensor], NoiseSample]


@dataclass(frozen=True)
class Ingredients:
    """What predicts, apart from the trained module. None of it is wrapped, moved or saved by accelerate."""

    family: Family
    model: Model
    method: Method
    options: ModelOptions
    offload: bool = False

    def conditioning(self, batch: Batch, latents: Tensor) -> Conditioning:
        """The batch's captions, encoded now or kept from before, with the sizes of its pictures."""
        sizes = torch.cat([batch.original_sizes, batch.crop_top_lefts, batch.target_sizes], dim=1)
        if batch.text_outputs is not None:
            found = self.family.from_text_outputs(batch.text_outputs, latents.device, latents.dtype)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.method.trains_text_encoder):
                found = self.family.encode_captions(self.model, batch.captions, options=self.options)
        return replace(found, sizes=sizes.to(latents.device, torch.float32))


class Predictor(nn.Module):
    """The forward pass as one module, so that data-parallel wrappers see the trained weights and nothing else.

    Only `trained` is a submodule: its parameters are what accelerate moves, wraps and reduces. The frozen base model
    is reached through `ingredients` and stays as it was loaded. `offload` there sends what is kept for the backward
    pass to main memory.
    """

    def __init__(self, trained: nn.Module, ingredients: Ingredients) -> None:
        super().__init__()
        self.trained = trained
        self._ingredients = (ingredients,)  # a tuple hides the base model from Module.__setattr__

    def forward(self, latents: Tensor, batch: Batch, draw: Draw) -> tuple[Tensor, NoiseSample]:
        """Scaled latents [B,4,h,w] -> the model's prediction [B,4,h,w], and the noise it was made for.

        Captions are encoded before noise is drawn, as in sd-scripts: dropout in a trained text encoder draws first.
        """
        parts = self._ingredients[0]
        if parts.offload and torch.is_grad_enabled():
            # What gradient checkpointing keeps for the backward pass waits in main memory.
            with torch.autograd.graph.save_on_cpu(pin_memory=latents.device.type == "cuda"):
                return self._predict(parts, latents, batch, draw)
        return self._predict(parts, latents, batch, draw)

    @staticmethod
    def _predict(parts: Ingredients, latents: Tensor, batch: Batch, draw: Draw) -> tuple[Tensor, NoiseSample]:
        conditioning = parts.conditioning(batch, latents)
        sample = draw(latents)
        noisy = sample.noisy.to(latents.dtype)
        conditioning = parts.method.before_predict(conditioning, batch, noisy, sample.timesteps)
        return parts.family.predict(parts.model, noisy, sample.timesteps, conditioning), sample


@dataclass(frozen=True)
class StepMaths:
    """Everything that turns a batch into losses."""

    ingredients: Ingredients
    schedule: Schedule
    loss: LossOptions
    device: torch.device
    weight_dtype: torch.dtype

    def latents(self, batch: Batch) -> Tensor:
        """Scaled latents [B,4,h,w] of a batch: from the cache, or encoded now.

        Raises UserError when they are not finite (a VAE in half precision does that).
        """
        parts = self.ingredients
        if batch.latents is not None:
            latents = batch.latents.to(self.device, self.weight_dtype)
        else:
            if batch.images is None:
                raise ValueError("a batch holds neither pictures nor latents")
            try:
                with torch.no_grad():
                    latents = parts.family.encode_images(parts.model, batch.images.to(self.device))
            except UserError as error:
                raise _with_pictures(error, batch.paths) from error
            latents = latents.to(self.device, self.weight_dtype)
        if not bool(torch.isfinite(latents).all()):
            raise UserError(
                f"The VAE gave NaN for {', '.join(batch.paths)}.",
                "no_half_vae",
                "Switch on no_half_vae, or use another VAE; delete these pictures' .npz files if they were cached.",
            )
        return latents * parts.family.latent_scale

    def draw(
        self, latents: Tensor, generator: torch.Generator | None = None, timesteps: Tensor | None = None
    ) -> NoiseSample:
        """Noise and timesteps for scaled latents, from the global streams or from a generator of their own."""
        prediction = self.ingredients.model.prediction_type
        return noise.prepare(latents, self.schedule, self.loss, prediction, generator, timesteps)

    def losses(self, prediction: Tensor, sample: NoiseSample, batch: Batch) -> Tensor:
        """[B] float32."""
        masks = batch.masks
        return losses.per_sample(
            prediction,
            sample,
            self.loss,
            self.schedule,
            self.ingredients.model.prediction_type,
            batch.loss_weights.to(self.device),
            None if masks is None else masks.to(self.device),
        )


def _with_pictures(error: UserError, paths: list[str]) -> UserError:
    return UserError(f"{error.message.rstrip('.')}: {', '.join(paths)}.", error.key, error.hint)
