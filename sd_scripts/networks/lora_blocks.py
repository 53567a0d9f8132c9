"""LoRA by U-Net block: which block a module belongs to, and rank, alpha and learning rate for each block.

Stable Diffusion 1.x and 2.x have 25 places (12 down, 1 mid, 12 up; place 0 is empty), SDXL has 23.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sd_scripts.schema.errors import UserError

logger = logging.getLogger(__name__)

SD_BLOCKS = 25
SDXL_BLOCKS = 23
SD_MIDDLE = 12
UNKNOWN_BLOCK = -1

_SD_NAME = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)")
_SDXL_NAME = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)")
_SDXL_START = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}


@dataclass(frozen=True)
class Layout:
    """How the places of a block list are divided between the U-Net's parts: (first place, count)."""

    total: int
    down: tuple[int, int]
    mid: tuple[int, int]
    up: tuple[int, int]


SD_LAYOUT = Layout(SD_BLOCKS, (0, 12), (12, 1), (13, 12))
SDXL_LAYOUT = Layout(SDXL_BLOCKS, (1, 9), (10, 3), (13, 9))


@dataclass(frozen=True)
class BlockPlan:
    """Rank and alpha for every block; the conv lists are None when 3x3 convolutions get no LoRA."""

    dims: list[int]
    alphas: list[float]
    conv_dims: list[int] | None = None
    conv_alphas: list[float] | None = None


def layout_for(sdxl: bool) -> Layout:
    """The list layout of SDXL, or of Stable Diffusion 1.x and 2.x."""
    return SDXL_LAYOUT if sdxl else SD_LAYOUT


def block_index(lora_name: str, sdxl: bool = False) -> int:
    """The place of a LoRA module in the block lists, or -1 when it belongs to no block."""
    return _sdxl_index(lora_name) if sdxl else _sd_index(lora_name)


def _sd_index(lora_name: str) -> int:
    if lora_name.startswith("lora_unet_mid_block_"):
        return SD_MIDDLE
    found = _SD_NAME.match(lora_name)
    if found is None:
        return UNKNOWN_BLOCK
    direction, block, kind, item = found.groups()
    # Every block is three places: two or three layers, and the resampler on the last one.
    place = int(block) * 3 + (2 if kind.endswith("samplers") else int(item))
    return place + 1 if direction == "down" else place + SD_MIDDLE + 1


def _sdxl_index(lora_name: str) -> int:
    if lora_name.startswith(("lora_unet_label_emb_", "lora_unet_time_embed_")):
        return 0
    if lora_name.startswith("lora_unet_out_"):
        return SDXL_BLOCKS - 1
    found = _SDXL_NAME.match(lora_name)
    return UNKNOWN_BLOCK if found is None else _SDXL_START[found[1]] + int(found[2])


def number_list(key: str, text: str, length: int, whole: bool) -> list[Any]:
    """Exactly `length` comma-separated numbers. Raises UserError that names the key."""
    items = [item.strip() for item in str(text).split(",")]
    if len(items) != length:
        raise UserError(f"network_args {key} needs {length} numbers separated by commas, not {len(items)}.", key)
    try:
        return [int(item) if whole else float(item) for item in items]
    except ValueError as error:
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"network_args {key} needs {kind} separated by commas: {error}.", key) from error


def _wave(name: str, length: int) -> list[float] | None:
    """The values of a preset without its offset, or None for an unknown name."""
    last = max(length - 1, 1)
    rising_sine = [math.sin(math.pi / 2 * place / last) for place in range(length)]
    rising_line = [place / last for place in range(length)]
    # The falling ones are the rising ones turned round, so that their end is exactly zero.
    return {
        "sine": rising_sine,
        "cosine": rising_sine[::-1],
        "linear": rising_line,
        "reverse_linear": rising_line[::-1],
        "zeros": [0.0] * length,
    }.get(name)


def _weights(key: str, text: str, length: int) -> list[float]:
    """One part's learning-rate weights, from a preset `name` or `name+offset`, or from numbers."""
    name, _, offset = text.strip().lower().partition("+")
    wave = _wave(name, length) if key != "mid_lr_weight" else None
    try:
        if wave is not None:
            return [value + float(offset or 0) for value in wave]
        numbers = [float(item) if item.strip() else 0.0 for item in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"network_args {key} '{text}' is neither a list of {length} numbers nor a preset.",
            key,
            hint="Presets: cosine, sine, linear, reverse_linear, zeros, each also with an offset as in sine+.25.",
        ) from error
    if len(numbers) == 1 and length > 1 and key != "mid_lr_weight":
        raise UserError(f"network_args {key} needs {length} numbers separated by commas, not one.", key)
    if len(numbers) > length:
        logger.warning("%s has %d numbers, the last %d are left out.", key, len(numbers), len(numbers) - length)
    elif len(numbers) < length:
        logger.warning("%s has %d numbers, the missing %d become 1.", key, len(numbers), length - len(numbers))
    return (numbers + [1.0] * length)[:length]


def lr_weights(arguments: Mapping[str, Any], sdxl: bool = False) -> list[float] | None:
    """Learning-rate weight of every block from `down_lr_weight`, `mid_lr_weight`, `up_lr_weight`.

    Weights at or below `block_lr_zero_threshold` become 0 (the block then gets no LoRA). None when no
    weight was given; parts that were not given have weight 1. Raises UserError for what is no weight.
    """
    layout = layout_for(sdxl)
    threshold = float(arguments.get("block_lr_zero_threshold") or 0.0)
    weights = [1.0] * layout.total
    given = False
    for part in ("down", "mid", "up"):
        key = f"{part}_lr_weight"
        text = arguments.get(key)
        if text is None or str(text).strip() == "":
            continue
        given = True
        start, length = getattr(layout, part)
        values = _weights(key, str(text), length)
        weights[start : start + length] = [value if value > threshold else 0.0 for value in values]
    return weights if given else None


def block_plan(
    arguments: Mapping[str, Any],
    dim: int,
    alpha: float,
    conv_dim: int | None,
    conv_alpha: float | None,
    sdxl: bool = False,
) -> BlockPlan:
    """Rank and alpha of every block from the `block_*` and `conv_block_*` arguments and their fall-backs."""
    total = layout_for(sdxl).total

    def listed(key: str, whole: bool) -> list[Any] | None:
        text = arguments.get(key)
        return None if text is None else number_list(key, text, total, whole)

    conv_dims = listed("conv_block_dims", True)
    if conv_dims is None and conv_dim is not None:
        conv_dims = [conv_dim] * total
    conv_alphas = None
    if conv_dims is not None:
        conv_alphas = listed("conv_block_alphas", False) or [1.0 if conv_alpha is None else conv_alpha] * total
    return BlockPlan(
        dims=listed("block_dims", True) or [dim] * total,
        alphas=listed("block_alphas", False) or [alpha] * total,
        conv_dims=conv_dims,
        conv_alphas=conv_alphas,
    )


def without_silent_blocks(plan: BlockPlan, weights: list[float]) -> BlockPlan:
    """The plan with rank 0 (no LoRA) for every block whose learning-rate weight is 0."""

    def kept(dims: list[int]) -> list[int]:
        return [dim if weight != 0 else 0 for dim, weight in zip(dims, weights)]

    return replace(
        plan,
        dims=kept(plan.dims),
        conv_dims=None if plan.conv_dims is None else kept(plan.conv_dims),
    )
