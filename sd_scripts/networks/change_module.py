"""What the modules of OFT, LoHa and LoKr share: they put something of their own beside a layer's output.

Merging goes by `changes`, which works on a file's tensors alone, so what is merged and what a module computes are
written down apart, and tested against each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.changes import Misfit, changed
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.schema.errors import UserError

ConvSettings = tuple[Any, Any, Any]


class ChangeModule(LoRAModule, ABC):
    """A module whose parameters are its own, on one `nn.Linear` or `nn.Conv2d`.

    `dropout` acts on single values of what is added, `rank_dropout` on whole outputs per sample (there are no inner
    activations to drop), `module_dropout` on all of it.
    """

    kind = ""

    @abstractmethod
    def _added(self, x: Tensor, base: Tensor) -> Tensor:
        """What the module adds for input `x` and the layer's own output `base`, before scale and dropouts."""

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1."""
        return self.delta(1.0).double().square().sum()

    def _with_detour(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        base = self._base(x)
        with torch.autocast(x.device.type, enabled=False):
            added = self._added(x, base)
            if self.training and self.dropout is not None:
                added = F.dropout(added, self.dropout)
            scale = self._scale_for(x)
            if self.training and self.rank_dropout is not None:
                added = added * self._kept_outputs(added)
            return base + added * scale

    def _kept_outputs(self, added: Tensor) -> Tensor:
        """1 / chance for the outputs that a sample keeps, 0 for the others; shaped to multiply `added`."""
        assert self.rank_dropout is not None
        axis = 1 if added.dim() == 4 else added.dim() - 1
        shape = [size if place in (0, axis) else 1 for place, size in enumerate(added.shape)]
        kept = torch.rand(shape, device=added.device) > self.rank_dropout
        return kept.to(added.dtype) / (1 - self.rank_dropout)

    @torch.no_grad()
    def merge_to(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        """Put a file's tensors of this module into the layer for good. Raises UserError when they do not fit."""
        weight = self.org_module.weight
        where = torch.device(device or weight.device)
        tensors = {name: value.to(where) for name, value in weights.items()}
        try:
            # No kind here has anything to do with a bias.
            merged, _ = changed(tensors, weight.detach().to(where, torch.float32), None, self._number(), self.kind)
        except Misfit as error:
            raise UserError(f"The network's module {self.lora_name} {error}.", "network_weights") from error
        weight.data = merged.to(weight.device, dtype or weight.dtype)

    def _number(self) -> float:
        return float(self.multiplier)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept a linear layer's tensors for a 1x1 convolution and the reverse, and a file without alpha."""
        present = False
        for name, own in self.named_parameters(recurse=False):
            value = state_dict.get(prefix + name)
            if value is not None:
                present = True
                if value.numel() == own.numel() and value.shape[:2] == own.shape[:2]:
                    state_dict[prefix + name] = value.reshape(own.shape)
        if present:
            alpha = state_dict.setdefault(prefix + "alpha", torch.tensor(float(self.lora_dim)))
            self.scale = self.scale_for_alpha(float(alpha))
        nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)

    def scale_for_alpha(self, alpha: float) -> float:
        """The number that the change is multiplied by."""
        return (alpha or self.lora_dim) / self.lora_dim


def conv_settings(layer: nn.Module) -> ConvSettings | None:
    """Stride, padding and dilation of a convolution; None for a linear layer."""
    return (layer.stride, layer.padding, layer.dilation) if isinstance(layer, nn.Conv2d) else None


class MadeTwice(torch.autograd.Function):
    """A layer with a weight that is made of factors, once forward and once more backward.

    The weight is as large as the layer's own; keeping it (and what it was made of) for the backward pass would need
    several times the memory of the model.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, make: Callable[..., Tensor], settings: ConvSettings | None, *factors: Tensor
    ) -> Tensor:
        """x [.., in] or [B, in, H, W] through the weight make(*factors), [out, in] or [out, in, kh, kw]."""
        ctx.save_for_backward(x, *factors)
        ctx.make, ctx.settings = make, settings
        weight = make(*factors).to(x.dtype)
        return F.linear(x, weight) if settings is None else F.conv2d(x, weight, None, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x and the factors."""
        x, *factors = ctx.saved_tensors
        grad = grads[0]
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaves = [factor.detach().requires_grad_() for factor in factors]
            made = ctx.make(*leaves)
        weight = made.detach().to(x.dtype)
        if ctx.settings is None:
            grad_x = grad @ weight if ctx.needs_input_grad[0] else None
            grad_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        else:
            shape, settings = weight.shape, ctx.settings
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, *settings) if ctx.needs_input_grad[0] else None
            grad_weight = torch.nn.grad.conv2d_weight(x, shape, grad, *settings)
        return grad_x, None, None, *torch.autograd.grad(made, leaves, grad_weight.to(made.dtype))
