"""A network of LyCORIS as our trainers use it: its groups and rates, its limit on norms, its files."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sd_scripts.networks.base import read_weights
from sd_scripts.networks.hashes import with_hashes
from sd_scripts.networks.lora_optimizer import Groups, optimizer_groups, text_encoder_parts
from sd_scripts.networks.lycoris_files import by_module, load_module, merge_into
from sd_scripts.networks.lycoris_modules import for_a_file
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_weights

_EXACT = (".dora_scale", ".rescale")


class Network(nn.Module):
    """Stands before LyCORIS' own network class."""

    text_encoder_loras: list[Any]
    unet_loras: list[Any]
    loras: list[Any]
    # LoRA+ ratios of the U-Net and of the text encoders
    plus_ratios: tuple[float | None, float | None] = (None, None)
    source: Path | None = None

    @property
    def can_limit_norms(self) -> bool:
        """Whether any of the modules has a norm that can be limited."""
        return any(_limits(lora) for lora in self.loras)

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lr: Sequence[float] | None, unet_lr: float | None, default_lr: float | None
    ) -> Groups:
        """Groups and their names, each text encoder with its own rate where there are several."""
        self.requires_grad_(True)
        unet_ratio, text_ratio = self.plus_ratios
        texts = text_encoder_parts(self.text_encoder_loras, text_encoder_lr, default_lr)
        unet = [("unet", default_lr if unet_lr is None else unet_lr, self.unet_loras)]
        groups, names = optimizer_groups(texts, text_ratio)
        more, further = optimizer_groups(unet, unet_ratio)
        return groups + more, names + further

    def on_step_start(self) -> None:
        """Before every batch."""
        for lora in self.loras:
            lora.start_step()

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any) -> tuple[int, float, float]:
        """(modules made smaller, mean norm, greatest norm), norms after that; modules without a norm do not count."""
        norms, scaled = [], 0
        modes = [(lora, lora.training) for lora in self.loras]
        for lora, training in modes:
            if not _limits(lora):
                continue
            lora.eval()  # or the norm would be that of what a dropout leaves
            smaller, norm = lora.apply_max_norm(max_norm_value, device)
            lora.train(training)
            norms.append(float(norm))
            scaled += bool(smaller)
        return (scaled, sum(norms) / len(norms), max(norms)) if norms else (0, 0.0, 0.0)

    def load_weights(self, file: str) -> str:
        """Load a file into the applied network; a sentence about what fitted.

        Raises UserError when nothing of the file fits, or a module of it is of another kind or size.
        """
        found = by_module(read_weights(file))
        fitting = [lora for lora in self.loras if lora.lora_name in found]
        if not fitting:
            raise UserError(f"'{file}' holds no weight that fits this network.", "network_weights")
        for lora in fitting:
            load_module(lora, found[lora.lora_name], file)
        left = len(found.keys() - {lora.lora_name for lora in fitting})
        more = f"; {left} modules of the file are not trained here" if left else ""
        return f"{len(fitting)} of {len(self.loras)} modules loaded{more}"

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Write the file in LyCORIS' form, complete or not at all; safetensors files also get both hashes.

        What stretches whole rows of the base model's weights stays as it is, and so does an alpha that is no round
        number.
        """
        with for_a_file(self.loras):
            held = {key: value.detach() for key, value in self.state_dict().items()}
        tensors = {}
        for key, value in held.items():
            exact = key.endswith(_EXACT) or (key.endswith(".alpha") and dtype and value.to(dtype).float() != value)
            tensors[key] = value if dtype is None or exact else value.to(dtype)
        write_weights(file, tensors, None, metadata, finish=with_hashes)

    def merge_to(
        self, text_encoder: Any, unet: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: Any
    ) -> None:
        """Change the layers for good, as much as the network's multiplier says."""
        merge_into(layers(unet, text_encoder), weights, float(cast(Any, self).multiplier), dtype, self.source or "")


def _limits(lora: Any) -> bool:
    base = importlib.import_module("lycoris.modules.base").LycorisBaseModule
    return type(lora).apply_max_norm is not base.apply_max_norm


def layers(unet: nn.Module, text_encoder: nn.Module | Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Every module of the trees by kohya's name for a network on it; a sequence of text encoders is numbered."""
    found: dict[str, nn.Module] = {}
    trees = [("lora_unet", unet)]
    if isinstance(text_encoder, nn.Module):
        trees.append(("lora_te", text_encoder))
    else:
        trees += [(f"lora_te{number}", tree) for number, tree in enumerate(text_encoder, 1)]
    for prefix, tree in trees:
        for name, module in tree.named_modules():
            if name:
                found[f"{prefix}_{name}".replace(".", "_")] = module
    return found


@functools.cache
def network_class() -> Any:
    """LyCORIS' network for kohya's trainers behind ours."""
    theirs = importlib.import_module("lycoris.kohya").LycorisNetworkKohya
    return type("LycorisNetwork", (Network, theirs), {})
