"""One LoRA module: a low-rank detour around a frozen linear or convolution layer.

    y = layer(x) + up(down(x)) * multiplier * alpha / rank

The module takes the place of the layer's `forward`; the layer itself stays where it is in the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FusedLinear(torch.autograd.Function):
    """Frozen linear layer and its LoRA in one step.

    The detour is added by the matrix product that computes it, forward and backward, so neither direction
    makes a second tensor of the size of the output or input. All tensors have one dtype. `scale` is a
    number, or a tensor that broadcasts over the batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float | Tensor
    ) -> Tensor:
        """x [..., in] -> [..., out]; down [rank, in], up [out, rank]."""
        y = F.linear(x, weight, bias)
        inner = F.linear(x, down) * scale
        y.view(-1, y.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), up.t())
        # Only the gradient of `down` needs the input: LoRA-FA, whose `down` is fixed, saves that memory.
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, down, up, inner)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x, down and up; the frozen layer gets none."""
        x, weight, down, up, inner = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_inner = (F.linear(grad, up.t()) * ctx.scale).reshape(-1, up.shape[1])
        grad_up = rows.t().mm(inner.reshape(-1, inner.shape[-1])) if ctx.needs_input_grad[4] else None
        grad_down = to_inner.t().mm(x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[3] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = rows.mm(weight).addmm_(to_inner, down).view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_down, grad_up, None


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product: [B, in, H, W] and [out, in, 1, 1] -> [B, out, H, W].

    With the few channels of a rank, torch's convolution takes a slow path on a CPU: 5 % of a step of SD 1.5.
    """
    return torch.matmul(weight.flatten(1), x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])


