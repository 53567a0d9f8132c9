"""What every module of LyCORIS needs to train, resume and come back as it was: mixins that stand before its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


def wide(weight: Tensor) -> Tensor:
    """A weight in float32 or more: a small change added to 16 bits would be rounded away."""
    return weight.float() if weight.dtype.itemsize < torch.float32.itemsize else weight


class Mended(nn.Module):
    """For every module.

    A batch whose samples want different strengths is computed strength by strength. In a training state parameters
    stand as they are; only in a file they are folded together, as LyCORIS does always. What is read brings its alpha.
    """

    plus: tuple[str, ...] = ("lora_up",)
    folded = False
    lora_name: str
    multiplier: float | Tensor
    alpha: Tensor

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the network's part; `multiplier` may hold one strength for each sample."""
        strengths = self.multiplier
        if not isinstance(strengths, Tensor):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        # Long captions are encoded in several rows of one sample, which follow one another.
        each = strengths.to(x.device).repeat_interleave(x.shape[0] // strengths.shape[0])
        rows, parts = [], []
        try:
            for strength in each.unique().tolist():
                rows.append((each == strength).nonzero().flatten())
                self.multiplier = strength
                parts.append(super().forward(x[rows[-1]], *args, **kwargs))
        finally:
            self.multiplier = strengths
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def custom_state_dict(self) -> dict[str, Tensor] | None:
        """LyCORIS' tensors for a file; None for the parameters as they are."""
        return cast(Any, super()).custom_state_dict() if self.folded else None

    def load_weight_hook(self, module: nn.Module, incompatible_keys: Any) -> None:
        """After loading: a file has its trained strength folded in, and its own alpha."""
        missing: list[str] = incompatible_keys.missing_keys
        name = next((key for key in missing if key in ("scalar", f"{self.lora_name}.scalar")), None)
        if name is not None:
            missing.remove(name)
            cast(Tensor, self.scalar).data.fill_(1.0)
        self.follow_alpha()

    def follow_alpha(self) -> None:
        """Take the strength from the alpha that was loaded."""
        if hasattr(self, "scale") and hasattr(self, "lora_dim"):
            self.scale = (float(self.alpha) or self.lora_dim) / self.lora_dim

    def _current_weight(self) -> Tensor:
        return wide(cast(Any, super())._current_weight())

    @property
    def org_weight(self) -> Tensor:
        """The layer's weight, never in less than 32 bits."""
        return wide(cast(Any, self).org_module[0].weight)

    @org_weight.setter
    def org_weight(self, value: Tensor) -> None:
        cast(Any, self).org_module[0].weight.data.copy_(value)

    @property
    def chance(self) -> float:
        """How likely rank dropout leaves a rank out."""
        return float(cast(Any, self).rank_dropout)

    def start_step(self) -> None:
        """Called before every batch."""


class Limited(Mended):
    """For modules whose change is proportional to some of their weights: these are made smaller, never the strength."""

    strong: tuple[str, ...] = ()
    # gives the change of the layer's weight at full strength
    change: Callable[[], Tensor]

    @torch.no_grad()
    def apply_max_norm(self, max_norm: float, device: Any = None) -> tuple[bool, Tensor]:
        """Limit the norm of the change; whether that was needed, and the norm then."""
        norm = self.change().norm()
        floored = norm.clamp(min=max_norm / 2)
        ratio = floored.clamp(max=max_norm) / floored
        if ratio == 1:
            return False, norm
        for name in self.strong:
            self.get_parameter(name).mul_(ratio)
        return True, norm * ratio


@contextmanager
def no_dropout(module: Any) -> Iterator[None]:
    """LyCORIS' rank dropout off: it can divide by zero, and LoKr's makes its mask on the wrong device."""
    chance, module.rank_dropout = module.rank_dropout, 0.0
    try:
        yield
    finally:
        module.rank_dropout = chance


@contextmanager
def balanced(module: Any, scale: float) -> Iterator[float]:
    """The strength for a pass with rank dropout over a few ranks, of which all may be dropped."""
    balance, module.rank_dropout_scale = module.rank_dropout_scale, False
    dropping = balance and module.training and module.rank_dropout
    try:
        yield scale / (1 - module.chance) if dropping else scale
    finally:
        module.rank_dropout_scale = balance


def kept_rows(module: Any, rows: int, like: Tensor) -> Tensor | float:
    """Which rows rank dropout keeps in this pass; 1 where it is off."""
    if not (module.training and module.rank_dropout):
        return 1.0
    kept = (torch.rand(rows) > module.rank_dropout).to(like)
    return kept / kept.mean().clamp(min=1 / rows) if module.rank_dropout_scale else kept


def dropped(module: Any, weight: Tensor) -> Tensor:
    """A change without the rows that rank dropout leaves out in this pass."""
    kept = kept_rows(module, weight.shape[0], weight)
    return weight * kept.view(-1, *[1] * (weight.dim() - 1)) if isinstance(kept, Tensor) else weight


@contextmanager
def for_a_file(modules: list[Any]) -> Iterator[None]:
    """Inside, the modules' state dicts are those of a file."""
    for module in modules:
        module.folded = True
    try:
        yield
    finally:
        for module in modules:
            module.folded = False
