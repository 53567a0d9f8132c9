"""Extended Textual Inversion: a new word that means something else to each of the U-Net's cross-attention blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Family, Guide, Model
from sd_scripts.methods.embedding import EmbeddingMethod, ExtendedEmbedding, NewRows
from sd_scripts.models.build import text_core
from sd_scripts.models.text import encode
from sd_scripts.networks.embedding_file import LAYERS, read_embedding
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.sampling.weights import weighted_embeddings
from sd_scripts.schema.embedding import EmbeddingOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions


class LayeredEmbedding(ExtendedEmbedding):
    """A token table whose new words have rows for each layer: all vectors of the first layer, then of the second.

    The first `vectors` new ids are the word as it stands in captions; which layer's rows they get is chosen with
    `for_layers`. The ids behind them name one row each.
    """

    def __init__(self, table: nn.Embedding, trained: NewRows, name: str, first: int, vectors: int) -> None:
        super().__init__(table, trained, name, first)
        self.vectors = vectors
        self._layers: tuple[int, ...] = (0,)

    @contextmanager
    def for_layers(self, *layers: int) -> Iterator[None]:
        """Inside the block a batch counts as equal parts, one for each of `layers`."""
        before, self._layers = self._layers, layers
        try:
            yield
        finally:
            self._layers = before

    def choose(self, positions: Tensor) -> Tensor:
        """The row of the batch part's layer, for positions [B, T]."""
        layers = torch.tensor(self._layers, device=positions.device)
        layer = layers.repeat_interleave(len(positions) // len(self._layers))[:, None]
        of_layer = layer * self.vectors + positions
        return torch.where(positions < self.vectors, of_layer, positions - self.vectors)


class XtiMethod(EmbeddingMethod):
    """New words with vectors of their own for each of the 16 cross-attention blocks of Stable Diffusion."""

    notes = "none"

    def __init__(
        self,
        options: EmbeddingOptions,
        optimizer: OptimizerOptions,
        file_format: str | None = None,
        *,
        model: ModelOptions,
    ) -> None:
        super().__init__(options, optimizer, file_format)
        self._model_options = model
        self._model: Model | None = None
        self._family: Family | None = None

    @property
    def added_words(self) -> list[str]:
        """The word's own names, then each of them for each layer."""
        return [*self.words, *(f"{word}_{layer}" for layer in LAYERS for word in self.words)]

    @property
    def row_count(self) -> int:
        """Rows for every layer."""
        return self.options.num_vectors_per_token * len(LAYERS)

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """As for every embedding; see there."""
        if len(model.text_encoders) != 1:
            raise UserError("Extended Textual Inversion is for Stable Diffusion 1 and 2.")
        self._model, self._family = model, family
        super().attach(
            model,
            family,
            gradient_checkpointing=gradient_checkpointing,
            weight_dtype=weight_dtype,
            network_dtype=network_dtype,
        )

    def _extended(self, table: nn.Embedding, trained: NewRows, name: str, first: int) -> ExtendedEmbedding:
        return LayeredEmbedding(table, trained, name, first, self.options.num_vectors_per_token)

    def _start_ids(self, ids: list[int]) -> list[int]:
        # Sixteen of each token in a row, while the rows go layer by layer: so the vectors of one layer can start from
        # the same token. It is how sd-scripts starts, and only the start.
        return [token for token in ids for _ in LAYERS]

    def _read_rows(self, path: str, tables: Mapping[str, nn.Embedding]) -> dict[str, Tensor]:
        found = read_embedding(path, LAYERS)
        ((name, table),) = tables.items()
        for rows in found.values():
            self._check_shape(path, rows, table)
        return {name: torch.cat([found[layer] for layer in LAYERS]).to(table.weight.device)}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: one tensor [vectors, C] for each layer."""
        (rows,) = self.module.rows.values()
        return dict(zip(LAYERS, rows.split(self.options.num_vectors_per_token)))

    def _parts(self) -> tuple[Model, Family, LayeredEmbedding]:
        if self._model is None or self._family is None:
            raise RuntimeError("the embedding is not attached to a model yet")
        table = text_core(self._model.text_encoders[0]).embeddings.token_embedding
        return self._model, self._family, table

    def before_predict(self, conditioning: Conditioning, batch: Any, noisy: Tensor, timesteps: Tensor) -> Conditioning:
        """The captions encoded once for each layer. The step encoded them for the first one already."""
        model, family, table = self._parts()
        others = range(1, len(LAYERS))
        with table.for_layers(*others):
            more = family.encode_captions(model, list(batch.captions) * len(others), options=self._model_options)
        return replace(conditioning, layers=(conditioning.hidden, *more.hidden.chunk(len(others))))

    @contextmanager
    def guide(self, prompt: SamplePrompt, device: torch.device, dtype: torch.dtype) -> Iterator[Guide | None]:
        """Gives the predictions of one sample picture their layers; its prompts are encoded at the first of them."""
        known: list[tuple[Tensor, ...]] = []

        def steer(conditioning: Conditioning, noisy: Tensor, timesteps: Tensor) -> Conditioning:
            if not known:
                layers = self._prompt_layers(prompt)
                known.append(tuple(layer.to(conditioning.hidden) for layer in layers))
            return replace(conditioning, layers=known[0])

        yield steer

    def _prompt_layers(self, prompt: SamplePrompt) -> tuple[Tensor, ...]:
        """The prompt for each layer, [1, T, C]; with guidance [2, T, C], the negative prompt first."""
        model, _, table = self._parts()
        negative = (prompt.negative or "") if prompt.scale > 1 else None

        def encode_ids(ids: Tensor, clip_skip: int | None) -> Tensor:
            return encode(model.text_encoders[0], ids, clip_skip)

        layers = []
        for number in range(len(LAYERS)):
            with table.for_layers(number):
                wanted, unwanted = weighted_embeddings(
                    model.tokenizers[0], encode_ids, prompt.prompt, negative, self._model_options.clip_skip
                )
            layers.append(wanted if unwanted is None else torch.cat([unwanted, wanted]))
        return tuple(layers)
