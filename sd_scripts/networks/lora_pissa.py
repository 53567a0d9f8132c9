"""PiSSA (arXiv 2404.02948): the matrices start as the strongest parts of the layer's own weight.

Let start_up x start_down be the best approximation of the weight at this rank. Then

    y = (weight - s * start_up x start_down) x + s * up x down x        s = alpha / rank

which is the layer itself as long as up and down are still at their start. The weight is not touched: the same sum is

    y = weight x + s * [up - start_up, start_up] x [down, down - start_down] x

This pair of matrices, of twice the rank, is what forward and files use. It is small where little was learned, so that
16 bits lose nothing of what the difference of two large products would lose, and it applies to the unchanged base
model in every program.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.lora_dora import DoRAModule
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.schema.errors import UserError

_MORE_DIRECTIONS = 10
_POWER_ITERATIONS = 4
_START = ("start_down", "start_up")


def principal(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest singular vectors and values: u [out, k], values [k], v [k, in], k = rank or the shorter side.

    A random sample of the columns' space, sharpened by power iterations, is decomposed where that is cheaper than the
    whole matrix. The draw is the same every time and leaves torch's generators alone.
    """
    count = min(rank, *matrix.shape)
    width = count + _MORE_DIRECTIONS
    if 2 * width >= min(matrix.shape):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        sample = matrix @ torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
        for _ in range(_POWER_ITERATIONS):
            sample = matrix @ (matrix.t() @ torch.linalg.qr(sample)[0])
        basis = torch.linalg.qr(sample)[0]
        u, values, v = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
        u = basis @ u
    return u[:, :count], values[:count], v[:count]


class PrincipalStart(LoRAModule):
    """A LoRA module whose matrices start as the strongest parts of its layer's weight."""

    start_down: Tensor
    start_up: Tensor

    def __init__(self, lora_name: str, org_module: nn.Linear | nn.Conv2d, *sizes: Any) -> None:
        super().__init__(lora_name, org_module, *sizes)
        # Ranks beyond the layer's own start as those of an ordinary LoRA.
        self.register_buffer("start_down", self.lora_down.weight.detach().clone())
        self.register_buffer("start_up", self.lora_up.weight.detach().clone())

    @torch.no_grad()
    def prepare(self) -> None:
        """Decompose the layer's weight. Raises UserError when it is not finite."""
        super().prepare()
        weight = self.org_module.weight.detach().flatten(1).float()
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"The layer of {self.lora_name} holds numbers that are not finite, so PiSSA cannot start from it.",
                "init_lora_weights",
            )
        u, values, v = principal(weight, self.lora_dim)
        roots = (values / self.scale).sqrt()
        down, up = self.lora_down.weight, self.lora_up.weight
        down[: len(roots)] = (roots[:, None] * v).view(-1, *down.shape[1:]).to(down)
        up[:, : len(roots)] = (u * roots).view(up.shape[0], -1, *up.shape[2:]).to(up)
        self.start_down.copy_(down)
        self.start_up.copy_(up)

    @property
    def _down(self) -> Tensor:
        down = self.lora_down.weight
        return torch.cat([down, down - self.start_down])

    @property
    def _up(self) -> Tensor:
        return torch.cat([self.lora_up.weight - self.start_up, self.start_up], 1)

    @property
    def file_rank(self) -> int:
        """Twice the rank: what was learned, and what is taken away for it."""
        return 2 * self.lora_dim

    def _drop_neurons(self, inner: Tensor, chance: float) -> Tensor:
        """The same mask for both halves: what a rank learned is left out, not its part of the base model."""
        axis = 1 if inner.dim() == 4 else -1
        mask = F.dropout(torch.ones_like(inner.narrow(axis, 0, self.lora_dim)), chance)
        return inner * torch.cat([mask, mask], axis)

    def _kept_ranks(self, samples: int, device: torch.device) -> Tensor:
        return super()._kept_ranks(samples, device).repeat(1, 2)

    def file_tensors(self) -> dict[str, Tensor]:
        """A plain pair of twice the rank, with the alpha that keeps alpha / rank."""
        tensors = {name: value for name, value in self.state_dict().items() if name not in _START}
        made = {"alpha": self.alpha * 2, "lora_down.weight": self._down.detach(), "lora_up.weight": self._up.detach()}
        return {**tensors, **made}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take a file's pair apart again; a training state holds the parts themselves."""
        down, up = (state_dict.get(f"{prefix}lora_{part}.weight") for part in ("down", "up"))
        if down is not None and up is not None and prefix + "start_down" not in state_dict:
            rank = self.lora_dim
            # In float32 also from 16 bits, where the sum would swallow what was learned.
            down = down.float().reshape(-1, *self.lora_down.weight.shape[1:])
            up = up.float().reshape(-1, down.shape[0], *self._tail)
            state_dict[prefix + "start_up"] = up[:, rank:]
            state_dict[prefix + "start_down"] = down[:rank] - down[rank:]
            state_dict[prefix + "lora_up.weight"] = up[:, :rank] + up[:, rank:]
            state_dict[prefix + "lora_down.weight"] = down[:rank]
            alpha = state_dict.get(prefix + "alpha")
            state_dict[prefix + "alpha"] = torch.tensor(float(rank)) if alpha is None else alpha.float() / 2
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def _tail(self) -> torch.Size:
        return self.lora_up.weight.shape[2:]


class PrincipalDoRAModule(PrincipalStart, DoRAModule):
    """Both: the direction starts from the strongest parts, and the length is trained apart."""


def module_class(decomposed: bool, principal_start: bool) -> type[LoRAModule]:
    """The class of a LoRA module with DoRA, with PiSSA's start, with both or with neither."""
    if principal_start:
        return PrincipalDoRAModule if decomposed else PrincipalStart
    return DoRAModule if decomposed else LoRAModule
