"""LoRA on linear layers (LierLa) and, with a conv rank, on 3x3 convolutions (C3Lier), in kohya's protocol.

Names come from walking `named_modules()` of what is handed over and targets are found by class name, so the
caller passes models under kohya's names. Files hold `<name>.alpha`, `<name>.lora_down.weight` and
`<name>.lora_up.weight`, those of DoRA also `<name>.dora_scale`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.arguments import given_weights
from sd_scripts.networks.base import read_weights
from sd_scripts.networks.hashes import with_hashes
from sd_scripts.networks.lora_arguments import (
    DEFAULT_ALPHA,
    LoRADrops,
    LoRAKind,
    LoRARates,
    LoRASizes,
    read_arguments,
)
from sd_scripts.networks.lora_dora import DORA_SCALE, DoRAModule
from sd_scripts.networks.lora_files import LORA_TENSORS, decomposed_names, refuse_other_kinds, sizes_in
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_optimizer import Groups, limit_norms, optimizer_groups, text_encoder_parts, unet_parts
from sd_scripts.networks.lora_pissa import module_class
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_weights

logger = logging.getLogger(__name__)

UNET_TARGETS = ("Transformer2DModel",)
UNET_CONV_TARGETS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_ENCODER_TARGETS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
UNET_PREFIX = "lora_unet"
TEXT_ENCODER_PREFIX = "lora_te"


def is_sdxl(unet: nn.Module | None) -> bool:
    """Whether a U-Net carries SDXL's block names."""
    return unet is not None and any(name == "input_blocks" for name, _ in unet.named_children())


