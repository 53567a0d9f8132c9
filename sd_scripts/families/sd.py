"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.common import SAMPLE_CHUNKS, LatentDiffusion, model_of
from sd_scripts.models.loading import Progress, load_sd
from sd_scripts.models.text import chunk_count, encode, encode_captions
from sd_scripts.sampling.sampler import PromptEncoding
from sd_scripts.sampling.weights import apply_weights, chunk_tensors, weighted_embeddings
from sd_scripts.sampling.weights import tokenise as tokenise_weighted

if TYPE_CHECKING:
    from sd_scripts.sampling.prompts import SamplePrompt
    from sd_scripts.schema.model import ModelOptions


class StableDiffusion(LatentDiffusion):
    """The family `sd`: one U-Net, one CLIP text encoder, a VAE with 4 latent channels."""

    name = "sd"
    latent_scale = 0.18215
    caches_text = False

    def load(
        self,
        options: ModelOptions,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Model:
        """Read the model named by the options; see `models.loading.load_sd`. Raises UserError."""
        return model_of(load_sd(options, dtype, device, progress), dtype)

    def encode_captions(self, model: Model, captions: list[str], *, options: ModelOptions) -> Conditioning:
        """Captions -> hidden states [B, T, C]; weighted captions follow (word:1.3) and the other marks of prompts."""
        encoder, tokenizer = model.text_encoders[0], model.tokenizers[0]
        if options.weighted_captions:
            return Conditioning(self._weighted(model, captions, options))
        padding = bool(model.extras.get("token_padding", True))
        length, skip = options.max_token_length, options.clip_skip
        return Conditioning(encode_captions(encoder, tokenizer, captions, length, skip, padding=padding))

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

    def encode_prompts(
        self, model: Model, texts: list[str], prompt: SamplePrompt, clip_skip: int | None
    ) -> list[PromptEncoding]:
        """Each text's hidden states [1, chunks * 77, C]. Raises UserError for a weight that cannot be read."""

        def encode_ids(ids: Tensor, skip: int | None) -> Tensor:
            return encode(model.text_encoders[0], ids, skip)

        negative = texts[1] if len(texts) > 1 else None
        both = weighted_embeddings(model.tokenizers[0], encode_ids, texts[0], negative, clip_skip, SAMPLE_CHUNKS)
        return [PromptEncoding(hidden) for hidden in both if hidden is not None]

    def added_conditions(self, conditioning: Conditioning) -> None:
        """Nothing: hidden states and timesteps are all."""
        return

    def kind(self, model: Model) -> dict[str, bool]:
        """Facts for metadata and file names."""
        v_prediction = model.prediction_type == "v_prediction"
        return {"v2": model.version == "sd2", "v_param": v_prediction, "is_sdxl": False}
