"""LoHa (FedPara, arXiv 2108.06098): the weight's change is the elementwise product of two low-rank matrices.

    change = (w1_a x w1_b) * (w2_a x w2_b) * alpha / rank

Files hold `<name>.hada_w1_a` [out, rank], `.hada_w1_b` [rank, in], the same for `w2`, and `.alpha`, as LyCORIS writes
them; a convolution's kernel is flattened into `in`, or, decomposed by Tucker, stands in `.hada_t1` and `.hada_t2`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.arguments import given_weights, switch
from sd_scripts.networks.change_module import ChangeModule, MadeTwice, conv_settings
from sd_scripts.networks.change_network import ChangeNetwork, Settings, modules_in, read_settings
from sd_scripts.networks.lora import is_sdxl
from sd_scripts.networks.norms import product_norm
from sd_scripts.schema.errors import UserError

NAME = "networks.loha"
KNOWN = ("use_tucker",)
MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")


def tucker(core: Tensor, to_out: Tensor, to_in: Tensor) -> Tensor:
    """core [r, s, kh, kw], to_out [r, out], to_in [s, in] -> [out, in, kh, kw]."""
    return torch.einsum("rshw,ro,si->oihw", core, to_out, to_in)


class LoHaModule(ChangeModule):
    """LoHa for one layer; with `decomposed` a larger kernel is decomposed by Tucker."""

    kind = "loha"
    plus = "hada_w2_a"

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Linear | nn.Conv2d,
        lora_dim: int,
        alpha: float,
        decomposed: bool = False,
        dropouts: tuple[float | None, float | None, float | None] = (None, None, None),
    ) -> None:
        # Plain attributes may come before the base class, which makes the layers.
        self.decomposed = decomposed and math.prod(org_module.weight.shape[2:]) > 1
        super().__init__(lora_name, org_module, 1.0, lora_dim, alpha, *dropouts)

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        outputs, inputs, *kernel = layer.weight.shape
        rank = self.lora_dim
        inputs = inputs if self.decomposed else inputs * math.prod(kernel)
        # As LyCORIS starts: the second half is zero, the first is not, so that both learn from the first steps.
        for number, spread in (("1", 0.1), ("2", 0.0)):
            to_out = torch.empty((rank, outputs) if self.decomposed else (outputs, rank))
            self.register_parameter(f"hada_w{number}_a", nn.Parameter(to_out.normal_(std=spread)))
            self.register_parameter(f"hada_w{number}_b", nn.Parameter(torch.empty(rank, inputs).normal_()))
            if self.decomposed:
                core = nn.Parameter(torch.empty(rank, rank, *kernel).normal_(std=0.1))
                self.register_parameter(f"hada_t{number}", core)

    def _factors(self) -> list[Tensor]:
        return [getattr(self, name) for name in (MATRICES + CORES if self.decomposed else MATRICES)]

    def _made(self, *factors: Tensor) -> Tensor:
        """The change before its scale, in the shape of the layer's weight."""
        if self.decomposed:
            out_1, in_1, out_2, in_2, core_1, core_2 = factors
            return tucker(core_1, out_1, in_1) * tucker(core_2, out_2, in_2)
        out_1, in_1, out_2, in_2 = factors
        return ((out_1 @ in_1) * (out_2 @ in_2)).view(self.org_module.weight.shape)

    def _added(self, x: Tensor, base: Tensor) -> Tensor:
        outputs, *fan_in = self.org_module.weight.shape
        inputs = math.prod(fan_in)
        if not self.decomposed and self.lora_dim**2 * (outputs + inputs) < outputs * inputs:
            return self._as_lora(x)
        return MadeTwice.apply(x, self._made, conv_settings(self.org_module), *self._factors())

    def _as_lora(self, x: Tensor) -> Tensor:
        """The same through a LoRA of rank * rank, which is quicker while that is small."""
        down, up = (matrix.to(x.dtype) for matrix in self._pairs())
        settings = conv_settings(self.org_module)
        if settings is None:
            return F.linear(F.linear(x, down), up)
        inner = F.conv2d(x, down.view(-1, *self.org_module.weight.shape[1:]), None, *settings)
        return torch.matmul(up, inner.flatten(2)).view(x.shape[0], -1, *inner.shape[2:])

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """down [rank * rank, in] and up [out, rank * rank] of a LoRA that is the same.

        An element of the product of two sums over ranks is one sum over all pairs of them.
        """
        out_1, in_1, out_2, in_2 = self._factors()
        return (in_1[:, None] * in_2[None]).flatten(0, 1), (out_1[:, :, None] * out_2[:, None]).flatten(1)

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1."""
        if self.decomposed or self.lora_dim**2 > min(self.hada_w1_a.shape[0], self.hada_w1_b.shape[1]):
            return super().squared_norm()
        down, up = self._pairs()
        return product_norm(up, down) * self.scale**2

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What the module adds to the layer's weight, in float32 and in its shape."""
        change = self._made(*(factor.detach().float() for factor in self._factors())) * self.scale
        return change * (self.multiplier if multiplier is None else multiplier)

    def shrink(self, ratio: float) -> None:
        """Make the change of the weight smaller, by both halves alike."""
        for name in ("hada_w1_a", "hada_w2_a"):
            getattr(self, name).mul_(ratio**0.5)


class LoHaNetwork(ChangeNetwork):
    """LoHa modules on the layers that networks.lora takes."""

    name = NAME
    tensors = (*MATRICES, *CORES, "alpha")

    def __init__(
        self,
        text_encoder: nn.Module | Sequence[nn.Module] | None,
        unet: nn.Module | None,
        multiplier: float,
        settings: Settings,
        decomposed: bool | frozenset[str],
    ) -> None:
        # The base class makes the modules. A file says of each module whether it is decomposed.
        self._decomposed = decomposed
        super().__init__(text_encoder, unet, multiplier, settings)

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> LoHaModule:
        """The module for one layer."""
        decomposed = self._decomposed if isinstance(self._decomposed, bool) else name in self._decomposed
        return LoHaModule(name, layer, dim, alpha, decomposed, self.dropouts)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> LoHaNetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    settings, own = read_settings(NAME, KNOWN, kwargs, network_dim, network_alpha, neuron_dropout, is_sdxl(unet))
    return LoHaNetwork(text_encoder, unet, multiplier, settings, switch(own, "use_tucker"))


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LoHaNetwork, dict[str, Tensor]]:
    """A network with the ranks, alphas and forms of a file, not yet filled with its weights; and the weights.

    Training arguments among `kwargs` (dropouts, LoRA+, rates) keep their effect.
    """
    weights = given_weights(file, weights_sd)
    found = modules_in(weights, file, NAME, LoHaNetwork.tensors)
    by_name: dict[str, tuple[int, float]] = {}
    for name, tensors in found.items():
        if not set(MATRICES) <= set(tensors):
            raise UserError(f"'{file}' is incomplete at {name}.", "network_weights")
        rank = weights[f"{name}.hada_w1_b"].shape[0]
        by_name[name] = (rank, float(weights.get(f"{name}.alpha", rank)))
    decomposed = frozenset(name for name, tensors in found.items() if CORES[0] in tensors)
    neuron_dropout = kwargs.pop("neuron_dropout", None)
    settings, _ = read_settings(NAME, KNOWN, kwargs, None, None, neuron_dropout, is_sdxl(unet))
    settings = settings.for_file(by_name, for_inference)
    return LoHaNetwork(text_encoder, unet, multiplier, settings, decomposed), weights
