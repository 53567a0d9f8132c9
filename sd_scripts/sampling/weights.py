"""Prompt weights and long prompts: `(strong)`, `[weak]`, `(word:1.3)`, and texts of more than 75 tokens.

A text encoder reads 77 tokens at a time: a begin mark, 75 tokens of text, an end mark. Longer texts go through it in
chunks whose outputs are joined; a weight scales the output at its token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError

CHUNK = 75
STRONGER = 1.1
WEAKER = 1 / 1.1
Encode = Callable[[Tensor, int | None], Tensor]
Normalise = Literal["original", "abs", "none"]
_PIECE = re.compile(r"\\[()\[\]\\]|\\|[()\[\]]|:([+-]?[.\d]+)\)|[^\\()\[\]:]+|:")


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Split a prompt into pieces with a weight each; neighbours of equal weight are joined.

    `(x)` multiplies by 1.1, `[x]` divides by it, `(x:1.3)` multiplies by 1.3; they nest. A bracket that is never closed
    counts to the end of the text. A backslash before a bracket or a backslash takes its meaning away.
    Raises UserError for a weight that is no number, as in `(x:1.2.3)`.
    """
    pieces: list[tuple[str, float]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}

    def scale_from(start: int, factor: float) -> None:
        pieces[start:] = [(piece, weight * factor) for piece, weight in pieces[start:]]

    for match in _PIECE.finditer(text):
        piece, weight = match.group(0), match.group(1)
        if piece in open_at:
            open_at[piece].append(len(pieces))
        elif weight is not None and open_at["("]:
            scale_from(open_at["("].pop(), _number(weight, piece))
        elif piece == ")" and open_at["("]:
            scale_from(open_at["("].pop(), STRONGER)
        elif piece == "]" and open_at["["]:
            scale_from(open_at["["].pop(), WEAKER)
        else:
            pieces.append((piece[1:] if piece.startswith("\\") else piece, 1.0))
    for start in open_at["("]:
        scale_from(start, STRONGER)
    for start in open_at["["]:
        scale_from(start, WEAKER)
    return _join_equal(pieces) or [("", 1.0)]


def _number(text: str, piece: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(
            f"the prompt weight '{piece[:-1]}' is no number",
            key="sample_prompts",
            hint="write (word:1.2), or \\( and \\) for brackets that belong to the text",
        ) from error


def _join_equal(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for piece, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + piece, weight)
        else:
            joined.append((piece, weight))
    return joined


@dataclass(frozen=True)
class WeightedTokens:
    """The tokens of a text without begin and end marks, and the weight of each."""

    ids: list[int]
    weights: list[float]

    @property
    def chunks(self) -> int:
        """How many chunks of 75 tokens they fill; at least 1."""
        return max(1, math.ceil(len(self.ids) / CHUNK))


def tokenise(tokenizer: Any, text: str, max_chunks: int) -> WeightedTokens:
    """Tokens and weights of a prompt, cut after `max_chunks * 75` tokens."""
    ids: list[int] = []
    weights: list[float] = []
    for piece, weight in parse_weights(text):
        piece_ids = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        ids += piece_ids
        weights += [weight] * len(piece_ids)
    most = max_chunks * CHUNK
    return WeightedTokens(ids[:most], weights[:most])


def chunk_tensors(
    tokens: WeightedTokens, chunks: int, bos: int, eos: int, fill: int | None = None
) -> tuple[Tensor, Tensor]:
    """Ids (int64) and weights (float32), both [chunks, 77].

    Begin and end marks are `bos` and `eos` with weight 1; what is left is filled with `fill`, the end mark where None.
    SD 2 is filled with the end mark too, unlike in its captions: so kohya's sample prompts are encoded.
    """
    id_rows, weight_rows = [], []
    for start in range(0, chunks * CHUNK, CHUNK):
        ids, weights = tokens.ids[start : start + CHUNK], tokens.weights[start : start + CHUNK]
        free = CHUNK - len(ids)
        id_rows.append([bos, *ids, eos, *[eos if fill is None else fill] * free])
        weight_rows.append([1.0, *weights, *[1.0] * (free + 1)])
    return torch.tensor(id_rows), torch.tensor(weight_rows)


def apply_weights(embeddings: Tensor, weights: Tensor, normalise: Normalise = "original") -> Tensor:
    """Scale `embeddings` [B, T, C] by `weights` [B, T].

    With "original" each text is scaled back to the mean it had, with "abs" to the mean of its absolute values, so that
    weights shift the balance inside a text and not the strength of the whole.
    """
    shape = (*weights.shape, 1)
    weighted = embeddings * weights.to(embeddings).reshape(shape)
    if normalise == "none":
        return weighted
    before, after = (_mean(x, normalise) for x in (embeddings, weighted))
    # A mean of zero (all weights 0) gives no factor to go back by.
    factor = torch.where(after == 0, torch.ones_like(after), before / after)
    return (weighted * factor[:, None, None]).to(embeddings.dtype)


def _mean(embeddings: Tensor, normalise: Normalise) -> Tensor:
    values = embeddings.float()
    return (values.abs() if normalise == "abs" else values).mean(dim=(-2, -1))


def join_weighted(hidden: Tensor, weights: Tensor, normalise: Normalise = "original") -> Tensor:
    """Chunks [N, 77, C] of one text, each with its marks, as [1, N * 77, C] with `weights` [N, 77] applied."""
    joined = hidden.reshape(1, -1, hidden.shape[-1])
    return joined if (weights == 1).all() else apply_weights(joined, weights.reshape(1, -1), normalise)


def weighted_embeddings(
    tokenizer: Any,
    encode: Encode,
    prompt: str,
    negative: str | None = None,
    clip_skip: int | None = None,
    max_chunks: int = 3,
    normalise: Normalise = "original",
) -> tuple[Tensor, Tensor | None]:
    """Text-encoder output for a prompt and, where given, a negative prompt, weights applied.

    `encode(ids [N, 77] on the CPU, clip_skip)` returns hidden states [N, 77, C]. Both results are [1, N * 77, C] with
    the same N, that of the longer text, so that they can be stacked. `negative` None gives None for the second.
    """
    texts = [prompt] if negative is None else [prompt, negative]
    tokens = [tokenise(tokenizer, text, max_chunks) for text in texts]
    chunks = max(t.chunks for t in tokens)
    results = []
    for text_tokens in tokens:
        ids, weights = chunk_tensors(text_tokens, chunks, tokenizer.bos_token_id, tokenizer.eos_token_id)
        results.append(join_weighted(encode(ids, clip_skip), weights, normalise))
    return results[0], results[1] if negative is not None else None
