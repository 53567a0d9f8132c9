"""What Stable Diffusion 1, 2 and XL have in common: a U-Net on four latent channels, CLIP text encoders, a VAE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Guide, Model, Views
from sd_scripts.families.layers import own_hidden_states, stacked
from sd_scripts.models.attention import use_attention, use_gradient_checkpointing
from sd_scripts.models.build import LoadedModel, Origin
from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.models.saving import save_diffusers_folder, save_single_file
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.sampling.sampler import Backend, PromptEncoding, render
from sd_scripts.schema.errors import UserError
from sd_scripts.training.noise import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd_scripts.sampling.prompts import SamplePrompt
    from sd_scripts.schema.loss import LossOptions
    from sd_scripts.schema.model import ModelOptions
    from sd_scripts.schema.training import TrainingOptions

FOLDER_FORMATS = ("diffusers", "diffusers_safetensors")
SAMPLE_CHUNKS = 3  # chunks of 75 tokens that a sample prompt may fill


class LatentDiffusion(ABC):
    """The base of the families `sd` and `sdxl`; `families.base.Family` says what its methods promise.

    A family adds `load`, `encode_captions` and `kind`, and the two methods below.
    """

    name: str
    latent_scale: float
    caches_text: bool

    @abstractmethod
    def encode_prompts(
        self, model: Model, texts: list[str], prompt: SamplePrompt, clip_skip: int | None
    ) -> list[PromptEncoding]:
        """The prompt's text and, where it counts, the negative one, with weights applied and of the same length.

        Raises UserError for a weight that cannot be read.
        """

    @abstractmethod
    def added_conditions(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the U-Net is told besides hidden states and timesteps, under its own names."""

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
        """Compute activations twice instead of keeping them; `text` says whether the text encoders train too."""
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

    def text_outputs(self, model: Model, captions: list[str], *, options: ModelOptions) -> list[dict[str, Tensor]]:
        """Raises UserError: this family's captions are encoded anew in every step."""
        raise self._no_cache()

    def from_text_outputs(
        self, outputs: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
    ) -> Conditioning:
        """Raises UserError: this family's captions are encoded anew in every step."""
        raise self._no_cache()

    def _no_cache(self) -> UserError:
        return UserError(
            f"Text-encoder outputs of '{self.name}' models cannot be cached; those of SDXL can.",
            key="cache_text_encoder_outputs",
        )

    def predict(self, model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output [B, 4, h, w] for noisy scaled latents [B, 4, h, w], timesteps [B] and what steers it."""
        hidden = conditioning.hidden
        if conditioning.layers is not None:
            if "cross_attention_blocks" not in model.extras:
                model.extras["cross_attention_blocks"] = own_hidden_states(model.unet)
            hidden = stacked(conditioning.layers, model.extras["cross_attention_blocks"])
        more: dict[str, Any] = {}
        if conditioning.residuals is not None:
            down, middle = conditioning.residuals
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        added = self.added_conditions(conditioning)
        return model.unet(noisy, timesteps, hidden, added_cond_kwargs=added, **more).sample

    def views(self, model: Model) -> Views:
        """The model under kohya's names; make them before the modules are wrapped for training."""
        return Views(unet_view(model.unet), [text_view(encoder) for encoder in model.text_encoders])

    def noise_schedule(self, options: LossOptions) -> Schedule:
        """Stable Diffusion's schedule: 1000 steps, betas 0.00085 to 0.012 with linear roots."""
        return Schedule.scaled_linear(zero_terminal_snr=bool(options.zero_terminal_snr))

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
        """Make the picture of a prompt; modules are as they were afterwards (mode and place).

        Args:
            model: with whatever network is attached to it.
            prompt: text, size, steps, guidance, seed.
            sampler: used where the prompt names none.
            options: clip_skip counts here too, where the family knows it.
            device: where to compute.
            dtype: bfloat16 or float16 compute under autocast; float32 without.
            guide: asked before every prediction; with guidance of the prompt (scale above 1) the batch it gets has
                the negative prompt first and the prompt second.

        Raises:
            UserError: the numbers ran over, or the prompt's weights cannot be read.
        """
        place = torch.device(device)
        with torch.no_grad(), _lent(model, place):
            backend = self._backend(model, place, dtype, options.clip_skip, guide)
            return render(backend, prompt, sampler=sampler, device=place, dtype=dtype)

    def _backend(
        self, model: Model, device: torch.device, dtype: torch.dtype, clip_skip: int | None, guide: Guide | None
    ) -> Backend:
        def lowered() -> torch.autocast:
            # The loop around switches autocast off; networks in float32 on 16-bit weights need it on.
            return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

        def predict(latents: Tensor, timesteps: Tensor, encoding: PromptEncoding) -> Tensor:
            conditioning = Conditioning(encoding.hidden, encoding.pooled, encoding.sizes)
            with lowered():
                if guide is not None:
                    conditioning = guide(conditioning, latents, timesteps)
                return self.predict(model, latents, timesteps, conditioning)

        def encode(prompt: SamplePrompt, negative: str | None) -> tuple[PromptEncoding, PromptEncoding | None]:
            texts = [prompt.prompt] if negative is None else [prompt.prompt, negative]
            with lowered():
                encodings = self.encode_prompts(model, texts, prompt, clip_skip)
            return encodings[0], encodings[1] if negative is not None else None

        def decode(latents: Tensor) -> Tensor:
            scaled = latents.to(model.vae.device, model.vae.dtype) / self.latent_scale
            return model.vae.decode(scaled).sample

        return Backend(predict=predict, encode=encode, decode=decode, prediction_type=model.prediction_type)

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
        """Write the whole model, complete or not at all; see `families.base.Family.save`."""
        whole = LoadedModel(
            unet=_plain(model.unet),
            text_encoders=[_plain(encoder) for encoder in model.text_encoders],
            vae=_plain(model.vae),
            tokenizers=model.tokenizers,
            version=model.version,
            prediction_type=model.prediction_type,
            source=model.source,
            origin=model.extras.get("origin") or Origin(),
        )
        if file_format in FOLDER_FORMATS:
            save_diffusers_folder(whole, path, dtype, safetensors=file_format == "diffusers_safetensors")
        else:
            save_single_file(whole, path, dtype, metadata, epoch=epoch, step=step)


def model_of(loaded: LoadedModel, dtype: torch.dtype) -> Model:
    """What a family's `load` returns for what was read."""
    return Model(
        unet=loaded.unet,
        text_encoders=list(loaded.text_encoders),
        tokenizers=list(loaded.tokenizers),
        vae=loaded.vae,
        version=loaded.version,
        prediction_type=loaded.prediction_type,
        source=loaded.source,
        extras={
            "from_single_file": loaded.from_single_file,
            "notes": loaded.notes,
            "dtype": dtype,
            "origin": loaded.origin,
        },
    )


def _plain(module: nn.Module) -> Any:
    """A module without the wrapper of torch.compile."""
    return getattr(module, "_orig_mod", module)


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
