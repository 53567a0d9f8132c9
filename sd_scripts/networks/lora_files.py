"""What a LoRA file holds: its tensors by module, ranks and alphas, and what does not belong into one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sd_scripts.networks.lora_dora import DORA_SCALE
from sd_scripts.schema.errors import UserError

LORA_TENSORS = ("lora_down.weight", "lora_up.weight", "alpha", DORA_SCALE)
# LoHa, LoKr, Tucker-decomposed convolutions, GLoRA, (B)OFT, full differences.
OTHER_KINDS = ("hada_", "lokr_", "lora_mid", "a1.weight", "oft_", "diff")


def refuse_other_kinds(weights: Mapping[str, Tensor], file: object, with_lengths: bool = False) -> None:
    """Raise UserError for files with parts that plain LoRA would leave out, which changes what they do.

    `with_lengths` says that the network takes DoRA's lengths.
    """
    refused = OTHER_KINDS if with_lengths else (*OTHER_KINDS, DORA_SCALE)
    found = sorted({tensor for key in weights for tensor in refused if f".{tensor}" in key})
    if found:
        raise UserError(
            f"'{file}' is no plain LoRA: it also holds {', '.join(found)}.",
            hint="LyCORIS made it: use network_module lycoris.kohya.",
        )


def sizes_in(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of every module in a file; where there is no alpha, it is the rank."""
    dims: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for key, value in weights.items():
        name, dot, tensor = key.partition(".")
        if not dot:
            continue
        if tensor == "alpha":
            alphas[name] = float(value)
        elif tensor == "lora_down.weight":
            dims[name] = value.shape[0]
    return {name: (dim, alphas.get(name, float(dim))) for name, dim in dims.items()}


def decomposed_names(weights: Mapping[str, Tensor]) -> frozenset[str]:
    """The modules that have DoRA's lengths."""
    ending = "." + DORA_SCALE
    return frozenset(key.removesuffix(ending) for key in weights if key.endswith(ending))
