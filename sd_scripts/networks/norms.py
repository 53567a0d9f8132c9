"""Limiting how much a module changes its layer, for networks whose parts are not simply two matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Limited(Protocol):
    """A module that knows how large its change is, and can make it smaller."""

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1."""

    def shrink(self, ratio: float) -> None:
        """Multiply the change by `ratio`."""


def product_norm(up: Tensor, down: Tensor) -> Tensor:
    """The squared Frobenius norm of up [out, rank] x down [rank, in], without making the product."""
    up, down = up.detach().flatten(1).double(), down.detach().flatten(1).double()
    return ((up.t() @ up) * (down @ down.t())).sum()


@torch.no_grad()
def limit_norms(modules: Sequence[Limited], maximum: float) -> tuple[int, float, float]:
    """Scale down every module whose change has a norm above `maximum`.

    Returns (modules scaled, mean norm, greatest norm), norms after scaling.
    """
    if not modules:
        return 0, 0.0, 0.0
    squares = [module.squared_norm() for module in modules]
    norms = torch.stack([square.to(squares[0].device) for square in squares]).clamp(min=0).sqrt()
    ratios = maximum / norms.clamp(min=maximum)
    for module, ratio in zip(modules, ratios.tolist()):
        if ratio < 1:
            module.shrink(ratio)
    scaled = norms * ratios
    return int((ratios < 1).sum()), float(scaled.mean()), float(scaled.max())
