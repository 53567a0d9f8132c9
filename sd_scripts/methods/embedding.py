"""Textual Inversion: new words for a frozen model. Only their rows of the token table are trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method, Replacement, ScalarNames, freeze
from sd_scripts.models.build import text_core
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.networks.embedding_file import PAIR, SINGLE, read_embedding
from sd_scripts.schema.embedding import EmbeddingOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.templates import OBJECT, STYLE, filled
from sd_scripts.tensorfile import write_weights

logger = logging.getLogger(__name__)

# How far new rows without an init word lie from the mean row, as a share of the table's own spread.
_SPREAD = math.sqrt(1e-9)


class NewRows(nn.Module):
    """The trained vectors: a parameter [rows, C] for each text encoder, by its name in the file."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.rows = nn.ParameterDict()
        for name, table in tables.items():  # one by one: a ParameterDict sorts what it is given at once
            self.rows[name] = nn.Parameter(table.clone())


class ExtendedEmbedding(nn.Module):
    """A frozen token table [V, C] that continues with trained rows: the ids from `first` on are theirs.

    `weight` is the table's own parameter, under its own name. The rows belong to the module that is trained, so the
    text encoder neither counts nor moves them. Every row gets a gradient in every step, zero where no caption names
    it, so that data-parallel processes never wait for one.
    """

    def __init__(self, table: nn.Embedding, trained: NewRows, name: str, first: int) -> None:
        super().__init__()
        self.weight = table.weight
        self.first = first
        self._trained = (trained,)  # a tuple hides it from Module.__setattr__
        self._name = name

    @property
    def rows(self) -> Tensor:
        """The trained rows [rows, C]."""
        return self._trained[0].rows[self._name]

    def choose(self, positions: Tensor) -> Tensor:
        """Which row stands for the new id `first + position`, for positions [B, T] of 0 and more."""
        return positions

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] -> vectors [B, T, C] in the table's type."""
        positions = ids - self.first
        is_new = positions >= 0
        known = F.embedding(ids.masked_fill(is_new, 0), self.weight)
        new = F.embedding(self.choose(positions.clamp(min=0)), self.rows.to(known.dtype))
        return torch.where(is_new[..., None], new, known)


