"""LoKr (arXiv 2309.14859): the weight's change is a Kronecker product of a small and a large matrix.

    change = w1 (x) w2 * alpha / rank        w1 [a, c], w2 [b, d] with out = a * b and in = c * d

Files hold `<name>.lokr_w1`, and `.lokr_w2` or its factors `.lokr_w2_a` [b, rank] and `.lokr_w2_b` [rank, d], as LyCORIS
writes them; w1 may be in factors, too. A convolution's kernel belongs to w2: flattened behind d, or, decomposed by
Tucker, in `.lokr_t2`. Where both matrices are whole there is no rank, and the scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.arguments import given_weights, switch, whole_number
from sd_scripts.networks.change_module import ChangeModule, conv_settings
from sd_scripts.networks.change_network import ChangeNetwork, Settings, modules_in, read_settings
from sd_scripts.networks.loha import tucker
from sd_scripts.networks.lora import is_sdxl
from sd_scripts.schema.errors import UserError

NAME = "networks.lokr"
KNOWN = ("use_tucker", "factor", "decompose_both")
TENSORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
EVEN = -1


@dataclass(frozen=True)
class Form:
    """How a module is built: the sizes of w1 [a, c], and which of the two matrices are in factors.

    `core` says whether the factors of w2 have a Tucker core between them.
    """

    small: tuple[int, int]
    small_in_factors: bool = False
    large_in_factors: bool = False
    core: bool = False


@dataclass(frozen=True)
class Plan:
    """What the arguments say about the forms; `by_name` are those that a file has."""

    factor: int = EVEN
    use_tucker: bool = False
    decompose_both: bool = False
    by_name: Mapping[str, Form] | None = None

    def form(self, name: str, layer: nn.Linear | nn.Conv2d, rank: int) -> Form:
        """The form of a layer's module: a matrix is in factors where these are smaller than itself."""
        if self.by_name is not None:
            return self.by_name[name]
        outputs, inputs, *kernel = layer.weight.shape
        (a, b), (c, d) = split(outputs, self.factor), split(inputs, self.factor)
        in_factors = rank < max(b, d) / 2
        core = in_factors and self.use_tucker and math.prod(kernel) > 1
        return Form((a, c), self.decompose_both and rank < max(a, c) / 2, in_factors, core)


