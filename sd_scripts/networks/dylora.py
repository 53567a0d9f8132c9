"""DyLoRA (arXiv 2210.07558): a LoRA whose first ranks are of use without the later ones.

At every step a boundary b is drawn among the multiples of `unit`. The step computes with the first b ranks, scaled by
alpha / b, and only the last `unit` of these learn. Afterwards all ranks are used, or the file is split at any multiple
of `unit`. The file is that of a plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    whole_number,
)
from sd_scripts.networks.lora import LoRANetwork, is_sdxl
from sd_scripts.networks.lora_arguments import (
    DEFAULT_ALPHA,
    DEFAULT_DIM,
    LoRADrops,
    LoRARates,
    LoRASizes,
    read_arguments,
    read_rates,
)
from sd_scripts.networks.lora_files import refuse_other_kinds, sizes_in
from sd_scripts.networks.lora_module import LoRAModule, stored_alpha
from sd_scripts.networks.norms import limit_norms, product_norm
from sd_scripts.schema.errors import UserError

NAME = "networks.dylora"
KNOWN = ("unit", *CONVOLUTIONS, *PLUS)
# Forms send these with every kind of LoRA.
IDLE = (*BLOCK_RATES, *BLOCK_SIZES, *DROPOUTS)


class _Ranks(nn.Module):
    """One projection in blocks of ranks, each a parameter of its own: what gets no gradient is left alone.

    An optimizer with momentum would go on moving the other ranks of a single parameter.
    """

    def __init__(self, weight: Tensor, unit: int, axis: int) -> None:
        super().__init__()
        self.unit = unit
        self.axis = axis
        self.blocks = nn.ParameterList(block.clone() for block in weight.detach().split(unit, axis))

    def upto(self, block: int) -> Tensor:
        """The ranks up to and with a block, which alone is open for gradients."""
        return torch.cat([*(part.detach() for part in self.blocks[:block]), self.blocks[block]], self.axis)

    def whole(self) -> Tensor:
        """All ranks."""
        return torch.cat(list(self.blocks), self.axis)

    def divided(self, weight: Tensor) -> dict[str, Tensor]:
        """A whole projection as the parameters here."""
        return {f"blocks.{number}": part for number, part in enumerate(weight.split(self.unit, self.axis))}


class DyLoRAModule(LoRAModule):
    """A LoRA module in blocks of `unit` ranks; `draw` says which block the next training step is about.

    Outside of training all ranks are used. State dicts hold `lora_down.weight` and `lora_up.weight` in one piece.
    """

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Linear | nn.Conv2d,
        lora_dim: int,
        alpha: float,
        unit: int,
        dropout: float | None = None,
    ) -> None:
        # Plain attributes may come before the base class, which makes the layers.
        self.unit = unit
        self._block = 0
        super().__init__(lora_name, org_module, 1.0, lora_dim, alpha, dropout)
        self.register_state_dict_post_hook(_in_one_piece)

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        whole = LoRAModule(self.lora_name, layer, lora_dim=self.lora_dim)
        self.lora_down, self.lora_up = whole.lora_down, whole.lora_up
        self.lora_down_ranks = _Ranks(self.lora_down.weight, self.unit, 0)
        self.lora_up_ranks = _Ranks(self.lora_up.weight, self.unit, 1)
        # The layers stay for their settings, without weights.
        del self.lora_down.weight, self.lora_up.weight

    def draw(self, position: float) -> None:
        """Choose the block at `position`, from 0 to below 1."""
        self._block = int(position * len(self.lora_down_ranks.blocks))

    @property
    def _down(self) -> Tensor:
        ranks = self.lora_down_ranks
        return ranks.upto(self._block) if self.training else ranks.whole()

    @property
    def _up(self) -> Tensor:
        ranks = self.lora_up_ranks
        return ranks.upto(self._block) if self.training else ranks.whole()

    def _scale_for(self, x: Tensor) -> float | Tensor:
        """As for LoRA, but with the number of ranks that this step computes with."""
        scale = super()._scale_for(x)
        return scale * self.lora_dim / (self.unit * (self._block + 1)) if self.training else scale

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What all ranks together add to the layer's weight, in float32 and in the weight's shape."""
        factor = self.multiplier if multiplier is None else multiplier
        return self._product(self.lora_down_ranks.whole(), self.lora_up_ranks.whole(), self.scale) * factor

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of the weight's change at multiplier 1, with all ranks."""
        return product_norm(self.lora_up_ranks.whole(), self.lora_down_ranks.whole()) * self.scale**2

    def shrink(self, ratio: float) -> None:
        """Make the change of the weight smaller, by both projections alike."""
        for block in (*self.lora_down_ranks.blocks, *self.lora_up_ranks.blocks):
            block.mul_(ratio**0.5)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept what LoRA accepts."""
        present = False
        for name, ranks in _projections(self):
            value = state_dict.pop(f"{prefix}{name}.weight", None)
            if value is None:
                continue
            present = True
            own = ranks.whole()
            if value.numel() == own.numel() and value.shape[:2] == own.shape[:2]:
                value = value.reshape(own.shape)
            state_dict.update({f"{prefix}{name}_ranks.{key}": part for key, part in ranks.divided(value).items()})
        if present:
            alpha = stored_alpha(state_dict.get(f"{prefix}alpha"), self.lora_dim)
            state_dict[f"{prefix}alpha"] = torch.tensor(alpha)
            self.scale = alpha / self.lora_dim
        nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)


def _projections(module: nn.Module) -> tuple[tuple[str, _Ranks], tuple[str, _Ranks]]:
    assert isinstance(module, DyLoRAModule)
    return ("lora_down", module.lora_down_ranks), ("lora_up", module.lora_up_ranks)


def _in_one_piece(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """The blocks of a state dict become whole projections, as in a file."""
    for name, ranks in _projections(module):
        blocks = [state.pop(f"{prefix}{name}_ranks.blocks.{number}") for number in range(len(ranks.blocks))]
        state[f"{prefix}{name}.weight"] = torch.cat([block.detach() for block in blocks], ranks.axis)


class DyLoRANetwork(LoRANetwork):
    """A LoRA network that trains one block of ranks at a time, the same in all its modules."""

    def __init__(
        self,
        text_encoder: nn.Module | Sequence[nn.Module] | None,
        unet: nn.Module | None,
        multiplier: float,
        sizes: LoRASizes,
        drops: LoRADrops,
        rates: LoRARates,
        unit: int,
    ) -> None:
        # The base class makes the modules.
        self.unit = unit
        super().__init__(text_encoder, unet, multiplier, sizes, drops, rates)

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> DyLoRAModule:
        """The module for one layer. Raises UserError when its rank cannot be divided."""
        _check_unit(dim, self.unit)
        return DyLoRAModule(name, layer, dim, alpha, self.unit, self.drops.dropout)

    def on_step_start(self, text_encoder: object = None, unet: object = None) -> None:
        """Draw the block that this step is about.

        Once for the whole step, not in each call: with gradient checkpointing a layer is computed twice.
        """
        position = float(torch.rand(()))
        for lora in self.loras:
            assert isinstance(lora, DyLoRAModule)
            lora.draw(position)

    def apply_max_norm_regularization(
        self, max_norm_value: float, device: torch.device | str | None = None
    ) -> tuple[int, float, float]:
        """Limit every module's norm with all ranks; (modules scaled, mean norm, greatest norm)."""
        return limit_norms(self.loras, max_norm_value)


