"""What the networks of OFT, LoHa and LoKr share: reading and merging files of their own kind."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks import layer_choice
from sd_scripts.networks.arguments import (
    BLOCK_RATES,
    BLOCK_SIZES,
    CONVOLUTIONS,
    DROPOUTS,
    PLUS,
    checked,
    stand_in_dropout,
    switch,
)
from sd_scripts.networks.base import read_weights
from sd_scripts.networks.layer_choice import ChosenSizes, read_choice
from sd_scripts.networks.lora import LoRANetwork
from sd_scripts.networks.lora_arguments import LoRADrops, LoRARates, LoRASizes, read_arguments
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_optimizer import Groups
from sd_scripts.networks.norms import limit_norms
from sd_scripts.schema.errors import UserError

logger = logging.getLogger(__name__)


def modules_in(weights: Mapping[str, Tensor], file: object, name: str, known: tuple[str, ...]) -> dict[str, list[str]]:
    """The modules of a file with the names of their tensors.

    Raises:
        UserError: for a tensor that `name`, which knows the tensors `known`, would leave out, and for none at all.
    """
    found: dict[str, list[str]] = {}
    for key in weights:
        module, dot, tensor = key.partition(".")
        if dot:
            found.setdefault(module, []).append(tensor)
    strange = sorted({tensor for tensors in found.values() for tensor in tensors if tensor not in known})
    if strange:
        raise UserError(
            f"'{file}' is not made by {name}: it holds {', '.join(strange[:4])}.",
            "network_weights",
            hint="Files of LyCORIS are for network_module lycoris.kohya, plain LoRA for networks.lora.",
        )
    if not found:
        raise UserError(f"'{file}' holds no weight of {name}.", "network_weights")
    return found


@dataclass(frozen=True)
class Settings:
    """What the arguments say about a network, apart from what only its own kind knows."""

    sizes: ChosenSizes = field(default_factory=ChosenSizes)
    drops: LoRADrops = field(default_factory=LoRADrops)
    rates: LoRARates = field(default_factory=LoRARates)
    verbose: bool = False

    def for_file(self, by_name: Mapping[str, tuple[int, float]], for_inference: bool) -> Settings:
        """The same with ranks and alphas from a file; for inference without dropouts."""
        return replace(
            self, sizes=replace(self.sizes, by_name=by_name), drops=LoRADrops() if for_inference else self.drops
        )


def chosen(sizes: LoRASizes, choice: layer_choice.LayerChoice | None = None) -> ChosenSizes:
    """These sizes for chosen layers."""
    values = {item.name: getattr(sizes, item.name) for item in fields(LoRASizes)}
    return ChosenSizes(**values, choice=choice or layer_choice.LayerChoice())


def read_settings(
    name: str,
    own: tuple[str, ...],
    arguments: Mapping[str, Any],
    dim: int | None,
    alpha: float | None,
    neuron_dropout: float | None,
    sdxl: bool,
) -> tuple[Settings, dict[str, Any]]:
    """The arguments of LoHa or LoKr, and those of them that are in `own`. Raises UserError for a bad one."""
    common = (*CONVOLUTIONS, *DROPOUTS, *PLUS, *BLOCK_RATES, *BLOCK_SIZES)
    given = checked(arguments, name, (*own, *common, *layer_choice.KNOWN, "verbose"))
    dropout = stand_in_dropout(arguments, name, neuron_dropout, counts=True)
    read = read_arguments({key: given[key] for key in common if key in given}, dim, alpha, dropout, sdxl)
    sizes = chosen(read.sizes, read_choice(given))
    settings = Settings(sizes, read.drops, read.rates, switch(given, "verbose"))
    return settings, {key: given[key] for key in own if key in given}


class ChangeNetwork(LoRANetwork):
    """A network of `ChangeModule`s.

    Attributes: `name` of the network module for messages, `tensors` that its files may hold.
    """

    name = ""
    tensors: tuple[str, ...] = ()

    def __init__(
        self,
        text_encoder: nn.Module | Sequence[nn.Module] | None,
        unet: nn.Module | None,
        multiplier: float,
        settings: Settings,
    ) -> None:
        # The base class makes the modules, by these sizes.
        self._chosen = settings.sizes
        drops = settings.drops
        self.dropouts = (drops.dropout, drops.rank_dropout, drops.module_dropout)
        super().__init__(text_encoder, unet, multiplier, settings.sizes, drops, settings.rates)
        for lora in self.loras if settings.verbose else ():
            logger.info("%s: rank %d, alpha %s", lora.lora_name, lora.lora_dim, float(lora.alpha))

    def _make(self, root: nn.Module, prefix: str, targets: Iterable[str], in_unet: bool) -> list[LoRAModule]:
        paths = {f"{prefix}_{path}".replace(".", "_"): path for path, _ in root.named_modules()}
        self._chosen.paths.update(paths)
        return super()._make(root, prefix, targets, in_unet)

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None = None,
    ) -> Groups:
        """As for LoRA; layers that have a rate of their own form groups of their own."""
        groups, names = super().prepare_optimizer_params(text_encoder_lr, unet_lr, default_lr)
        choice = self._chosen.choice
        if not choice.rates:
            return groups, names
        own: dict[int, float] = {}
        for lora in self.loras:
            rate = choice.rate(self._chosen.names(lora.lora_name))
            if rate is not None:
                own |= {id(parameter): rate for parameter in lora.parameters()}
        return _with_own_rates(groups, names, own, self.rates)

    def load_weights(self, file: str | Path) -> str:
        """Load a file into the applied modules; returns a sentence about what fitted.

        Raises UserError when shapes differ or nothing fits.
        """
        weights = read_weights(file)
        modules_in(weights, file, self.name, self.tensors)
        own = self.state_dict()
        matching = own.keys() & weights.keys()
        if not matching:
            raise UserError(
                f"'{file}' holds no weight that fits this network.",
                "network_weights",
                hint="Is it a network of another model family, or made with other settings?",
            )
        self._check_fit(weights, file)
        self.load_state_dict(weights, strict=False)
        left_out = len(weights.keys() - own.keys())
        untrained = sum(not key.endswith(".alpha") for key in own.keys() - weights.keys())
        if untrained or left_out:
            logger.warning(
                "%s: %d tensors of the network are not in the file (they start untrained), "
                "%d tensors of the file have no place in the network.",
                file,
                untrained,
                left_out,
            )
        return f"{len(matching)} of {len(own)} tensors loaded"

    def _check_fit(self, weights: Mapping[str, Tensor], file: str | Path) -> None:
        """Raise UserError where a module of the file is built otherwise than this network's."""
        for lora in self.loras:
            own = {f"{lora.lora_name}.{name}": value for name, value in lora.named_parameters()}
            in_file = {key for key in own if key in weights}
            if not in_file:
                others = [key for key in weights if key.startswith(f"{lora.lora_name}.")]
                wrong = bool(others)
            else:
                wrong = in_file != own.keys() or any(
                    weights[key].numel() != value.numel() or weights[key].shape[:2] != value.shape[:2]
                    for key, value in own.items()
                )
            if wrong:
                raise UserError(
                    f"'{file}' has other ranks or another form at {lora.lora_name} than this network.",
                    "network_weights",
                    hint="Set network_dim, network_alpha and network_args as for the file, or use dim_from_weights.",
                )

    def apply_max_norm_regularization(
        self, max_norm_value: float, device: torch.device | str | None = None
    ) -> tuple[int, float, float]:
        """Limit every module's norm; (modules scaled, mean norm, greatest norm)."""
        return limit_norms(self.loras, max_norm_value)

    def merge_to(
        self,
        text_encoder: object,
        unet: object,
        weights_sd: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Put the weights for good into the layers they are for, at the network's multiplier."""
        for lora in self.loras:
            prefix = lora.lora_name + "."
            own = {key.removeprefix(prefix): value for key, value in weights_sd.items() if key.startswith(prefix)}
            if own:
                lora.merge_to(own, dtype, device)


def _with_own_rates(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str], own: Mapping[int, float], rates: LoRARates
) -> Groups:
    """The groups without the parameters that have a rate of their own, and one group for each such rate."""
    made: list[dict[str, Any]] = []
    made_names: list[str] = []
    for group, name in zip(groups, names):
        by_rate: dict[float | None, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(own.get(id(parameter)), []).append(parameter)
        ratio = (rates.unet_ratio if name.startswith("unet") else rates.text_encoder_ratio) or 1.0
        factor = ratio if name.endswith(" plus") else 1.0
        for rate, parameters in by_rate.items():
            if rate == 0:
                for parameter in parameters:
                    parameter.requires_grad_(False)
                continue
            made.append({**group, "params": parameters} | ({} if rate is None else {"lr": rate * factor}))
            made_names.append(name if rate is None else f"{name} {rate:g}")
    return made, made_names