def split(size: int, factor: int) -> tuple[int, int]:
    """Two numbers, the smaller one first, whose product is `size`.

    One of them is `factor` where that divides; else the smaller one is the greatest divisor that is neither above
    `factor` nor above the square root. EVEN asks for the most even split.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next(number for number in range(max(most, 1), 0, -1) if size % number == 0)
    return small, size // small


class LoKrModule(ChangeModule):
    """LoKr for one layer; the product itself is never made while training."""

    kind = "lokr"
    plus = "lokr_w1"

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Linear | nn.Conv2d,
        lora_dim: int,
        alpha: float,
        form: Form,
        dropouts: tuple[float | None, float | None, float | None] = (None, None, None),
    ) -> None:
        # Plain attributes may come before the base class, which makes the layers.
        self.form = form
        super().__init__(lora_name, org_module, 1.0, lora_dim, alpha, *dropouts)
        if self._whole:
            # As LyCORIS has it: alpha stands for the rank where there is none.
            self.alpha.fill_(lora_dim)
        self.scale = self.scale_for_alpha(float(self.alpha))

    @property
    def _whole(self) -> bool:
        return not (self.form.small_in_factors or self.form.large_in_factors)

    def scale_for_alpha(self, alpha: float) -> float:
        """alpha / rank, or 1 where both matrices are whole."""
        return 1.0 if self._whole else super().scale_for_alpha(alpha)

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        outputs, inputs, *kernel = layer.weight.shape
        rank, form = self.lora_dim, self.form
        a, c = form.small
        b, d = outputs // a, inputs // c
        shapes: dict[str, tuple[int, ...]] = {}
        if form.small_in_factors:
            shapes |= {"lokr_w1_a": (a, rank), "lokr_w1_b": (rank, c)}
        else:
            shapes["lokr_w1"] = (a, c)
        if not form.large_in_factors:
            shapes["lokr_w2"] = (b, d, *kernel)
        elif form.core:
            shapes |= {"lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, b), "lokr_w2_b": (rank, d)}
        else:
            shapes |= {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * math.prod(kernel))}
        zero = "lokr_w2_b" if form.large_in_factors else "lokr_w2"
        for name, shape in shapes.items():
            value = torch.zeros(shape)
            if name != zero:
                nn.init.kaiming_uniform_(value, a=math.sqrt(5))
            self.register_parameter(name, nn.Parameter(value))

    def _small(self) -> Tensor:
        """w1 [a, c]."""
        return self.lokr_w1_a @ self.lokr_w1_b if self.form.small_in_factors else self.lokr_w1

    def _large(self) -> Tensor:
        """w2 [b, d] or [b, d, kh, kw]."""
        if not self.form.large_in_factors:
            return self.lokr_w2
        if self.form.core:
            return tucker(self.lokr_t2, self.lokr_w2_a, self.lokr_w2_b)
        outputs, inputs, *kernel = self.org_module.weight.shape
        b, d = outputs // self.form.small[0], inputs // self.form.small[1]
        return (self.lokr_w2_a @ self.lokr_w2_b).view(b, d, *kernel)

    def _added(self, x: Tensor, base: Tensor) -> Tensor:
        # (w1 (x) w2) x: the input as c vectors of length d, each through w2, then mixed by w1.
        a, c = self.form.small
        small = self._small().to(x.dtype)
        settings = conv_settings(self.org_module)
        if settings is not None:
            pieces = x.reshape(x.shape[0] * c, -1, *x.shape[2:])
            inner = F.conv2d(pieces, self._large().to(x.dtype), None, *settings)
            mixed = torch.matmul(small, inner.reshape(x.shape[0], c, -1))
            return mixed.view(x.shape[0], -1, *inner.shape[2:])
        inner = self._through_large(x.reshape(*x.shape[:-1], c, -1))
        return F.linear(inner.mT, small).mT.reshape(*x.shape[:-1], -1)

    def _through_large(self, pieces: Tensor) -> Tensor:
        """pieces [.., d] through w2, by its factors where that is less work."""
        if self.form.large_in_factors:
            b, d = self.lokr_w2_a.shape[0], self.lokr_w2_b.shape[1]
            if self.lora_dim * (b + d) < b * d:
                inner = F.linear(pieces, self.lokr_w2_b.to(pieces.dtype))
                return F.linear(inner, self.lokr_w2_a.to(pieces.dtype))
        return F.linear(pieces, self._large().to(pieces.dtype))

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What the module adds to the layer's weight, in float32 and in its shape."""
        small, large = self._small().detach().float(), self._large().detach().float()
        change = torch.kron(small.view(*small.shape, *[1] * (large.dim() - 2)), large) * self.scale
        return change * (self.multiplier if multiplier is None else multiplier)

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1: that of a product is the product."""
        small, large = self._small().detach().double(), self._large().detach().double()
        return small.square().sum() * large.square().sum() * self.scale**2

    def shrink(self, ratio: float) -> None:
        """Make the change of the weight smaller, by both matrices alike."""
        for number, in_factors in (("1", self.form.small_in_factors), ("2", self.form.large_in_factors)):
            name = f"lokr_w{number}_a" if in_factors else f"lokr_w{number}"
            getattr(self, name).mul_(ratio**0.5)


class LoKrNetwork(ChangeNetwork):
    """LoKr modules on the layers that networks.lora takes."""

    name = NAME
    tensors = (*TENSORS, "alpha")

    def __init__(
        self,
        text_encoder: nn.Module | Sequence[nn.Module] | None,
        unet: nn.Module | None,
        multiplier: float,
        settings: Settings,
        plan: Plan,
    ) -> None:
        # The base class makes the modules.
        self._plan = plan
        super().__init__(text_encoder, unet, multiplier, settings)

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> LoKrModule:
        """The module for one layer."""
        return LoKrModule(name, layer, dim, alpha, self._plan.form(name, layer, dim), self.dropouts)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> LoKrNetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    settings, own = read_settings(NAME, KNOWN, kwargs, network_dim, network_alpha, neuron_dropout, is_sdxl(unet))
    factor = whole_number(own, "factor", EVEN, EVEN)
    if factor == 0:
        raise UserError("network_args factor must be -1 (the most even split) or at least 1, not 0.", "factor")
    plan = Plan(factor, switch(own, "use_tucker"), switch(own, "decompose_both"))
    return LoKrNetwork(text_encoder, unet, multiplier, settings, plan)


def _form_in_file(weights: Mapping[str, Tensor], name: str, file: object) -> tuple[Form, int]:
    """The form and rank of a module in a file. Raises UserError for one that lacks a matrix."""
    own = {tensor: weights.get(f"{name}.{tensor}") for tensor in TENSORS}
    w1, w1_a, w1_b, w2, w2_a, w2_b, core = (own[tensor] for tensor in TENSORS)
    if (w1 is None and (w1_a is None or w1_b is None)) or (w2 is None and (w2_a is None or w2_b is None)):
        raise UserError(f"'{file}' is incomplete at {name}.", "network_weights")
    rank = w2_b.shape[0] if w2 is None and w2_b is not None else w1_b.shape[0] if w1_b is not None else 1
    if w1 is not None:
        small = (w1.shape[0], w1.shape[1])
    else:
        assert w1_a is not None and w1_b is not None
        small = (w1_a.shape[0], w1_b.shape[1])
    return Form(small, w1 is None, w2 is None, core is not None), rank


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LoKrNetwork, dict[str, Tensor]]:
    """A network with the ranks, alphas and forms of a file, not yet filled with its weights; and the weights.

    Training arguments among `kwargs` (dropouts, LoRA+, rates) keep their effect.
    """
    weights = given_weights(file, weights_sd)
    forms: dict[str, Form] = {}
    by_name: dict[str, tuple[int, float]] = {}
    for name in modules_in(weights, file, NAME, LoKrNetwork.tensors):
        forms[name], rank = _form_in_file(weights, name, file)
        by_name[name] = (rank, float(weights.get(f"{name}.alpha", rank)))
    neuron_dropout = kwargs.pop("neuron_dropout", None)
    settings, _ = read_settings(NAME, KNOWN, kwargs, None, None, neuron_dropout, is_sdxl(unet))
    settings = settings.for_file(by_name, for_inference)
    return LoKrNetwork(text_encoder, unet, multiplier, settings, Plan(by_name=forms)), weights