class EmbeddingMethod(Method):
    """New words, each of one or more vectors, in the token tables of all text encoders.

    The word `tok` of three vectors is written `tok tok1 tok2`; captions and prompts with `tok` in them are rewritten.
    """

    adapter = "textual_inversion"
    project = "textual_inversion"
    scalar_names = ScalarNames(loss="loss", rate="lr")

    def __init__(self, options: EmbeddingOptions, optimizer: OptimizerOptions, file_format: str | None = None) -> None:
        if not options.token_string:
            raise UserError(
                "token_string is missing: the new word that stands for what is learned.",
                "token_string",
                "Choose a word that does not exist, for example mytoken.",
            )
        if options.num_vectors_per_token < 1:
            raise UserError(
                f"num_vectors_per_token is {options.num_vectors_per_token}, but a word needs at least one vector.",
                "num_vectors_per_token",
            )
        if options.use_object_template and options.use_style_template:
            raise UserError(
                "use_object_template and use_style_template exclude each other.",
                "use_style_template",
                "Switch one of them off.",
            )
        self.options = options
        self.optimizer = optimizer
        self.token: str = options.token_string
        self._format = file_format or "pt"
        self._trained: NewRows | None = None

    def required_files(self) -> list[tuple[str, str]]:
        """The file to start from."""
        return [("weights", self.options.weights)] if self.options.weights else []

    @property
    def words(self) -> list[str]:
        """The new word, one name for each of its vectors."""
        more = range(1, self.options.num_vectors_per_token)
        return [self.token, *(f"{self.token}{number}" for number in more)]

    @property
    def added_words(self) -> list[str]:
        """Everything that the tokenizers learn, in the order of the ids."""
        return self.words

    @property
    def row_count(self) -> int:
        """How many rows are trained for each text encoder."""
        return self.options.num_vectors_per_token

    @property
    def module(self) -> NewRows:
        """The trained rows."""
        if self._trained is None:
            raise RuntimeError("the embedding is not attached to a model yet")
        return self._trained

    @property
    def trains_unet(self) -> bool:
        """Gradients flow through the U-Net, but nothing in it is trained."""
        return False

    @property
    def trains_text_encoder(self) -> bool:
        """Captions are encoded anew in every step: the new rows are the text encoders' input."""
        return True

    @property
    def file_format(self) -> str:
        """ "pt", "ckpt" or "safetensors", as asked for."""
        return self._format

    @property
    def default_name(self) -> str:
        """Files without an output_name are named after the word."""
        return self.token

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Freeze the model, teach the tokenizers the new words and put their rows behind the token tables.

        Args:
            model: the loaded model, on its device.
            family: not asked here.
            gradient_checkpointing: whether the model recomputes activations; it needs training mode for that.
            weight_dtype: the dtype that the frozen model is kept in.
            network_dtype: the dtype of the trained rows.

        Raises:
            UserError: a word is a token already, or the file of `weights` does not fit.
        """
        freeze(model)
        if gradient_checkpointing:
            # Both libraries recompute without re-entering autograd, so the embeddings may stay frozen.
            model.unet.train()
            for encoder in model.text_encoders:
                encoder.train()
        firsts = [add_words(tokenizer, self.added_words) for tokenizer in model.tokenizers]
        tables = [text_core(encoder).embeddings.token_embedding for encoder in model.text_encoders]
        names = (SINGLE,) if len(tables) == 1 else PAIR
        first_rows = self._first_rows(dict(zip(names, tables)), model.tokenizers)
        trained = NewRows({name: rows.to(network_dtype) for name, rows in first_rows.items()})
        for name, encoder, table, first in zip(names, model.text_encoders, tables, firsts):
            text_core(encoder).embeddings.token_embedding = self._extended(table, trained, name, first)
        self._trained = trained

    def _extended(self, table: nn.Embedding, trained: NewRows, name: str, first: int) -> ExtendedEmbedding:
        return ExtendedEmbedding(table, trained, name, first)

    def _first_rows(self, tables: Mapping[str, nn.Embedding], tokenizers: Sequence[Any]) -> dict[str, Tensor]:
        """What training starts from, float32 [rows, C] by the encoders' names in the file. Raises UserError."""
        if self.options.weights:
            return self._read_rows(self.options.weights, tables)
        rows = {}
        self._warn_of_init_word(tokenizers[0])
        for (name, table), tokenizer in zip(tables.items(), tokenizers):
            weight = table.weight.detach().float()
            ids = self._init_ids(tokenizer)
            rows[name] = weight[self._start_ids(ids)] if ids else near_mean(weight, self.row_count)
        return rows

    def _read_rows(self, path: str, tables: Mapping[str, nn.Embedding]) -> dict[str, Tensor]:
        found = read_embedding(path, list(tables))
        for name, table in tables.items():
            self._check_shape(path, found[name], table)
        return {name: found[name].to(table.weight.device) for name, table in tables.items()}

    def _check_shape(self, path: str, rows: Tensor, table: nn.Embedding) -> None:
        (count, width), wanted = rows.shape, self.options.num_vectors_per_token
        if count != wanted:
            raise UserError(
                f"The embedding '{path}' has {count} vectors, but num_vectors_per_token is {wanted}.",
                "num_vectors_per_token",
                f"Set num_vectors_per_token to {count}, or choose another file.",
            )
        if width != table.weight.shape[1]:
            raise UserError(
                f"The embedding '{path}' has vectors of {width} numbers, but this model's have "
                f"{table.weight.shape[1]}.",
                "weights",
                "It was made for another kind of model (Stable Diffusion 1: 768, 2: 1024).",
            )

    def _init_ids(self, tokenizer: Any) -> list[int]:
        """The token ids of the init word, repeated or cut to one for each vector; none without an init word."""
        word = self.options.init_word
        if not word:
            return []
        ids = list(tokenizer(word, add_special_tokens=False).input_ids)
        return [ids[number % len(ids)] for number in range(self.options.num_vectors_per_token)] if ids else []

    def _warn_of_init_word(self, tokenizer: Any) -> None:
        word, vectors = self.options.init_word, self.options.num_vectors_per_token
        if not word:
            return
        count = len(tokenizer(word, add_special_tokens=False).input_ids)
        if count != vectors:
            what = "they are repeated" if count < vectors else "the rest is left out"
            tokens = f"{count} token{'' if count == 1 else 's'}"
            logger.warning("init_word '%s' has %s for %d vectors: %s.", word, tokens, vectors, what)

    def _start_ids(self, ids: list[int]) -> list[int]:
        """The table row that each trained row starts from, given one for each vector."""
        return ids

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group, at the learning rate. Raises UserError where that is 0."""
        if not self.optimizer.learning_rate:
            raise UserError(
                "The learning rate is 0, so nothing would be trained.",
                "learning_rate",
                "5e-3 is usual for an embedding.",
            )
        return [ParameterGroup("embedding", list(self.module.parameters()), self.optimizer.learning_rate)]

    @property
    def uses_template(self) -> bool:
        """Whether sentences take the place of the captions."""
        return bool(self.options.use_object_template or self.options.use_style_template)

    def caption_replacements(self) -> tuple[Replacement, ...]:
        """A template for the whole caption, or all of the word's names for the word."""
        joined = " ".join(self.words)
        if self.uses_template:
            return (("", filled(OBJECT if self.options.use_object_template else STYLE, joined)),)
        return ((self.token, joined),) if len(self.words) > 1 else ()

    def rewrite_prompt(self, text: str) -> str:
        """The word becomes all of its names."""
        return text.replace(self.token, " ".join(self.words)) if len(self.words) > 1 else text

    def check_captions(self, captions: Iterable[str]) -> list[str]:
        """Look for the word in the captions as they are written, prefix and suffix included.

        Returns:
            Sentences of warning.

        Raises:
            UserError: no caption has the word, so that nothing could be learned.
        """
        if self.uses_template:
            return []
        word, count, without = self.token.lower(), 0, []
        for caption in captions:
            count += 1
            if word not in caption.lower():
                without.append(caption)
        if not without:
            return []
        if len(without) == count:
            raise UserError(
                f"None of the {count} captions has the word '{self.token}' in it, so nothing can be learned.",
                "token_string",
                f"Write it into the captions, set caption_prefix to '{self.token}', or choose use_object_template or "
                "use_style_template.",
            )
        return [
            f"{len(without)} of {count} captions do not have the word '{self.token}' in them; "
            f"nothing is learned from their pictures (the first: '{without[0][:80]}')."
        ]

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: the vectors by their names in the file."""
        return dict(self.module.rows.items())

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the vectors, complete or not at all; .pt and .ckpt have no place for metadata."""
        write_weights(path, self.tensors(), dtype, metadata)


