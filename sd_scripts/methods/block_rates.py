"""One learning rate for each of the 23 parts of the SDXL U-Net (`block_lr`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError

BLOCKS = 23
"""Embeddings of time and size, 9 input blocks, 3 middle blocks, 9 output blocks, and the output layers."""

_FIRST = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}


def parse_block_rates(text: str) -> list[float]:
    """The rates of `1e-5,1e-5,...`. Raises UserError for another number of them, or for what is no number."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"block_lr '{text}' is no list of numbers.", "block_lr", "Write 23 numbers with commas.") from (
            error
        )
    if len(rates) != BLOCKS:
        raise UserError(
            f"block_lr has {len(rates)} numbers; the U-Net has {BLOCKS} blocks.",
            "block_lr",
            "First the embeddings, then 9 input blocks, 3 middle blocks, 9 output blocks, and the output layers.",
        )
    if any(rate < 0 for rate in rates):
        raise UserError("block_lr has a number below 0.", "block_lr", "0 leaves a block as it is.")
    return rates


def block_number(name: str) -> int:
    """The block, 0 to 22, of a parameter by its name in the original layout. Raises ValueError for another name."""
    head, _, rest = name.partition(".")
    if head in ("time_embed", "label_emb"):
        return 0
    if head == "out":
        return BLOCKS - 1
    if head in _FIRST:
        return _FIRST[head] + int(rest.split(".")[0])
    raise ValueError(f"{name} belongs to no block")


def block_groups(unet: nn.Module, rates: Sequence[float]) -> list[ParameterGroup]:
    """Groups "block0" to "block22" of a U-Net under its original names; a block of rate 0 is frozen and left out."""
    blocks: list[list[nn.Parameter]] = [[] for _ in range(BLOCKS)]
    for name, parameter in unet.named_parameters():
        blocks[block_number(name)].append(parameter)
    groups = []
    for number, (parameters, rate) in enumerate(zip(blocks, rates, strict=True)):
        if rate == 0:
            for parameter in parameters:
                parameter.requires_grad_(False)
        else:
            groups.append(ParameterGroup(f"block{number}", parameters, rate))
    return groups
