"""The plug that networks fit: kohya's protocol, asked by signature and written down in one place.

A network module offers `create_network(multiplier, dim, alpha, vae, text_encoder, unet, **network_args)` and
`create_network_from_weights(multiplier, file, vae, text_encoder, unet, ...)`. Its network must have `apply_to`,
`prepare_optimizer_params`, `load_weights` and `save_weights`; everything else is optional and has a default here.
One text encoder is handed over bare, several as a list: names of the weights depend on that.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.networks.hashes import with_hashes
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loratypes import LYCORIS
from sd_scripts.schema.rules_plugins import NETWORK_MODULES
from sd_scripts.tensorfile import atomic_path

logger = logging.getLogger(__name__)

OWN = "sd_scripts."
# name in a configuration -> module; imported only when it is asked for
REGISTRY = {name: name if name.startswith(OWN) else OWN + name for name in NETWORK_MODULES} | {
    LYCORIS: f"{OWN}networks.lycoris_compat"
}
INSTALL_LINES = {LYCORIS: "pip install lycoris-lora==4.1.3"}
REQUIRED_METHODS = ("apply_to", "prepare_optimizer_params", "load_weights", "save_weights")


def load_plugin(name: str, allow_plugins: bool = False) -> ModuleType:
    """Import a network module by its registered name, or a foreign one if that was allowed.

    Raises UserError when the name is foreign and not allowed, when the package is missing, or when the
    module does not offer `create_network`.
    """
    path = REGISTRY.get(name)
    if path is None:
        if not allow_plugins:
            raise UserError(
                f"network_module '{name}' is none of the known ones ({', '.join(known_names())}).",
                "network_module",
                hint="It is code of somebody else: if you trust it, start with --allow_plugins.",
            )
        path = name
    try:
        module = importlib.import_module(path)
        if name in INSTALL_LINES:
            importlib.import_module(name)
    except ImportError as error:
        line = INSTALL_LINES.get(name)
        raise UserError(
            f"network_module '{name}' cannot be imported: {error}.",
            "network_module",
            hint=f"Install it with: {line}" if line else "Is the package installed, and the name right?",
        ) from error
    if not callable(getattr(module, "create_network", None)):
        raise UserError(f"network_module '{name}' has no function create_network.", "network_module")
    return module


def known_names() -> list[str]:
    """The registered names, as they are written in configurations."""
    return [name for name in REGISTRY if not name.startswith(OWN)]


def parse_network_args(entries: Sequence[str] | None) -> dict[str, str]:
    """`key=value` entries as a mapping. Raises UserError for an entry without an equals sign."""
    arguments: dict[str, str] = {}
    for entry in entries or ():
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise UserError(f"network_args entry '{entry}' is not of the form key=value.", "network_args")
        arguments[key.strip()] = value.strip()
    return arguments


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered keyword arguments that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {key: value for key, value in offered.items() if key in parameters}


def positional_count(function: Callable[..., Any]) -> int:
    """How many positional arguments a bound function takes (a large number for *args)."""
    count = 0
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return sys.maxsize
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            count += 1
    return count


def as_plugged(text_encoders: Sequence[nn.Module]) -> nn.Module | list[nn.Module]:
    """One text encoder bare, several as a list."""
    return text_encoders[0] if len(text_encoders) == 1 else list(text_encoders)


class Plugin:
    """One network of any module that keeps to the protocol, with defaults for what it leaves out.

    `unet` and `text_encoders` are module trees under kohya's names, `module` is the network itself.
    """

    def __init__(self, network: Any, name: str, text_encoders: Sequence[nn.Module], unet: nn.Module) -> None:
        missing = [method for method in REQUIRED_METHODS if not callable(getattr(network, method, None))]
        if missing:
            raise UserError(f"The network of '{name}' lacks {', '.join(missing)}.", "network_module")
        self.module: nn.Module = network
        self.name = name
        self.text_encoder = as_plugged(text_encoders)
        self.unet = unet

    @classmethod
    def create(
        cls,
        module: ModuleType,
        name: str,
        text_encoders: Sequence[nn.Module],
        unet: nn.Module,
        *,
        dim: int | None,
        alpha: float | None,
        dropout: float | None,
        arguments: Mapping[str, str],
        vae: nn.Module | None = None,
    ) -> Plugin:
        """A new network for these models. Raises UserError when the module refuses its arguments."""
        offered: dict[str, Any] = {"dropout": dropout, **arguments, "neuron_dropout": dropout}
        encoders = as_plugged(text_encoders)
        keywords = accepted(module.create_network, offered)
        network = module.create_network(1.0, dim, alpha, vae, encoders, unet, **keywords)
        if network is None:
            raise UserError(f"network_module '{name}' made no network.", "network_module")
        return cls(network, name, text_encoders, unet)

    @classmethod
    def from_weights(
        cls,
        module: ModuleType,
        name: str,
        text_encoders: Sequence[nn.Module],
        unet: nn.Module,
        path: str | Path,
        *,
        multiplier: float = 1.0,
        for_inference: bool = False,
        arguments: Mapping[str, Any] | None = None,
        vae: nn.Module | None = None,
    ) -> tuple[Plugin, dict[str, Tensor]]:
        """A network shaped like a file, and the file's weights. Raises UserError when that cannot be done."""
        make = getattr(module, "create_network_from_weights", None)
        if make is None:
            raise UserError(f"network_module '{name}' cannot take its ranks from a file.", "network_module")
        if not Path(path).is_file():
            raise UserError(f"The network file '{path}' does not exist.", "network_weights")
        offered: dict[str, Any] = {**(arguments or {}), "for_inference": for_inference}
        keywords = accepted(make, offered)
        network, weights = make(multiplier, str(path), vae, as_plugged(text_encoders), unet, **keywords)
        return cls(network, name, text_encoders, unet), weights

    def apply(self, train_text_encoder: bool, train_unet: bool) -> None:
        """Put the network into the models. Raises UserError when it found nothing to train."""
        self.module.apply_to(self.text_encoder, self.unet, train_text_encoder, train_unet)
        if next(self.module.parameters(), None) is None:
            raise UserError(
                f"network_module '{self.name}' found no layer to train in this model.",
                "network_module",
                hint="Check its preset, its ranks, and what is chosen to be trained.",
            )

    def load(self, path: str | Path) -> str:
        """Load weights into the applied network; a sentence about what fitted."""
        if not Path(path).is_file():
            raise UserError(f"The network file '{path}' does not exist.", "network_weights")
        return str(self.module.load_weights(str(path)))

    def optional(self, method: str) -> Callable[..., Any] | None:
        """A method that a network may have or not."""
        found = getattr(self.module, method, None)
        return found if callable(found) else None

    def parameter_groups(
        self, unet_lr: float | None, text_encoder_lr: Sequence[float] | None, default_lr: float | None
    ) -> list[ParameterGroup]:
        """The network's groups with names and rates; parameters in no group are frozen.

        Raises UserError when nothing is left to train.
        """
        several = self.optional("prepare_optimizer_params_with_multiple_te_lrs")
        rates = list(text_encoder_lr) if text_encoder_lr else None
        if several is not None:
            result = several(rates, unet_lr, default_lr)
        else:
            prepare = self.module.prepare_optimizer_params
            first = rates[0] if rates else None
            takes_default = positional_count(prepare) >= 3
            # Networks of the older form know no default rate, and leave the group without one.
            result = prepare(first, unet_lr, default_lr) if takes_default else prepare(first, unet_lr)
        raw, names = result if isinstance(result, tuple) else (result, None)
        prepare_gradients = self.optional("prepare_grad_etc")
        if prepare_gradients is not None:
            prepare_gradients(self.text_encoder, self.unet)
        groups = self._named(list(raw), names)
        trained = {id(parameter) for group in groups for parameter in group.params}
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        if not groups:
            raise UserError("Every learning rate is 0, so nothing would be trained.", "learning_rate")
        return groups

    def _named(self, raw: Sequence[Any], names: Sequence[str] | None) -> list[ParameterGroup]:
        groups = []
        for place, entry in enumerate(raw):
            entry = entry if isinstance(entry, Mapping) else {"params": [entry]}
            parameters = list(entry["params"])
            rate = entry.get("lr")
            if not parameters or rate == 0:
                continue
            name = names[place] if names and place < len(names) else self._guess_name(parameters)
            extra = {key: value for key, value in entry.items() if key not in ("params", "lr")}
            groups.append(ParameterGroup(name, parameters, None if rate is None else float(rate), extra))
        return groups

    def _guess_name(self, parameters: Sequence[nn.Parameter]) -> str:
        wanted = id(parameters[0])
        found = next((name for name, parameter in self.module.named_parameters() if id(parameter) == wanted), "")
        return "textencoder" if found.startswith("lora_te") else "unet" if "unet" in found else "network"

    def set_multiplier(self, multiplier: Tensor | float) -> None:
        """Strength for the whole batch, or for each sample [B] where the network can do that."""
        method = self.optional("set_multiplier")
        if method is None:
            return
        if isinstance(multiplier, Tensor) and bool((multiplier == multiplier.flatten()[0]).all()):
            multiplier = float(multiplier.flatten()[0])
        method(multiplier)

    def call_if_there(self, method: str) -> None:
        """Call a method of the form (text_encoder, unet), or without arguments, if the network has it."""
        found = self.optional(method)
        if found is None:
            return
        if positional_count(found) >= 2:
            found(self.text_encoder, self.unet)
        else:
            found()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the network calls trainable, without anything frozen."""
        method = self.optional("get_trainable_params")
        parameters = self.module.parameters() if method is None else method()
        return [parameter for parameter in parameters if parameter.requires_grad]

    @property
    def can_limit_norms(self) -> bool:
        """Whether `limit_norms` does anything."""
        has_method = self.optional("apply_max_norm_regularization") is not None
        return has_method and bool(getattr(self.module, "can_limit_norms", True))

    def limit_norms(self, maximum: float, device: torch.device) -> dict[str, float]:
        """Scale large modules down to `maximum`; figures for the display."""
        method = self.optional("apply_max_norm_regularization")
        if method is None:
            raise UserError(f"network_module '{self.name}' cannot limit its norms.", "scale_weight_norms")
        scaled, mean, greatest = method(maximum, device)
        return {
            "keys_scaled": int(scaled),
            "average_key_norm": float(mean),
            "max_key_norm": float(greatest),
        }

    def merge_into(
        self, weights: Mapping[str, Tensor], multiplier: float, dtype: torch.dtype | None, device: Any
    ) -> None:
        """Add the weights of a network made by `from_weights` to the models for good."""
        method = self.optional("merge_to")
        if method is None:
            raise UserError(f"network_module '{self.name}' cannot be merged into a model.", "base_weights")
        method(self.text_encoder, self.unet, weights, dtype, device)

    def save(self, path: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Write the file, complete or not at all, with both hashes as they are defined."""
        with atomic_path(path) as temporary:
            self.module.save_weights(str(temporary), dtype, dict(metadata) if metadata else None)
            if temporary.suffix == ".safetensors":
                _mend_hashes(temporary)


def _mend_hashes(path: Path) -> None:
    """Rewrite a plugin's file whose hashes are missing or made in another way."""
    with safe_open(str(path), framework="pt") as handle:
        metadata = dict(handle.metadata() or {})
    tensors = load_file(str(path))
    others = {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    mended = with_hashes(tensors, others)
    if mended != metadata:
        save_file(tensors, str(path), mended)
