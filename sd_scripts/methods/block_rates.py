"""One learning rate for each of the 23 parts of the SDXL U-Net (`block_lr`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.full import BLOCK_RATES

_FIRST = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}


def block_number(name: str) -> int:
    """The block, 0 to 22, of a parameter by its name in the original layout. Raises ValueError for another name."""
    head, _, rest = name.partition(".")
    if head in ("time_embed", "label_emb"):
        return 0
    if head == "out":
        return BLOCK_RATES - 1
    if head in _FIRST:
        return _FIRST[head] + int(rest.split(".")[0])
    raise ValueError(f"{name} belongs to no block")


def block_groups(unet: nn.Module, rates: Sequence[float]) -> list[ParameterGroup]:
    """Groups "block0" to "block22" of a U-Net under its original names; a block of rate 0 is frozen and left out."""
    blocks: list[list[nn.Parameter]] = [[] for _ in range(BLOCK_RATES)]
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
