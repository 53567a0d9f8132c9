"""Stable Diffusion XL (base)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.common import SAMPLE_CHUNKS, LatentDiffusion, model_of
from sd_scripts.models.build import text_core
from sd_scripts.models.loading import Progress, load_sdxl
from sd_scripts.models.text import join_chunks, tokenise
from sd_scripts.sampling.sampler import PromptEncoding
from sd_scripts.sampling.weights import WeightedTokens, chunk_tensors, join_weighted
from sd_scripts.sampling.weights import tokenise as tokenise_weighted
from sd_scripts.schema.errors import UserError

if TYPE_CHECKING:
    from sd_scripts.sampling.prompts import SamplePrompt
    from sd_scripts.schema.model import ModelOptions

# Which of an encoder's outputs, the embeddings being number 0, the U-Net was trained on; no norm comes after it.
FIRST_LAYER = 11
SECOND_LAYER = -2


def first_states(encoder: nn.Module, ids: Tensor) -> Tensor:
    """CLIP-L's hidden states [N, 77, C] of rows of ids [N, 77]: those before its last layer, not normalised."""
    ids = ids.to(text_core(encoder).embeddings.token_embedding.weight.device)
    return encoder(ids, output_hidden_states=True).hidden_states[FIRST_LAYER]


def second_states(encoder: nn.Module, ids: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """OpenCLIP bigG's hidden states [N, 77, C] before its last layer, not normalised, and the pooled output [N, P]."""
    ids = ids.to(text_core(encoder).embeddings.token_embedding.weight.device)
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[SECOND_LAYER], pool(out.last_hidden_state, ids, eos, encoder.text_projection)


def pool(last: Tensor, ids: Tensor, eos: int, projection: nn.Module) -> Tensor:
    """The projected last hidden state [N, P] at the first end mark of each row, or at its begin where there is none.

    The library's own pooling takes the greatest id instead, which words of textual inversion have.
    """
    place = (ids == eos).to(torch.int64).argmax(dim=-1)
    return projection(last[torch.arange(last.shape[0], device=last.device), place.to(last.device)])


class StableDiffusionXL(LatentDiffusion):
    """The family `sdxl`: a larger U-Net that is told sizes, two text encoders, a VAE with 4 latent channels."""

    name = "sdxl"
    latent_scale = 0.13025
    caches_text = True

    def load(
        self,
        options: ModelOptions,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Model:
        """Read the model named by the options; see `models.loading.load_sdxl`. Raises UserError."""
        return model_of(load_sdxl(options, dtype, device, progress), dtype)

    def encode_captions(self, model: Model, captions: list[str], *, options: ModelOptions) -> Conditioning:
        """Captions -> hidden states of both encoders side by side [B, T, C1 + C2], and the second's pooled output.

        clip_skip does not count: the U-Net was trained on one layer of each.

        Raises:
            UserError: weighted captions are asked for.
        """
        first, second, pooled = self._encoded(model, captions, options)
        return Conditioning(torch.cat([first, second], dim=-1), pooled)

    def _encoded(self, model: Model, captions: list[str], options: ModelOptions) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, C1], [B, T, C2], [B, P]; the pooled output is that of each caption's first chunk."""
        if options.weighted_captions:
            raise UserError(
                "weighted_captions does not work with SDXL.", key="weighted_captions", hint="Switch it off."
            )
        rows = [tokenise(tokenizer, captions, options.max_token_length) for tokenizer in model.tokenizers]
        batch, chunks, width = rows[0].shape
        first = first_states(model.text_encoders[0], rows[0].reshape(-1, width))
        eos = model.tokenizers[1].eos_token_id
        second, pooled = second_states(model.text_encoders[1], rows[1].reshape(-1, width), eos)
        one, two = (join_chunks(hidden.reshape(batch, chunks, width, -1)) for hidden in (first, second))
        return one, two, pooled[::chunks]

    @torch.no_grad()
    def text_outputs(self, model: Model, captions: list[str], *, options: ModelOptions) -> list[dict[str, Tensor]]:
        """Each caption's `hidden_state1` [T, C1], `hidden_state2` [T, C2] and `pool2` [P], float32 on the CPU."""
        names = ("hidden_state1", "hidden_state2", "pool2")
        outputs = [output.float().cpu() for output in self._encoded(model, captions, options)]
        return [{name: output[index].clone() for name, output in zip(names, outputs)} for index in range(len(captions))]

    def from_text_outputs(
        self, outputs: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
    ) -> Conditioning:
        """The conditioning of a batch from stacked `text_outputs`."""
        hidden = torch.cat([outputs["hidden_state1"], outputs["hidden_state2"]], dim=-1)
        return Conditioning(hidden.to(device, dtype), outputs["pool2"].to(device, dtype))

    def encode_prompts(
        self, model: Model, texts: list[str], prompt: SamplePrompt, clip_skip: int | None
    ) -> list[PromptEncoding]:
        """Each text's hidden states, pooled output, and the picture's size. Raises UserError for a wrong weight."""
        tokens = [
            [tokenise_weighted(tokenizer, text, SAMPLE_CHUNKS) for text in texts] for tokenizer in model.tokenizers
        ]
        chunks = max(entry.chunks for entries in tokens for entry in entries)
        size = torch.tensor([[prompt.height, prompt.width, 0, 0, prompt.height, prompt.width]], dtype=torch.float32)
        encodings = []
        for both in zip(*tokens):
            hidden, pooled = self._weighted(model, both, chunks)
            encodings.append(PromptEncoding(hidden, pooled, size.to(hidden.device)))
        return encodings

    def _weighted(self, model: Model, tokens: tuple[WeightedTokens, ...], chunks: int) -> tuple[Tensor, Tensor]:
        """One text's hidden states [1, chunks * 77, C1 + C2] and pooled output [1, P]; `tokens` for each encoder."""
        pairs = [
            # Filled as captions are, each encoder in its own way.
            chunk_tensors(entry, chunks, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
            for entry, tokenizer in zip(tokens, model.tokenizers)
        ]
        first = first_states(model.text_encoders[0], pairs[0][0])
        second, pooled = second_states(model.text_encoders[1], pairs[1][0], model.tokenizers[1].eos_token_id)
        joined = [join_weighted(hidden, weights) for hidden, (_, weights) in zip((first, second), pairs)]
        return torch.cat(joined, dim=-1), pooled[:1]

    def added_conditions(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled output and the sizes; the U-Net turns each of the six numbers into waves itself."""
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError("SDXL needs the pooled output and the sizes of a batch")
        return {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}

    def kind(self, model: Model) -> dict[str, bool]:
        """Facts for metadata and file names."""
        return {"v2": False, "v_param": model.prediction_type == "v_prediction", "is_sdxl": True}