def stored_alpha(alpha: Tensor | None, rank: int) -> float:
    """The alpha that a file means: where it has none, or 0, the rank."""
    return (0.0 if alpha is None else float(alpha)) or float(rank)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a layer works in for this input: autocast's where it is on, else the input's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class LoRAModule(nn.Module):
    """LoRA for one `nn.Linear` or `nn.Conv2d`.

    Random numbers are drawn in kohya's order (both layers' default initialisation, then the down
    projection again), so a seed means the same weights. `alpha` None or 0 stands for the rank.
    `dropout` acts on the inner activations, `rank_dropout` on whole ranks per sample, and
    `module_dropout` on the whole detour.
    """

    alpha: Tensor
    # What the names of the parameters begin with that LoRA+ gives a higher rate.
    plus = "lora_up"

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Linear | nn.Conv2d,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        alpha: float | Tensor | None = 1,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.lora_name = lora_name
        self.lora_dim = lora_dim
        self.multiplier: float | Tensor = multiplier
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout
        self._make_layers(org_module)
        if isinstance(alpha, Tensor):
            alpha = alpha.detach().float().item()
        alpha = alpha or lora_dim
        # An integer stays an integer: kohya stores int64 when no alpha was asked for.
        self.register_buffer("alpha", torch.tensor(alpha))
        self.scale = alpha / lora_dim
        # In tuples, since the layer belongs to the model: it must not appear among our parameters.
        self._layer = (org_module,)
        self._org_forward: tuple[Any] | None = None
        self._plain = False
        self._backup: Tensor | None = None

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.lora_down: nn.Linear | nn.Conv2d
        self.lora_up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            self.lora_down = nn.Conv2d(
                layer.in_channels, self.lora_dim, kernel, stride, padding, dilation=layer.dilation, bias=False
            )
            self.lora_up = nn.Conv2d(self.lora_dim, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, self.lora_dim, bias=False)
            self.lora_up = nn.Linear(self.lora_dim, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    @property
    def org_module(self) -> nn.Linear | nn.Conv2d:
        """The layer that this module is wrapped around."""
        return self._layer[0]

    @property
    def _down(self) -> Tensor:
        return self.lora_down.weight

    @property
    def _up(self) -> Tensor:
        return self.lora_up.weight

    def apply_to(self) -> None:
        """Take the place of the layer's forward."""
        layer = self.org_module
        self._plain = type(layer) in (nn.Linear, nn.Conv2d) and "forward" not in vars(layer)
        self._org_forward = (layer.forward,)
        layer.forward = self.forward

    def detach_from(self) -> None:
        """Give the layer its own forward back."""
        if self._org_forward is not None:
            self.org_module.forward = self._org_forward[0]
            if self._plain:
                del self.org_module.forward
            self._org_forward = None

    def _base(self, x: Tensor) -> Tensor:
        return self._org_forward[0](x) if self._org_forward else self.org_module(x)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the detour added; shapes as the layer's own."""
        multiplier = self.multiplier
        if isinstance(multiplier, (int, float)) and multiplier == 0:
            return self._base(x)
        if self.module_dropout is not None and self.training and torch.rand(1) < self.module_dropout:
            return self._base(x)
        return self._with_detour(x, compute_dtype(x))

    def _with_detour(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Layer and detour, in one step where both are plain matrix products."""
        layer = self.org_module
        dropping = self.training and (self.dropout is not None or self.rank_dropout is not None)
        if (
            self._plain
            and not dropping
            and isinstance(layer, nn.Linear)
            and not layer.weight.requires_grad
            and layer.weight.dtype in (dtype, torch.float32)
        ):
            bias = None if layer.bias is None else layer.bias.to(dtype)
            down, up = self._down.to(dtype), self._up.to(dtype)
            return _FusedLinear.apply(x.to(dtype), layer.weight.to(dtype), bias, down, up, self._scale_for(x))
        x = x.to(dtype)
        base = self._base(x)
        detour = self._detour(x, dtype, self._scale_for(x))
        # A convolution's output is kept by nobody, so the sum may take its memory.
        in_place = self._plain and isinstance(layer, nn.Conv2d) and base.dtype == detour.dtype
        return base.add_(detour) if in_place else base + detour

    def _detour(self, x: Tensor, dtype: torch.dtype, scale: float | Tensor) -> Tensor:
        """up(down(x)) * scale with the dropouts, also for convolutions and layers with a forward of their own."""
        weight = self._down.to(dtype)
        if isinstance(self.lora_down, nn.Conv2d):
            down = self.lora_down
            if down.kernel_size == (1, 1) and down.stride == (1, 1) and down.padding == (0, 0):
                inner = _pointwise(x, weight)
            else:
                inner = F.conv2d(x, weight, None, down.stride, down.padding, down.dilation)
        else:
            inner = F.linear(x, weight)
        if self.training and self.dropout is not None:
            inner = self._drop_neurons(inner, self.dropout)
        if self.training and self.rank_dropout is not None:
            inner, scale = self._drop_ranks(inner, scale)
        up = self._up.to(dtype)
        return _pointwise(inner * scale, up) if up.dim() == 4 else F.linear(inner * scale, up)

    def _drop_neurons(self, inner: Tensor, chance: float) -> Tensor:
        """Ordinary dropout on the inner activations."""
        return F.dropout(inner, chance)

    def _kept_ranks(self, samples: int, device: torch.device) -> Tensor:
        """Which ranks each sample keeps, [samples, rank]."""
        assert self.rank_dropout is not None
        return torch.rand((samples, self.lora_dim), device=device) > self.rank_dropout

    def _drop_ranks(self, inner: Tensor, scale: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Zero whole ranks per sample and scale the others up, so that the expectation stays."""
        assert self.rank_dropout is not None
        mask = self._kept_ranks(inner.shape[0], inner.device)
        if inner.dim() == 4:
            mask = mask[:, :, None, None]
        elif inner.dim() == 3:
            mask = mask[:, None]
        return inner * mask, scale * (1.0 / (1.0 - self.rank_dropout))

    def _scale_for(self, x: Tensor) -> float | Tensor:
        """multiplier * alpha / rank, as a number or shaped [B, 1, ...] when each sample has its own."""
        return self._each_sample(x, self.scale)

    def _each_sample(self, x: Tensor, factor: float) -> float | Tensor:
        """The multiplier times a factor, shaped [B, 1, ...] when each sample has its own."""
        if not isinstance(self.multiplier, Tensor):
            return self.multiplier * factor
        each = self.multiplier.to(x.device, compute_dtype(x)) * factor
        if each.dim() == 0:
            return each
        # Long captions are encoded in several rows of one sample, which follow one another.
        each = each.repeat_interleave(x.shape[0] // each.shape[0]) if x.shape[0] != each.shape[0] else each
        return each.view(-1, *([1] * (x.dim() - 1)))

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What the module adds to the layer's weight, in float32 and in the weight's shape."""
        factor = self.multiplier if multiplier is None else multiplier
        return self._product(self._down, self._up, self.scale) * factor

    def _product(self, down: Tensor, up: Tensor, scale: float) -> Tensor:
        """up x down times a number, in float32 and in the shape of the layer's weight."""
        product = up.detach().float().flatten(1) @ down.detach().float().flatten(1)
        return product.view(self.org_module.weight.shape) * scale

    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """As `delta`: the name of kohya's protocol."""
        return self.delta(multiplier)

    @property
    def file_rank(self) -> int:
        """The rank that this module has in a file."""
        return self.lora_dim

    def prepare(self) -> None:
        """What has to be worked out from the layer's weight before training."""

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors as a file holds them, by their names behind the module's."""
        return dict(self.state_dict())

    def _changed(self, weight: Tensor, product: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The layer's weight with a product of matrices in it, at the module's multiplier."""
        return weight + product * self.multiplier

    @torch.no_grad()
    def merge_to(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        """Add a file's weights (`lora_down.weight`, `lora_up.weight`, `alpha`) to the layer for good."""
        weight = self.org_module.weight
        down, up = weights["lora_down.weight"], weights["lora_up.weight"]
        scale = stored_alpha(weights.get("alpha"), down.shape[0]) / down.shape[0]
        where = device or weight.device
        product = self._product(down.to(where), up.to(where), scale)
        merged = self._changed(weight.detach().to(where, torch.float32), product, weights)
        # The parameter stays the same object, since the model's other views hold it too.
        weight.data = merged.to(weight.device, dtype or weight.dtype)

    def backup(self) -> None:
        """Keep a copy of the layer's weight on the CPU, unless there is one."""
        if self._backup is None:
            self._backup = self.org_module.weight.detach().to("cpu", copy=True)

    def restore(self) -> None:
        """Put the kept weight back."""
        if self._backup is not None:
            self.org_module.weight.data.copy_(self._backup)
            self._backup = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept linear weights for a 1x1 convolution and the reverse, and a file without alpha or with 0."""
        present = False
        for name, own in (("lora_down.weight", self.lora_down.weight), ("lora_up.weight", self.lora_up.weight)):
            value = state_dict.get(prefix + name)
            if value is None:
                continue
            present = True
            if value.shape != own.shape and value.shape[:2] == own.shape[:2] and value.numel() == own.numel():
                state_dict[prefix + name] = value.reshape(own.shape)
        name = f"{prefix}alpha"
        if present or name in state_dict:
            # The file's alpha belongs to the file's weights; keeping our scale would change their effect.
            alpha = stored_alpha(state_dict.get(name), self.lora_dim)
            if name not in state_dict or not float(state_dict[name]):
                state_dict[name] = torch.tensor(alpha)
            self.scale = alpha / self.lora_dim
        super()._load_from_state_dict(state_dict, prefix, *rest)
