"""What the optimizer sees of a LoRA: groups of parameters with their rates, and the limit on their norm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.lora_arguments import LoRARates
from sd_scripts.networks.lora_blocks import block_index
from sd_scripts.networks.lora_module import LoRAModule

Groups = tuple[list[dict[str, Any]], list[str]]


def split_plus(loras: Iterable[LoRAModule], ratio: float | None) -> list[tuple[str, float, list[nn.Parameter]]]:
    """(name ending, factor, parameters): with a LoRA+ ratio the up projections form a group of their own."""
    usual: list[nn.Parameter] = []
    plus: list[nn.Parameter] = []
    for lora in loras:
        for name, parameter in lora.named_parameters():
            (plus if ratio is not None and name.startswith(lora.plus) else usual).append(parameter)
    return [("", 1.0, usual), (" plus", 1.0 if ratio is None else ratio, plus)]


def text_encoder_parts(
    loras: Sequence[LoRAModule], rates: float | Sequence[float] | None, default_lr: float | None
) -> list[tuple[str, float | None, list[LoRAModule]]]:
    """(name, rate, modules) of the text encoders; only several rates for several encoders split them."""
    if rates is None or isinstance(rates, (int, float)):
        return [("textencoder", default_lr if rates is None else rates, list(loras))]
    prefixes = sorted({lora.lora_name.split("_text_model_")[0] for lora in loras})
    if len(rates) < 2 or len(prefixes) < 2:
        return [("textencoder", rates[0] if rates else default_lr, list(loras))]
    return [
        (f"textencoder{number}", rate, [lora for lora in loras if lora.lora_name.startswith(prefix + "_")])
        for number, (prefix, rate) in enumerate(zip(prefixes, rates), 1)
    ]


def unet_parts(
    loras: Sequence[LoRAModule], rate: float | None, rates: LoRARates
) -> list[tuple[str, float | None, list[LoRAModule]]]:
    """(name, rate, modules) of the U-Net: one part, or one for each block that has its own weight."""
    if rates.block_weights is None:
        return [("unet", rate, list(loras))]
    by_block: dict[int, list[LoRAModule]] = {}
    for lora in loras:
        by_block.setdefault(block_index(lora.lora_name, rates.sdxl), []).append(lora)
    parts: list[tuple[str, float | None, list[LoRAModule]]] = []
    for place, members in by_block.items():
        weight = rates.block_weights[place] if place >= 0 else 1.0
        parts.append((f"unet_block{place}", None if rate is None else rate * weight, members))
    return parts


def optimizer_groups(parts: Iterable[tuple[str, float | None, list[LoRAModule]]], ratio: float | None) -> Groups:
    """Groups as torch's optimizers take them, and their names. Rate 0 makes no group."""
    groups: list[dict[str, Any]] = []
    names: list[str] = []
    for name, rate, loras in parts:
        for ending, factor, parameters in split_plus(loras, ratio):
            if not parameters or rate == 0:
                continue
            groups.append({"params": parameters} if rate is None else {"params": parameters, "lr": rate * factor})
            names.append(name + ending)
    return groups, names


@torch.no_grad()
def limit_norms(loras: Sequence[LoRAModule], maximum: float) -> tuple[int, float, float]:
    """Scale down every module whose weight change has a Frobenius norm above `maximum`.

    Returns (modules scaled, mean norm, greatest norm), norms after scaling. The norm of up x down is taken
    from two rank x rank products, so the large product itself is never made.
    """
    if not loras:
        return 0, 0.0, 0.0
    squares = [_squared_norm(lora) for lora in loras]
    norms = torch.stack([square.to(squares[0].device) for square in squares]).clamp(min=0).sqrt()
    # Small norms keep ratio 1, and a norm of zero divides nothing.
    floored = norms.clamp(min=maximum / 2)
    ratios = floored.clamp(max=maximum) / floored
    scaled = norms * ratios
    for lora, ratio in zip(loras, ratios.tolist()):
        if ratio != 1:
            for weight in (lora.lora_up.weight, lora.lora_down.weight):
                weight.mul_(ratio**0.5)
    return int((ratios != 1).sum()), float(scaled.mean()), float(scaled.max())


def _squared_norm(lora: LoRAModule) -> Tensor:
    up = lora.lora_up.weight.detach().flatten(1).double()
    down = lora.lora_down.weight.detach().flatten(1).double()
    return ((up.t() @ up) * (down @ down.t())).sum() * lora.scale**2
