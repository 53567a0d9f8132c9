"""The `network_args` of `networks.lora`, read once into typed settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sd_scripts.networks.arguments import checked, switch
from sd_scripts.networks.lora_blocks import BlockPlan, block_index, block_plan, lr_weights, without_silent_blocks
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.networkargs import START_WEIGHTS

logger = logging.getLogger(__name__)

DEFAULT_DIM = 4
DEFAULT_ALPHA = 1.0

_BLOCK_SIZES = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_NUMBERS = (
    "conv_alpha",
    "rank_dropout",
    "module_dropout",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    "block_lr_zero_threshold",
)
_KINDS = ("dora_wd", "rs_lora", "init_lora_weights")
KNOWN = (
    "conv_dim", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "dropout", *_NUMBERS, *_BLOCK_SIZES, *_KINDS,
)  # fmt: skip


@dataclass(frozen=True)
class LoRASizes:
    """Rank and alpha of every possible module: from a file (`by_name`), by block, or the same for all.

    `by_root` is rsLoRA (arXiv 2312.03732): alpha counts by the root of the rank. The alpha given here is then larger
    by that root, so that alpha / rank, which every program takes, is the right strength.
    """

    dim: int = DEFAULT_DIM
    alpha: float = DEFAULT_ALPHA
    conv_dim: int | None = None
    conv_alpha: float | None = None
    blocks: BlockPlan | None = None
    by_name: Mapping[str, tuple[int, float]] | None = None
    sdxl: bool = False
    by_root: bool = False

    @property
    def with_convolutions(self) -> bool:
        """Whether blocks outside the transformers are looked at, too."""
        by_block = self.blocks is not None and self.blocks.conv_dims is not None
        return self.by_name is not None or self.conv_dim is not None or by_block

    def of(self, name: str, layer: nn.Module, in_unet: bool) -> tuple[int, float] | None:
        """(rank, alpha) for this layer, or None when it gets no LoRA."""
        if self.by_name is not None:
            return self.by_name.get(name)
        small = isinstance(layer, nn.Linear) or getattr(layer, "kernel_size", None) == (1, 1)
        dim, alpha = self._in_block(name, small) if in_unet and self.blocks is not None else self._anywhere(small)
        if not dim:
            return None
        alpha = DEFAULT_ALPHA if alpha is None else alpha
        if self.by_root:
            # As a file or a training state keeps it, so that a run that goes on has the same strength to the last bit.
            alpha = torch.tensor((alpha or dim) * math.sqrt(dim), dtype=torch.float32).item()
        return dim, alpha

    def _anywhere(self, small: bool) -> tuple[int | None, float | None]:
        return (self.dim, self.alpha) if small else (self.conv_dim, self.conv_alpha)

    def _in_block(self, name: str, small: bool) -> tuple[int | None, float | None]:
        assert self.blocks is not None
        place = block_index(name, self.sdxl)
        dims, alphas = self.blocks.dims, self.blocks.alphas
        if not small:
            if self.blocks.conv_dims is None or self.blocks.conv_alphas is None:
                return None, None
            dims, alphas = self.blocks.conv_dims, self.blocks.conv_alphas
        return dims[place], alphas[place]


@dataclass(frozen=True)
class LoRADrops:
    """The three dropouts, each None for off."""

    dropout: float | None = None
    rank_dropout: float | None = None
    module_dropout: float | None = None


@dataclass(frozen=True)
class LoRARates:
    """Learning-rate weights by block, and LoRA+'s ratios for the up projections (None: not used)."""

    block_weights: list[float] | None = None
    unet_ratio: float | None = None
    text_encoder_ratio: float | None = None
    sdxl: bool = False


@dataclass(frozen=True)
class LoRAKind:
    """What is special about the modules: DoRA, for all or for those named, and PiSSA's start."""

    decomposed: bool = False
    principal_start: bool = False
    decomposed_names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LoRAArguments:
    """Everything that `network_args` and the network options say about one LoRA."""

    sizes: LoRASizes = field(default_factory=LoRASizes)
    drops: LoRADrops = field(default_factory=LoRADrops)
    rates: LoRARates = field(default_factory=LoRARates)
    kind: LoRAKind = field(default_factory=LoRAKind)


def _number(arguments: Mapping[str, Any], key: str, whole: bool = False) -> Any:
    value = arguments.get(key)
    if value is None:
        return None
    try:
        return int(value) if whole else float(value)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"network_args {key} must be {kind}, not '{value}'.", key) from error


def _probability(value: float | None, key: str) -> float | None:
    if value is not None and not 0 <= value < 1:
        raise UserError(f"{key} must be at least 0 and below 1, not {value}.", key)
    return value


def _read_kind(arguments: Mapping[str, Any]) -> LoRAKind:
    start = str(arguments.get("init_lora_weights") or "default").strip().lower()
    if start not in START_WEIGHTS:
        raise UserError(
            f"network_args init_lora_weights must be {' or '.join(START_WEIGHTS)}, not '{start}'.", "init_lora_weights"
        )
    return LoRAKind(switch(arguments, "dora_wd"), start == "pissa")


def read_rates(arguments: Mapping[str, Any], sdxl: bool) -> LoRARates:
    """Block weights and LoRA+ ratios; the common ratio stands in for one that is not given."""
    common = _number(arguments, "loraplus_lr_ratio")
    unet = _number(arguments, "loraplus_unet_lr_ratio")
    encoder = _number(arguments, "loraplus_text_encoder_lr_ratio")
    return LoRARates(
        block_weights=lr_weights(arguments, sdxl),
        unet_ratio=common if unet is None else unet,
        text_encoder_ratio=common if encoder is None else encoder,
        sdxl=sdxl,
    )


def read_arguments(
    arguments: Mapping[str, Any],
    dim: int | None = None,
    alpha: float | None = None,
    neuron_dropout: float | None = None,
    sdxl: bool = False,
) -> LoRAArguments:
    """Read `network_args` (texts) together with network_dim, network_alpha and network_dropout.

    Raises UserError that names the argument and what it takes.
    """
    checked(arguments, "networks.lora", KNOWN)
    if arguments.get("dropout") is not None and neuron_dropout is None:
        logger.warning("networks.lora takes its dropout from network_dropout; network_args dropout has no effect.")
    dim = DEFAULT_DIM if dim is None else int(dim)
    alpha = DEFAULT_ALPHA if alpha is None else alpha
    conv_dim = _number(arguments, "conv_dim", whole=True)
    conv_alpha = _number(arguments, "conv_alpha")
    if conv_dim is not None and conv_alpha is None:
        conv_alpha = DEFAULT_ALPHA
    rates = read_rates(arguments, sdxl)
    blocks = None
    if rates.block_weights is not None or any(arguments.get(key) is not None for key in _BLOCK_SIZES):
        blocks = block_plan(arguments, dim, alpha, conv_dim, conv_alpha, sdxl)
        if rates.block_weights is not None:
            blocks = without_silent_blocks(blocks, rates.block_weights)
    return LoRAArguments(
        LoRASizes(dim, alpha, conv_dim, conv_alpha, blocks, sdxl=sdxl, by_root=switch(arguments, "rs_lora")),
        LoRADrops(
            _probability(neuron_dropout, "network_dropout"),
            _probability(_number(arguments, "rank_dropout"), "rank_dropout"),
            _probability(_number(arguments, "module_dropout"), "module_dropout"),
        ),
        rates,
        _read_kind(arguments),
    )
