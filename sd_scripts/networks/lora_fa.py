"""LoRA-FA (arXiv 2308.03303): the down projections stay as they were drawn, only the up projections learn.

A step then keeps the few inner activations of a layer and not its input. The file is that of a plain LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.arguments import (
    BLOCK_RATES,
    BLOCK_SIZES,
    CONVOLUTIONS,
    DROPOUTS,
    PLUS,
    checked,
    given_weights,
    stand_in_dropout,
)
from sd_scripts.networks.lora import LoRANetwork, is_sdxl
from sd_scripts.networks.lora_arguments import DEFAULT_ALPHA, LoRADrops, LoRASizes, read_arguments
from sd_scripts.networks.lora_files import refuse_other_kinds, sizes_in
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_optimizer import Groups
from sd_scripts.networks.norms import limit_norms, product_norm
from sd_scripts.schema.errors import UserError

NAME = "networks.lora_fa"
KNOWN = (*CONVOLUTIONS, *DROPOUTS, *PLUS, *BLOCK_RATES, *BLOCK_SIZES)


class LoRAFAModule(LoRAModule):
    """A LoRA module whose `lora_down` is drawn once, with a standard deviation of sqrt(2 / (in + rank))."""

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        super()._make_layers(layer)
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        nn.init.normal_(self.lora_down.weight, std=math.sqrt(2 / (inputs + self.lora_dim)))

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1."""
        return product_norm(self.lora_up.weight, self.lora_down.weight) * self.scale**2

    def shrink(self, ratio: float) -> None:
        """Make the change of the weight smaller; the down projection has to stay."""
        self.lora_up.weight.mul_(ratio)


class LoRAFANetwork(LoRANetwork):
    """A LoRA network that trains its up projections alone."""

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> LoRAFAModule:
        """The module for one layer."""
        drops = self.drops
        return LoRAFAModule(name, layer, 1.0, dim, alpha, drops.dropout, drops.rank_dropout, drops.module_dropout)

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None = None,
    ) -> Groups:
        """As for LoRA, without the down projections, which get no gradients either."""
        groups, names = super().prepare_optimizer_params(text_encoder_lr, unet_lr, default_lr)
        fixed = {id(lora.lora_down.weight) for lora in self.loras}
        kept: list[dict[str, Any]] = []
        kept_names: list[str] = []
        for group, name in zip(groups, names):
            parameters = [parameter for parameter in group["params"] if id(parameter) not in fixed]
            if parameters:
                kept.append({**group, "params": parameters})
                kept_names.append(name)
        for lora in self.loras:
            lora.lora_down.weight.requires_grad_(False)
        return kept, kept_names

    def apply_max_norm_regularization(
        self, max_norm_value: float, device: torch.device | str | None = None
    ) -> tuple[int, float, float]:
        """Limit every module's norm by its up projection; (modules scaled, mean norm, greatest norm)."""
        return limit_norms(self.loras, max_norm_value)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> LoRAFANetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    given = checked(kwargs, NAME, KNOWN)
    dropout = stand_in_dropout(kwargs, NAME, neuron_dropout)
    read = read_arguments(given, network_dim, network_alpha, dropout, is_sdxl(unet))
    return LoRAFANetwork(text_encoder, unet, multiplier, read.sizes, read.drops, read.rates)


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LoRAFANetwork, dict[str, Tensor]]:
    """A network with the ranks and alphas of a LoRA file, not yet filled with its weights; and the weights."""
    weights = given_weights(file, weights_sd)
    refuse_other_kinds(weights, file)
    sizes = sizes_in(weights)
    if not sizes:
        raise UserError(f"'{file}' holds no LoRA of this kind (no lora_down.weight).", "network_weights")
    neuron_dropout = kwargs.pop("neuron_dropout", None)
    sdxl = is_sdxl(unet)
    read = read_arguments(checked(kwargs, NAME, KNOWN), None, DEFAULT_ALPHA, neuron_dropout, sdxl)
    drops = LoRADrops() if for_inference else read.drops
    network = LoRAFANetwork(text_encoder, unet, multiplier, LoRASizes(by_name=sizes, sdxl=sdxl), drops, read.rates)
    return network, weights