def _check_unit(dim: int, unit: int) -> None:
    if dim % unit:
        raise UserError(f"network_dim {dim} is no multiple of the DyLoRA unit {unit}.", "unit")


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> DyLoRANetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    given = checked(kwargs, NAME, KNOWN, IDLE)
    dim = DEFAULT_DIM if network_dim is None else int(network_dim)
    alpha = DEFAULT_ALPHA if network_alpha is None else network_alpha
    conv_dim = whole_number(given, "conv_dim", 0, 0)
    if conv_dim not in (0, dim):
        raise UserError(f"networks.dylora needs conv_dim equal to network_dim: {conv_dim} is not {dim}.", "conv_dim")
    unit = whole_number(given, "unit", 1, 1)
    _check_unit(dim, unit)
    sizes = LoRASizes(dim, alpha, conv_dim or None, alpha, sdxl=is_sdxl(unet))
    drops, rates = _training(given, stand_in_dropout(kwargs, NAME, neuron_dropout), sizes.sdxl)
    return DyLoRANetwork(text_encoder, unet, multiplier, sizes, drops, rates, unit)


def _training(given: Mapping[str, Any], neuron_dropout: float | None, sdxl: bool) -> tuple[LoRADrops, LoRARates]:
    """Dropout and LoRA+ ratios; blocks have no rates of their own here."""
    return read_arguments({}, neuron_dropout=neuron_dropout).drops, read_rates(given, sdxl)


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[DyLoRANetwork, dict[str, Tensor]]:
    """A network with the ranks and alphas of a LoRA file, not yet filled with its weights; and the weights.

    Raises UserError when `unit` does not divide a rank of the file.
    """
    weights = given_weights(file, weights_sd)
    refuse_other_kinds(weights, file)
    by_name = sizes_in(weights)
    if not by_name:
        raise UserError(f"'{file}' holds no LoRA of this kind (no lora_down.weight).", "network_weights")
    neuron_dropout = kwargs.pop("neuron_dropout", None)
    given = checked(kwargs, NAME, KNOWN, IDLE)
    sizes = LoRASizes(by_name=by_name, sdxl=is_sdxl(unet))
    drops, rates = _training(given, neuron_dropout, sizes.sdxl)
    unit = whole_number(given, "unit", 1, 1)
    network = DyLoRANetwork(text_encoder, unet, multiplier, sizes, LoRADrops() if for_inference else drops, rates, unit)
    return network, weights
