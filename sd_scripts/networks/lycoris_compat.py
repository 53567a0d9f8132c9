"""What LyCORIS needs beside the protocol: presets that do not stick, sentences for its refusals, true merging."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sd_scripts.networks.base import read_weights
from sd_scripts.schema.errors import UserError

logger = logging.getLogger(__name__)

MODULE = "lycoris.kohya"
# Read as plain text by LyCORIS, so that the word "False" would switch them on.
_TRUTHY_TEXTS = ("decompose_both",)
# Presets of LyCORIS that match nothing, and ours in their place.
_OWN_PRESETS = {"ia3": Path(__file__).with_name("lycoris_ia3.toml")}


def _check_arguments(module: ModuleType, arguments: dict[str, Any]) -> None:
    """Clear sentences for what LyCORIS would answer with a KeyError or an assertion."""
    for key in _TRUTHY_TEXTS:
        if str(arguments.get(key, "")).lower() in ("false", "0", "no"):
            del arguments[key]
    algorithms = getattr(module, "network_module_dict", {})
    algorithm = str(arguments.get("algo") or "lora").lower()
    if algorithms and algorithm not in algorithms:
        raise UserError(
            f"LyCORIS has no algo '{algorithm}'.",
            "network_args",
            hint=f"It has: {', '.join(sorted(set(algorithms)))}.",
        )
    preset = str(arguments.get("preset") or "")
    if preset in _OWN_PRESETS:
        arguments["preset"] = preset = str(_OWN_PRESETS[preset])
    presets = getattr(module, "PRESET", {})
    if preset and preset not in presets and not Path(preset).is_file():
        raise UserError(
            f"LyCORIS preset '{preset}' is neither a known preset nor a file.",
            "network_args",
            hint=f"Known: {', '.join(presets)}.",
        )


def _preset_classes(module: ModuleType | None) -> list[type[nn.Module]]:
    members = vars(module).values() if module is not None else ()
    return [member for member in members if isinstance(member, type) and hasattr(member, "apply_preset")]


@contextmanager
def guarded(module: ModuleType | None, arguments: dict[str, Any]) -> Iterator[None]:
    """Call LyCORIS inside: a preset, which it keeps on its class, is gone afterwards.

    `arguments` are checked and cleaned in place. Raises UserError for what LyCORIS refuses.
    """
    if module is not None:
        _check_arguments(module, arguments)
    classes = _preset_classes(module)
    before = [{key: copy.copy(value) for key, value in vars(cls).items() if key.isupper()} for cls in classes]
    # T-LoRA asks for a full collection with every module it makes: minutes with SDXL. What exists already is set aside.
    gc.freeze()
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"LyCORIS refused: {type(error).__name__}: {error}",
            "network_args",
            hint="Check algo, preset and the other network_args. It cannot take ranks from ia3 and dylora files.",
        ) from error
    finally:
        gc.unfreeze()
        for cls, attributes in zip(classes, before):
            for key, value in attributes.items():
                setattr(cls, key, value)


def load(network: Any, path: str | Path) -> str:
    """Load a file into an applied LyCORIS network, DyLoRA included; a sentence about what fitted.

    Raises UserError when nothing of the file fits.
    """
    weights = read_weights(path)
    in_file = {key.split(".")[0] for key in weights}
    fitting = [lora for lora in network.loras if lora.lora_name in in_file]
    if not fitting:
        raise UserError(f"'{path}' holds no weight that fits this network.", "network_weights")
    with guarded(None, {}):
        network.load_weights(str(path))
        for lora in fitting:
            if hasattr(lora, "up_list"):
                _fill_blocks(lora, weights)
    return f"{len(fitting)} of {len(network.loras)} modules loaded"


@torch.no_grad()
def _fill_blocks(lora: Any, weights: dict[str, torch.Tensor]) -> None:
    """DyLoRA is saved as one pair of matrices but kept in blocks of ranks, which its own loader leaves empty."""
    up = weights[f"{lora.lora_name}.lora_up.weight"].flatten(1)
    down = weights[f"{lora.lora_name}.lora_down.weight"].flatten(1)
    for own, block in zip(lora.up_list, up.split(lora.block_size, dim=1)):
        own.copy_(block)
    for own, block in zip(lora.down_list, down.split(lora.block_size, dim=0)):
        own.copy_(block)
    lora.alpha.copy_(weights[f"{lora.lora_name}.alpha"])


@torch.no_grad()
def merge(network: Any, multiplier: float) -> None:
    """Add a LyCORIS network, made from a file, to its layers for good, times `multiplier`."""
    for lora in [*network.text_encoder_loras, *network.unet_loras]:
        if lora.name in ("loha", "kron"):
            _merge_product(lora, multiplier)
        else:
            lora.merge_to(multiplier)


def _merge_product(lora: Any, multiplier: float) -> None:
    """LoHa and LoKr, whose own merging counts alpha / rank twice; here it is done as their forward does."""
    lora.eval()
    layer = lora.org_module[0]
    weight = layer.weight.detach().float()
    device = weight.device
    lora.to(device, torch.float32)
    change = lora.get_weight(lora.shape) * lora.scalar
    merged = lora.apply_weight_decompose(weight + change, multiplier) if lora.wd else weight + change * multiplier
    layer.weight.data = merged.to(layer.weight.dtype)
