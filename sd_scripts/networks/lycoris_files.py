"""Files of LyCORIS: modules shaped like the tensors of a file, and layers changed by them for good."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sd_scripts.networks.changes import Misfit, changed, kind_of
from sd_scripts.networks.lycoris_kinds import classes
from sd_scripts.networks.lycoris_modules import Mended, for_a_file
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.lycoris import Settings, bypassable

logger = logging.getLogger(__name__)

_CLASS_OF = {
    "lora": "LoConModule",
    "loha": "LohaModule",
    "lokr": "LokrModule",
    "ia3": "IA3Module",
    "glora": "GLoRAModule",
    "diag-oft": "DiagOFTModule",
    "boft": "ButterflyOFTModule",
    "full": "FullModule",
    "norm": "NormModule",
    "tlora": "TLoraModule",
}
# The tensor whose first axis is the rank.
_RANK_OF = {
    "lora": ("lora_down.weight",),
    "loha": ("hada_w1_b",),
    "lokr": ("lokr_w1_b", "lokr_w2_b"),
    "glora": ("a2.weight",),
    "tlora": ("q_layer.weight",),
}


def by_module(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by module and short name."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        name, dot, part = key.partition(".")
        if dot:
            found.setdefault(name, {})[part] = value
    return found


def kind_in(tensors: Mapping[str, Tensor]) -> str:
    """The kind of a module's tensors, T-LoRA included; "" for an unknown one."""
    if "lambda_layer" in tensors:
        return "tlora"
    blocks = tensors.get("oft_blocks")
    return kind_of(tensors, axes=3 if blocks is None else blocks.dim())


def describe(tensors: Mapping[str, Tensor]) -> str:
    """The kind of a module's tensors, for a sentence."""
    try:
        return kind_in(tensors) or "an unknown kind"
    except Misfit:
        return "an incomplete module"