def target_layers(root: nn.Module, prefix: str, targets: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """(LoRA name, layer) for every linear or 2-D convolution inside modules of the target classes."""
    for name, module in root.named_modules():
        if type(module).__name__ not in targets:
            continue
        for child_name, child in module.named_modules():
            if isinstance(child, (nn.Linear, nn.Conv2d)):
                yield ".".join(part for part in (prefix, name, child_name) if part).replace(".", "_"), child


class LoRANetwork(nn.Module):
    """All LoRA modules of one model.

    Attributes: `text_encoder_loras`, `unet_loras` (modules in creation order), `multiplier`.
    """

    unet_prefix = UNET_PREFIX

    def __init__(
        self,
        text_encoder: nn.Module | Sequence[nn.Module] | None,
        unet: nn.Module | None,
        multiplier: float = 1.0,
        sizes: LoRASizes | None = None,
        drops: LoRADrops | None = None,
        rates: LoRARates | None = None,
        kind: LoRAKind | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind or LoRAKind()
        self.rates = rates or LoRARates()
        self.multiplier: float | Tensor = multiplier
        self.sizes = sizes or LoRASizes()
        self.drops = drops or LoRADrops()
        self.text_encoder_loras: list[LoRAModule] = []
        for prefix, encoder in named_encoders(text_encoder):
            self.text_encoder_loras += self._make(encoder, prefix, TEXT_ENCODER_TARGETS, False)
        self.unet_loras: list[LoRAModule] = []
        if unet is not None:
            self.unet_loras = self._make(unet, self.unet_prefix, self.unet_targets(), True)
        names = [lora.lora_name for lora in self.loras]
        if len(names) != len(set(names)):
            raise ValueError("two layers of the model lead to the same LoRA name")

    def _make(self, root: nn.Module, prefix: str, targets: Iterable[str], in_unet: bool) -> list[LoRAModule]:
        made: list[LoRAModule] = []
        for name, layer in target_layers(root, prefix, tuple(targets)):
            size = self.sizes.of(name, layer, in_unet)
            if size is None or size[0] == 0:
                continue
            lora = self.make_module(name, layer, *size)
            lora.multiplier = self.multiplier
            made.append(lora)
        return made

    def unet_targets(self) -> tuple[str, ...]:
        """The classes of the U-Net's blocks whose layers are looked at."""
        return UNET_TARGETS + (UNET_CONV_TARGETS if self.sizes.with_convolutions else ())

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> LoRAModule:
        """The module for one layer; networks of a related kind make their own here."""
        drops = self.drops
        decomposed = self.kind.decomposed or name in self.kind.decomposed_names
        make = module_class(decomposed, self.kind.principal_start)
        return make(name, layer, 1.0, dim, alpha, drops.dropout, drops.rank_dropout, drops.module_dropout)

    @property
    def loras(self) -> list[LoRAModule]:
        """All modules, text encoders first."""
        return self.text_encoder_loras + self.unet_loras

    def apply_to(
        self,
        text_encoder: object = None,
        unet: object = None,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Put the wanted modules into the model; only they are trained and saved afterwards."""
        if not apply_text_encoder:
            self.text_encoder_loras = []
        if not apply_unet:
            self.unet_loras = []
        started = time.monotonic()
        for lora in self.loras:
            lora.prepare()
            lora.apply_to()
            self.add_module(lora.lora_name, lora)
        if self.kind.principal_start:
            logger.info("PiSSA: %d layers decomposed in %.1f s", len(self.loras), time.monotonic() - started)

    def remove(self) -> None:
        """Take all modules out of the model again."""
        for lora in self.loras:
            lora.detach_from()

    def set_multiplier(self, multiplier: float | Tensor) -> None:
        """Strength of the whole network, or of each sample when a tensor [B] is given."""
        if (
            not isinstance(multiplier, Tensor)
            and not isinstance(self.multiplier, Tensor)
            and multiplier == self.multiplier
        ):
            # Asked for at every step, and nearly always the same.
            return
        self.multiplier = multiplier
        for lora in self.loras:
            lora.multiplier = multiplier

    def load_weights(self, file: str | Path) -> str:
        """Load a file into the applied modules; returns a sentence about what fitted.

        Raises UserError when ranks differ or nothing fits.
        """
        weights = read_weights(file)
        refuse_other_kinds(weights, file, with_lengths=True)
        own = self.file_tensors()
        matching = own.keys() & weights.keys()
        if not matching:
            raise UserError(
                f"'{file}' holds no weight that fits this network.",
                "network_weights",
                hint="Is it a LoRA of another model family, or made by another network module?",
            )
        self._check_fit(weights, file)
        missing = [key for key in own if key not in weights and not key.endswith((".alpha", DORA_SCALE))]
        unexpected = [key for key in weights if key not in own]
        self.load_state_dict(weights, strict=False)
        for lora in self.loras:
            if isinstance(lora, DoRAModule) and f"{lora.lora_name}.{DORA_SCALE}" not in weights:
                lora.keep_present_lengths()
        if missing or unexpected:
            logger.warning(
                "%s: %d tensors of the network are not in the file (they start untrained), "
                "%d tensors of the file have no place in the network.",
                file,
                len(missing),
                len(unexpected),
            )
        return f"{len(matching)} of {len(own)} tensors loaded"

    def _check_fit(self, weights: Mapping[str, Tensor], file: str | Path) -> None:
        """Raise UserError where ranks differ, or the file holds lengths (DoRA) and a module has none."""
        for lora in self.loras:
            down = weights.get(f"{lora.lora_name}.lora_down.weight")
            if down is not None and down.shape[0] != lora.file_rank:
                twice = " (PiSSA: twice the rank)" if lora.file_rank != lora.lora_dim else ""
                raise UserError(
                    f"'{file}' has rank {down.shape[0]} at {lora.lora_name}, this network has {lora.file_rank}{twice}.",
                    "network_weights",
                    hint="Set network_dim (and conv_dim) to the file's ranks, or use dim_from_weights.",
                )
            if f"{lora.lora_name}.{DORA_SCALE}" in weights and not isinstance(lora, DoRAModule):
                raise UserError(
                    f"'{file}' is a DoRA file, which a plain LoRA cannot go on from.",
                    "network_weights",
                    hint="Add dora_wd=True to network_args.",
                )

    def file_tensors(self) -> dict[str, Tensor]:
        """The network's tensors under the names of a file."""
        return {f"{lora.lora_name}.{key}": value for lora in self.loras for key, value in lora.file_tensors().items()}

    def save_weights(self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Write the network, complete or not at all; safetensors files also get both hashes.

        The lengths of DoRA stay in float32, since rounding one of them stretches a whole row of the base model's
        weights, and so does rsLoRA's alpha, which is no round number.
        """
        exact = (DORA_SCALE, *(("alpha",) if self.sizes.by_root else ()))
        tensors = {
            key: value if dtype is None or key.endswith(exact) else value.to(dtype)
            for key, value in self.file_tensors().items()
        }
        write_weights(file, tensors, None, metadata, finish=with_hashes)

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None = None,
    ) -> Groups:
        """(groups, names) for the optimizer; a rate of None falls back to `default_lr`, 0 freezes that part."""
        self.requires_grad_(True)
        groups: list[dict[str, Any]] = []
        names: list[str] = []
        for parts, ratio in (
            (text_encoder_parts(self.text_encoder_loras, text_encoder_lr, default_lr), self.rates.text_encoder_ratio),
            (
                unet_parts(self.unet_loras, default_lr if unet_lr is None else unet_lr, self.rates),
                self.rates.unet_ratio,
            ),
        ):
            part_groups, part_names = optimizer_groups(parts, ratio)
            groups += part_groups
            names += part_names
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return groups, names

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lr: Sequence[float] | None, unet_lr: float | None, default_lr: float | None = None
    ) -> Groups:
        """As `prepare_optimizer_params`, with one rate for each text encoder."""
        return self.prepare_optimizer_params(text_encoder_lr, unet_lr, default_lr)

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: the model's own checkpointing computes the detours again, too."""

    def prepare_grad_etc(self, text_encoder: object = None, unet: object = None) -> None:
        """Part of kohya's protocol; what trains was settled by `prepare_optimizer_params`."""

    def on_epoch_start(self, text_encoder: object = None, unet: object = None) -> None:
        """Dropouts on."""
        self.train()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """The parameters that a step changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def apply_max_norm_regularization(
        self, max_norm_value: float, device: torch.device | str | None = None
    ) -> tuple[int, float, float]:
        """Limit every module's norm; (modules scaled, mean norm, greatest norm)."""
        return limit_norms(self.loras, max_norm_value)

    @property
    def can_limit_norms(self) -> bool:
        """With PiSSA the matrices hold part of the base model, which must not shrink."""
        return not self.kind.principal_start

    def is_mergeable(self) -> bool:
        """LoRA can be added into the model's own weights."""
        return True

    def merge_to(
        self,
        text_encoder: object,
        unet: object,
        weights_sd: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Add the weights for good to the layers they are for, times the network's multiplier."""
        for lora in self.loras:
            prefix = lora.lora_name + "."
            own = {key: weights_sd[prefix + key] for key in LORA_TENSORS if prefix + key in weights_sd}
            if own:
                lora.merge_to(own, dtype, device)

    @torch.no_grad()
    def backup_weights(self) -> None:
        """Remember the layers' weights on the CPU, once, for `restore_weights`."""
        for lora in self.loras:
            lora.backup()

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Put the remembered weights back."""
        for lora in self.loras:
            lora.restore()

    @torch.no_grad()
    def pre_calculation(self) -> None:
        """Add the network's present weights to the layers (the opposite of `restore_weights`)."""
        for lora in self.loras:
            lora.merge_to(lora.file_tensors())


def named_encoders(
    text_encoder: nn.Module | Sequence[nn.Module] | None,
) -> list[tuple[str, nn.Module]]:
    """(prefix, encoder): a bare encoder is `lora_te`, those of a list are `lora_te1`, `lora_te2`."""
    if text_encoder is None:
        return []
    if isinstance(text_encoder, nn.Module):
        return [(TEXT_ENCODER_PREFIX, text_encoder)]
    return [
        (f"{TEXT_ENCODER_PREFIX}{number}", encoder)
        for number, encoder in enumerate(text_encoder, 1)
        if encoder is not None
    ]


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> LoRANetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    sdxl = is_sdxl(unet)
    arguments = read_arguments(kwargs, network_dim, network_alpha, neuron_dropout, sdxl)
    return LoRANetwork(
        text_encoder, unet, multiplier, arguments.sizes, arguments.drops, arguments.rates, arguments.kind
    )


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LoRANetwork, dict[str, Tensor]]:
    """A network with the ranks and alphas of a file, not yet filled with its weights; and the weights.

    Training arguments among `kwargs` (dropouts, LoRA+, block weights) keep their effect.
    """
    weights_sd = given_weights(file, weights_sd)
    refuse_other_kinds(weights_sd, file, with_lengths=True)
    in_file = sizes_in(weights_sd)
    if not in_file:
        raise UserError(f"'{file}' holds no LoRA of this kind (no lora_down.weight).", "network_weights")
    sdxl = is_sdxl(unet)
    neuron_dropout = kwargs.pop("neuron_dropout", None)
    read = read_arguments(kwargs, None, DEFAULT_ALPHA, neuron_dropout, sdxl)
    if read.kind.principal_start:
        raise UserError(
            "PiSSA cannot take its ranks from a file, where every rank stands twice.",
            "dim_from_weights",
            hint="Give the network_dim that the file was trained with, or leave init_lora_weights out.",
        )
    drops = LoRADrops() if for_inference else read.drops
    kind = replace(read.kind, decomposed_names=decomposed_names(weights_sd))
    sizes = LoRASizes(by_name=in_file, sdxl=sdxl)
    return LoRANetwork(text_encoder, unet, multiplier, sizes, drops, read.rates, kind), weights_sd
