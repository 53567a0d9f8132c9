"""DoRA (arXiv 2402.09353): length and direction of a layer's weight are trained apart.

    weight' = length * (weight + change) / |weight + change|        change = alpha / rank * up x down

Each output has its length, the norm of its row of the weight over everything else (input channels and kernel). It is
stored as `dora_scale`, [out, 1] for a linear layer and [out, 1, 1, 1] for a convolution, as LyCORIS does. As in the
paper the norm in the denominator counts as a constant for the gradients. Between multiplier 0 and 1 the module goes
straight from the layer's own weight to weight', so that strength 0 is the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.schema.errors import UserError

DORA_SCALE = "dora_scale"


def row_norms(matrix: Tensor) -> Tensor:
    """Norm of each output's weights, [out], in float32."""
    return torch.linalg.vector_norm(matrix.flatten(1).float(), dim=1)


class DoRAModule(LoRAModule):
    """A LoRA module that also trains the length of each output's weights."""

    def __init__(self, lora_name: str, org_module: nn.Linear | nn.Conv2d, *sizes: Any) -> None:
        super().__init__(lora_name, org_module, *sizes)
        lengths = row_norms(org_module.weight.detach())
        self.dora_scale = nn.Parameter(lengths.view(-1, *[1] * (org_module.weight.dim() - 1)))
        self._squares: Tensor | None = None

    def prepare(self) -> None:
        """Remember the norms of the layer's own rows, which no training changes."""
        super().prepare()
        self._squares = row_norms(self.org_module.weight.detach()).square()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DoRAModule:
        """Lengths stay float32 where the matrices go to 16 bits: there a step would be lost in rounding."""
        lengths = self.dora_scale.data
        super()._apply(fn, recurse)
        self.dora_scale.data = lengths.to(self.dora_scale.device)
        return self

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """Row norms of weight + change, [out], without making the large product."""
        weight = self.org_module.weight.detach()
        if self._squares is None:
            self._squares = row_norms(weight).square()
        squares = self._squares = self._squares.to(weight.device)
        down, up = self._down.detach().float().flatten(1), self._up.detach().float().flatten(1)
        across = weight.flatten(1).float() @ down.t()
        inner = up @ (down @ down.t())
        squares = squares + (2 * self.scale) * (across * up).sum(1) + self.scale**2 * (inner * up).sum(1)
        return squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()

    def _stretch(self) -> Tensor:
        """How much longer each output's weights become, [out], with a gradient for the lengths only."""
        return self.dora_scale.flatten().float() / self._norms()

    def _with_detour(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        base = self._base(x)
        shape = (-1, 1, 1) if isinstance(self.lora_down, nn.Conv2d) else (-1,)
        own, bias = base, self.org_module.bias
        if bias is not None:
            own = base - bias.to(base.dtype).view(shape)
        stretch = self._stretch()
        detour = self._detour(x, dtype, self.scale)
        # Stretch minus one is taken in float32: in 16 bits the difference of the sums would be mostly rounding.
        change = own * (stretch - 1).to(dtype).view(shape) + detour * stretch.to(dtype).view(shape)
        multiplier = self._each_sample(x, 1.0)
        return base + (change if isinstance(multiplier, float) and multiplier == 1 else change * multiplier)

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What the module adds to the layer's weight, in float32 and in the weight's shape."""
        weight = self.org_module.weight.detach().float()
        product = self._product(self._down, self._up, self.scale)
        return self._stretched(weight, product, self.dora_scale, multiplier) - weight

    def _stretched(
        self, weight: Tensor, product: Tensor, lengths: Tensor, multiplier: float | Tensor | None = None
    ) -> Tensor:
        whole = weight + product
        norms = row_norms(whole).clamp(min=torch.finfo(torch.float32).tiny)
        shape = (-1, *[1] * (weight.dim() - 1))
        whole = whole * (lengths.detach().float().flatten().to(weight.device) / norms).view(shape)
        return weight + (whole - weight) * (self.multiplier if multiplier is None else multiplier)

    def _changed(self, weight: Tensor, product: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        lengths = weights.get(DORA_SCALE)
        if lengths is None:
            return super()._changed(weight, product, weights)
        return self._stretched(weight, product, lengths)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept the lengths of a linear layer for a 1x1 convolution and the reverse."""
        lengths = state_dict.get(prefix + DORA_SCALE)
        if lengths is not None:
            if lengths.shape[0] != self.dora_scale.shape[0] or lengths.numel() != self.dora_scale.numel():
                raise UserError(
                    f"{prefix}{DORA_SCALE} of the file has the shape {list(lengths.shape)}, where one length for each "
                    f"of {self.dora_scale.shape[0]} outputs is needed.",
                    "network_weights",
                    hint="LyCORIS made it with wd_on_output=False: go on with network_module lycoris.kohya.",
                )
            state_dict[prefix + DORA_SCALE] = lengths.reshape(self.dora_scale.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def keep_present_lengths(self) -> None:
        """Take the lengths that the present matrices give, so that the module does what a plain LoRA of them does."""
        self.dora_scale.data = self._norms().view(self.dora_scale.shape)
