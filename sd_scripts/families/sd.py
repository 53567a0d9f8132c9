"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Model, Views
from sd_scripts.models.attention import use_attention, use_gradient_checkpointing
from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.models.loading import Progress, load_sd
from sd_scripts.models.text import chunk_count, encode, encode_captions
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.sampling.sampler import Backend, render
from sd_scripts.sampling.weights import apply_weights, chunk_tensors
from sd_scripts.sampling.weights import tokenise as tokenise_weighted
from sd_scripts.schema.errors import UserError
from sd_scripts.training.noise import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd_scripts.sampling.prompts import SamplePrompt
    from sd_scripts.schema.loss import LossOptions
    from sd_scripts.schema.model import ModelOptions
    from sd_scripts.schema.training import TrainingOptions


class StableDiffusion:
    """The family `sd`: one U-Net, one CLIP text encoder, a VAE with 4 latent channels."""

    name = "sd"
    latent_scale = 0.18215

    def load(
        self,
        options: ModelOptions,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Model:
        """Read the model named by the options; see `models.loading.load_sd`. Raises UserError."""
        loaded = load_sd(options, dtype, device, progress)
        return Model(
            unet=loaded.unet,
            text_encoders=[loaded.text_encoder],
            tokenizers=[loaded.tokenizer],
            vae=loaded.vae,
            version=loaded.version,
            prediction_type=loaded.prediction_type,
            source=loaded.source,
            extras={"from_single_file": loaded.from_single_file, "notes": loaded.notes, "dtype": dtype},
        )

    def apply_memory_options(self, model: Model, options: TrainingOptions) -> None:
        """Choose attention and 8-bit storage. Call it once, before a network is attached.

        Raises:
            UserError: xformers is asked for and does not run here.
        """
        model.extras["attention"] = use_attention(
            model.unet, model.vae, xformers=bool(options.xformers), mem_eff_attn=bool(options.mem_eff_attn)
        )
        if options.fp8_base or options.fp8_base_unet:
            store_in_fp8(model.unet)
        if options.fp8_base and not options.fp8_base_unet:
            for encoder in model.text_encoders:
                store_in_fp8(encoder)

    def use_gradient_checkpointing(self, model: Model, *, text: bool) -> None:
        """Compute activations twice instead of keeping them; `text` says whether the text encoder trains too."""
        use_gradient_checkpointing(model.unet, model.text_encoders, text=text)

    @torch.no_grad()
    def encode_images(self, model: Model, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1..1 -> a sample of their unscaled latents [B, 4, H/8, W/8], float32.

        Raises:
            UserError: the VAE gave NaN or infinite numbers, as some do in 16 bits.
        """
        vae = model.vae
        with torch.autocast(vae.device.type, enabled=False):
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample().float()
        if not torch.isfinite(latents).all():
            raise UserError(
                f"The VAE turned a picture into NaN or infinite numbers ({vae.dtype} weights).",
                key="no_half_vae",
                hint="Switch on no_half_vae, or use another VAE.",
            )
        return latents

    def encode_captions(self, model: Model, captions: list[str], *, options: ModelOptions) -> Conditioning:
        """Captions -> hidden states [B, T, C]; weighted captions follow (word:1.3) and the other marks of prompts."""
        encoder, tokenizer = model.text_encoders[0], model.tokenizers[0]
        if options.weighted_captions:
            return Conditioning(self._weighted(model, captions, options))
        hidden = encode_captions(encoder, tokenizer, captions, options.max_token_length, options.clip_skip)
        return Conditioning(hidden)

    def _weighted(self, model: Model, captions: list[str], options: ModelOptions) -> Tensor:
        """Hidden states [B, T, C] with weights; T follows the longest caption of the batch."""
        encoder, tokenizer = model.text_encoders[0], model.tokenizers[0]
        most = chunk_count(options.max_token_length)
        tokens = [tokenise_weighted(tokenizer, caption, most) for caption in captions]
        chunks = max(entry.chunks for entry in tokens)
        pairs = [chunk_tensors(entry, chunks, tokenizer.bos_token_id, tokenizer.eos_token_id) for entry in tokens]
        hidden = encode(encoder, torch.cat([ids for ids, _ in pairs]), options.clip_skip)
        joined = hidden.reshape(len(captions), -1, hidden.shape[-1])
        weights = torch.stack([weight.reshape(-1) for _, weight in pairs])
        return apply_weights(joined, weights.to(joined.device))

    def predict(self, model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output [B, 4, h, w] for noisy scaled latents, timesteps [B] and text [B, T, C]."""
        return model.unet(noisy, timesteps, conditioning.hidden).sample

    def views(self, model: Model) -> Views:
        """The model under kohya's names; make them before the modules are wrapped for training."""
        return Views(unet_view(model.unet), [text_view(encoder) for encoder in model.text_encoders])

    def noise_schedule(self, options: LossOptions) -> Schedule:
        """Stable Diffusion's schedule: 1000 steps, betas 0.00085 to 0.012 with linear roots."""
        return Schedule.scaled_linear(zero_terminal_snr=bool(options.zero_terminal_snr))

    def kind(self, model: Model) -> dict[str, bool]:
        """Facts for metadata and file names."""
        v_prediction = model.prediction_type == "v_prediction"
        return {"v2": model.version == "sd2", "v_param": v_prediction, "is_sdxl": False}

    def sample(
        self,
        model: Model,
        prompt: SamplePrompt,
        *,
        sampler: str,
        options: ModelOptions,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Image:
        """Make the picture of a prompt; modules are as they were afterwards (mode and place).

        Args:
            model: with whatever network is attached to it.
            prompt: text, size, steps, guidance, seed.
            sampler: used where the prompt names none.
            options: clip_skip counts here too.
            device: where to compute.
            dtype: bfloat16 or float16 compute under autocast; float32 without.

        Raises:
            UserError: the numbers ran over, or the prompt's weights cannot be read.
        """
        place = torch.device(device)
        with torch.no_grad(), _lent(model, place):
            return render(
                self._backend(model, place, dtype),
                prompt,
                sampler=sampler,
                clip_skip=options.clip_skip,
                device=place,
                dtype=dtype,
            )

    def _backend(self, model: Model, device: torch.device, dtype: torch.dtype) -> Backend:
        def lowered() -> torch.autocast:
            # The loop around switches autocast off; networks in float32 on 16-bit weights need it on.
            return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

        def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            with lowered():
                return self.predict(model, latents, timesteps, Conditioning(embeddings))

        def encode_ids(ids: Tensor, clip_skip: int | None) -> Tensor:
            with lowered():
                return encode(model.text_encoders[0], ids, clip_skip)

        def decode(latents: Tensor) -> Tensor:
            scaled = latents.to(model.vae.device, model.vae.dtype) / self.latent_scale
            return model.vae.decode(scaled).sample

        return Backend(
            predict=predict,
            encode=encode_ids,
            decode=decode,
            tokenizer=model.tokenizers[0],
            prediction_type=model.prediction_type,
        )


@contextmanager
def _lent(model: Model, device: torch.device) -> Iterator[None]:
    """The modules in evaluation mode on `device`; each goes back to its own mode and place afterwards."""
    modules: list[nn.Module] = [model.unet, *model.text_encoders, model.vae]
    before = [(module, next(module.parameters()).device) for module in modules]
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.to(device).eval()
        yield
    finally:
        for module, place in before:
            module.to(place)
        for part, training in modes.items():
            part.training = training