def add_words(tokenizer: Any, words: Sequence[str]) -> int:
    """Teach a tokenizer new words; returns the id of the first, the others follow it.

    Raises:
        UserError: one of them is a token already.
    """
    known = tokenizer.get_vocab()
    taken = [word for word in words if word in known]
    if taken:
        raise UserError(
            f"token_string: '{taken[0]}' is a token of this model already (id {known[taken[0]]}).",
            "token_string",
            "Choose a word that does not exist, for example mytoken.",
        )
    first = len(tokenizer)
    tokenizer.add_tokens(list(words))
    ids = tokenizer.convert_tokens_to_ids(list(words))
    if ids != list(range(first, first + len(words))):
        raise UserError(
            f"token_string: this model's tokenizer cannot take the words {', '.join(words[:4])}.",
            "token_string",
            "Choose another word, for example mytoken.",
        )
    return first


def near_mean(weight: Tensor, count: int) -> Tensor:
    """`count` rows from a normal distribution about the mean of a table [V, C], a tiny share of its spread wide.

    That is how the transformers library fills a table that grows: an unknown word means anything, not noise.
    """
    mean = weight.mean(dim=0)
    # Drawn on the CPU, so that a seed means the same on every device. The mix has the table's covariance.
    mix = torch.randn(count, weight.shape[0]).to(weight) / math.sqrt(weight.shape[0])
    return mean + _SPREAD * (mix @ (weight - mean))
