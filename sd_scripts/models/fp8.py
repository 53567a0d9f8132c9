"""Frozen weights kept in 8-bit floats and widened for each call, so that a network can be trained on top.

A quarter of the memory of float32, half of float16. Matrix products run in the type of the input; for the backward
pass only the 8-bit weight is kept, not its widened copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn


def _compute_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Linear(torch.autograd.Function):
    """x [.., in] times a frozen 8-bit matrix [out, in]; the gradient reaches x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight.to(grads[0].dtype), None, None


class _Conv2d(torch.autograd.Function):
    """A convolution with a frozen 8-bit kernel; the gradient reaches x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings, ctx.shape = settings, x.shape
        return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        grad = grads[0]
        return torch.nn.grad.conv2d_input(ctx.shape, weight.to(grad.dtype), grad, *ctx.settings), None, None, None


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    dtype = _compute_type(x)
    with torch.autocast(x.device.type, enabled=False):
        return _Linear.apply(x.to(dtype), module.weight, module.bias)


def _conv(module: nn.Conv2d, x: Tensor) -> Tensor:
    settings = (module.stride, module.padding, module.dilation, module.groups)
    dtype = _compute_type(x)
    with torch.autocast(x.device.type, enabled=False):
        return _Conv2d.apply(x.to(dtype), module.weight, module.bias, settings)


def store_in_fp8(model: nn.Module) -> int:
    """Turn the frozen weights of all linear layers and 2-D convolutions of `model` into 8-bit floats, in place.

    Norms, embeddings and biases keep their type. Attach networks afterwards: they wrap the `forward` set here.

    Returns:
        How many layers were changed.

    Raises:
        RuntimeError: a network is attached already (its hook would be lost).
    """
    changed = 0
    for module in model.modules():
        if type(module) not in (nn.Linear, nn.Conv2d) or module.weight.dtype == FP8:
            continue
        if "forward" in module.__dict__:
            raise RuntimeError("fp8 storage has to be chosen before a network is attached")
        module.weight.requires_grad_(False)
        module.weight.data = module.weight.data.to(FP8)
        call = _linear if isinstance(module, nn.Linear) else _conv
        module.forward = functools.partial(call, module)
        changed += 1
    return changed