def load_module(lora: Mended, tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Load the tensors of a file, by their short names, into one module.

    Raises UserError when they are of another kind or size.
    """
    with for_a_file([lora]):
        wanted = set(lora.state_dict())
    lacking = sorted(wanted - tensors.keys() - {"alpha"})
    surplus = sorted(tensors.keys() - wanted - {"alpha", "scalar", "diff_b"})
    if lacking or surplus:
        need = f"this network needs {lacking[0]}" if lacking else f"this network has no {surplus[0]}"
        raise UserError(
            f"'{file}' holds {describe(tensors)} for {lora.lora_name}, but {need}.",
            "network_weights",
            "Use the algo and the settings that the file was made with, or take them from it with dim_from_weights.",
        )
    values = {key: value for key, value in tensors.items() if key != "scalar"}
    if "alpha" in wanted and "alpha" not in values:
        # without an alpha the rank counts; to OFT its absence means no limit
        values["alpha"] = torch.tensor(0.0 if "oft_blocks" in values else float(cast(Any, lora).lora_dim))
    try:
        lora.load_state_dict(values, strict=False)
    except RuntimeError as error:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items() if value.dim())
        raise UserError(
            f"'{file}' does not fit this network at {lora.lora_name}: it has {shapes}.",
            "network_weights",
            "Use the ranks and settings that the file was made with, or take them from it with dim_from_weights.",
        ) from error


def made_like(
    name: str, layer: nn.Module, tensors: Mapping[str, Tensor], settings: Settings, file: str | Path
) -> Mended:
    """A module for the layer, shaped like the tensors of a file and filled with them.

    Args:
        name: of the module.
        layer: what it is put around.
        tensors: by their short names.
        settings: dropouts and the like; ranks and kinds come from the tensors.
        file: for messages.

    Raises:
        UserError: the tensors are incomplete, of an unknown kind, or do not fit the layer.
    """
    try:
        kind = kind_in(tensors)
        if not kind:
            raise Misfit("it is of no known kind")
        if settings["bypass_mode"] and not bypassable(kind, "dora_scale" in tensors):
            raise Misfit(f"bypass_mode would do something else than this file of {kind}; switch it off")
        kind_class = "DyLoraModule" if kind == "lora" and settings.algo == "dylora" else _CLASS_OF[kind]
        made = classes()[kind_class](name, layer, **_shape(kind, layer, tensors, settings))
        if kind == "lokr":
            _reshape(made, tensors)
    except (Misfit, AssertionError, AttributeError, RuntimeError, ValueError) as error:
        raise UserError(f"'{file}': {name} cannot be read: {error}.", "network_weights") from error
    load_module(made, tensors, file)
    return made


def _shape(kind: str, layer: Any, tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, Any]:
    """The keywords for LyCORIS' class."""
    keys = ("rank_dropout", "module_dropout", "dropout")
    words: dict[str, Any] = {key: settings[key] or 0.0 for key in keys}
    words |= {key: settings[key] for key in ("rank_dropout_scale", "bypass_mode", "use_scalar")}
    rank = next((tensors[key].shape[0] for key in _RANK_OF.get(kind, ()) if key in tensors), 1)
    words["lora_dim"] = rank
    words["alpha"] = float(tensors["alpha"]) if "alpha" in tensors else float(rank)
    words["use_tucker"] = not {"lora_mid.weight", "hada_t1", "lokr_t2"}.isdisjoint(tensors)
    if "dora_scale" in tensors:
        words["weight_decompose"] = True
        words["wd_on_out"] = tensors["dora_scale"].shape[0] == layer.weight.shape[0]
    if kind in ("diag-oft", "boft"):
        words["lora_dim"] = tensors["oft_blocks"].shape[-1]
        words["constraint"] = float(tensors["alpha"]) if "alpha" in tensors else 0.0
        words["rescaled"] = "rescale" in tensors
    if kind == "ia3":
        words["train_on_input"] = bool(tensors["on_input"])
    if kind == "lora" and settings.algo == "dylora":
        words["block_size"] = settings["block_size"]
    return words


def _reshape(lora: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a LoKr module matrices of the file's shapes: how they were split cannot be told from them."""
    for key in [key for key, _ in lora.named_parameters(recurse=False) if key.startswith("lokr_")]:
        delattr(lora, key)
    parts = {key: value for key, value in tensors.items() if key.startswith("lokr_")}
    for key, value in parts.items():
        matrix = value.flatten(1) if key == "lokr_w2_b" else value
        setattr(lora, key, nn.Parameter(matrix.detach().clone().float()))
    lora.use_w1, lora.use_w2, lora.tucker = "lokr_w1" in parts, "lokr_w2" in parts, "lokr_t2" in parts
    lora.follow_alpha()
    lora.get_weight(lora.shape)


@torch.no_grad()
def merge_into(
    layers: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    multiplier: float,
    dtype: torch.dtype | None,
    file: str | Path,
) -> int:
    """Change layers for good by the tensors of a file.

    Args:
        layers: by the names that modules have in files.
        weights: the file's.
        multiplier: how strongly.
        dtype: for the layers' weights afterwards; None keeps theirs.
        file: for messages.

    Returns:
        How many layers were changed.

    Raises:
        UserError: no module of the file belongs to one of the layers, or one does not fit its layer.
    """
    count = 0
    modules = by_module(weights)
    for name, tensors in modules.items():
        layer = layers.get(name)
        if layer is None:
            continue
        weight, bias = layer.weight.detach(), getattr(layer, "bias", None)
        wide = None if bias is None else bias.detach().float()
        try:
            here = {key: value.to(weight.device) for key, value in tensors.items()}
            new_weight, new_bias = changed(here, weight.float(), wide, multiplier, kind_in(tensors))
        except Misfit as error:
            raise UserError(f"'{file}': {name} {error}.", "base_weights") from error
        layer.weight.data = new_weight.to(dtype or weight.dtype)
        if new_bias is not None and bias is not None:
            bias.data = new_bias.to(dtype or bias.dtype)
        count += 1
    if not count:
        raise UserError(f"No module of '{file}' belongs to a layer of this model.", "base_weights")
    if count < len(modules):
        logger.warning("%d of the %d modules of %s belong to no layer here.", len(modules) - count, len(modules), file)
    return count
