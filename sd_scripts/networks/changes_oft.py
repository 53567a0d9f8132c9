"""What kohya's OFT (orthogonal finetuning, arXiv 2306.07280) makes of a layer.

A module has `oft_blocks` [n, b, b] with n * b = out and `alpha`. With Q = B - B^T for each block B, made shorter where
its norm is above alpha * out,

    R = (I + Q) (I - Q)^-1        weight' = weight + multiplier * (R^T - I) weight

block by block on the rows of the weight; the bias stays. So do the programs that read these files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sd_scripts.networks.changes import Misfit


def limit_of(tensors: Mapping[str, Tensor]) -> float:
    """How large the norm of a module's Q may be; 0 for no limit."""
    blocks = tensors["oft_blocks"]
    return float(tensors["alpha"]) * blocks.shape[0] * blocks.shape[1] if "alpha" in tensors else 0.0


def rotation(blocks: Tensor, limit: float) -> Tensor:
    """R of each block, [n, b, b], in the type of the blocks, float32 or float64.

    Args:
        blocks: [n, b, b]; only their skew part counts.
        limit: the greatest norm of Q, taken over all blocks; 0 for no limit.
    """
    skew = blocks - blocks.mT
    if limit > 0:
        skew = skew * (limit / torch.linalg.vector_norm(skew).clamp(min=limit))
    unit = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    # The two factors commute, so it does not matter on which side the inverse stands.
    return torch.linalg.solve(unit - skew, unit + skew)


def oft(
    tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None, multiplier: float
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer with an OFT module on it, in the type of the weight.

    Args:
        tensors: `oft_blocks` and `alpha` of the module.
        weight: [out, ...], float32 or float64; it stays as it is.
        bias: given back unchanged.
        multiplier: strength; 1 turns the rows as trained.

    Raises:
        Misfit: the blocks are not of the layer's size.
    """
    blocks = tensors["oft_blocks"].to(weight)
    number, size, _ = blocks.shape
    if number * size != weight.shape[0]:
        raise Misfit(f"turns {number} x {size} outputs of a layer that has {weight.shape[0]}")
    turn = rotation(blocks, limit_of(tensors)) - torch.eye(size, dtype=weight.dtype, device=weight.device)
    rows = weight.reshape(number, size, -1)
    return weight + multiplier * (turn.mT @ rows).view(weight.shape), bias
