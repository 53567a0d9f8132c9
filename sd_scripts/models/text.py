"""Captions to token ids and hidden states, in chunks of 75 tokens as Stable Diffusion's trainers cut them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.models.build import text_core

CHUNK = 75  # tokens between the begin and the end mark
ROW = CHUNK + 2


def chunk_count(max_token_length: int | None) -> int:
    """How many chunks of 75 tokens a caption may fill: 1 (None, 75), 2 (150) or 3 (225)."""
    return max(1, (max_token_length or CHUNK) // CHUNK)


def tokenise(tokenizer: Any, captions: Sequence[str], max_token_length: int | None = None) -> Tensor:
    """Token ids [B, chunks, 77]; a caption is cut after 75, 150 or 225 tokens.

    Every chunk begins with the begin mark. SD1 fills with the end mark; SD2 ends a chunk's text with one end mark and
    fills with id 0, and a chunk without text is the two marks and filling.
    """
    chunks = chunk_count(max_token_length)
    length = chunks * CHUNK + 2
    batch = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids = batch.input_ids
    if chunks == 1:
        return ids[:, None]
    rows = [_chunk(ids, 1 + index * CHUNK, tokenizer) for index in range(chunks)]
    return torch.stack(rows, dim=1)


def _chunk(ids: Tensor, start: int, tokenizer: Any) -> Tensor:
    """Rows [B, 77] of the 75 tokens from `start` on, with the marks of the whole caption around them."""
    row = torch.cat([ids[:, :1], ids[:, start : start + CHUNK], ids[:, -1:]], dim=1)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad != eos:
        # The whole caption's last id may be filling; a full chunk has to end in an end mark all the same.
        full = (row[:, -2] != eos) & (row[:, -2] != pad)
        row[full, -1] = eos
        row[row[:, 1] == pad, 1] = eos
    return row


def encode(text_encoder: nn.Module, ids: Tensor, clip_skip: int | None = None) -> Tensor:
    """Hidden states [N, 77, C] of rows of ids [N, 77], normalised by the final layer norm.

    Args:
        text_encoder: CLIP's text tower.
        ids: on any device.
        clip_skip: 1 or None takes the last layer's output, 2 the one before it, and so on. For SD2 the last layer is
            already the last but one of OpenCLIP's, since that one is left out when the model is loaded.
    """
    core = text_core(text_encoder)
    ids = ids.to(core.embeddings.token_embedding.weight.device)
    if not clip_skip or clip_skip == 1:
        return text_encoder(ids).last_hidden_state
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    return core.final_layer_norm(states[-clip_skip])


def encode_captions(
    text_encoder: nn.Module,
    tokenizer: Any,
    captions: Sequence[str],
    max_token_length: int | None = None,
    clip_skip: int | None = None,
    *,
    padding: bool = True,
) -> Tensor:
    """Hidden states of captions, [B, 77, C], [B, 152, C] or [B, 227, C].

    Without `padding` they end with the longest caption of the batch, [B, T, C] with T at most 77.
    """
    if not padding:
        batch = tokenizer(list(captions), padding=True, truncation=True, max_length=ROW, return_tensors="pt")
        return encode(text_encoder, batch.input_ids, clip_skip)
    ids = tokenise(tokenizer, captions, max_token_length)
    batch, chunks, width = ids.shape
    hidden = encode(text_encoder, ids.reshape(batch * chunks, width), clip_skip)
    return join_chunks(hidden.reshape(batch, chunks, width, -1))


def join_chunks(hidden: Tensor) -> Tensor:
    """[B, chunks, 77, C] -> [B, chunks * 75 + 2, C]: first begin mark, every chunk's 75 tokens, last end mark."""
    batch, chunks, _, width = hidden.shape
    if chunks == 1:
        return hidden[:, 0]
    inner = hidden[:, :, 1:-1].reshape(batch, chunks * CHUNK, width)
    return torch.cat([hidden[:, 0, :1], inner, hidden[:, -1, -1:]], dim=1)
