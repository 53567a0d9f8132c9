"""A DyLoRA file split into LoRA files: its first ranks are of use without the later ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.networks.netfile import NetworkFile, open_network
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_extract import ExtractDyloraOptions
from sd_scripts.tools.common import counted, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora.extract import save
from sd_scripts.tools.lora.merge import ENDINGS
from sd_scripts.tools.lora.svd import require_finite

_FACTORS = {"lora_down.weight", "lora_up.weight"}


def extract_dylora(options: ExtractDyloraOptions) -> None:
    """Write one file for every rank, each complete or not at all. Raises UserError."""
    target = _target(options.save_to)
    if not options.model:
        raise UserError("model is missing.", "model", "Give --model and the DyLoRA to split.")
    file = open_network(options.model, "model")
    try:
        whole = _full_rank(file)
        unit = options.unit or _noted_unit(file)
        ranks = split_ranks(whole, unit, options.legacy)
        targets = [target.with_name(f"{target.stem}-{rank:04d}{target.suffix}") for rank in ranks]
        refuse_existing(targets, options.overwrite)
        for rank, path in counted(list(zip(ranks, targets)), "ranks"):
            save(path, _cut(file, rank), None, _notes(file, rank, whole))
            file.forget()
    finally:
        file.close()
    say(f"rank {whole} split into {len(ranks)} files: {', '.join(path.name for path in targets)}")


def _target(text: str | None) -> Path:
    if not text:
        raise UserError("save_to is missing.", "save_to", "Give --save_to; the ranks are put before its ending.")
    target = Path(text)
    if target.suffix not in ENDINGS:
        raise UserError(f"save_to is {target}, but must end in {', '.join(ENDINGS)}.", "save_to")
    return target


def _full_rank(file: NetworkFile) -> int:
    """The largest rank in the file. Raises UserError if it holds anything but plain LoRA modules."""
    for name in file:
        if file.kind(name) != "lora" or not set(file.modules[name]) <= {*_FACTORS, "alpha"}:
            raise UserError(
                f"{file.path} is no DyLoRA: {name} has {', '.join(file.modules[name])}.",
                "model",
                "Give a file that was trained with networks.dylora.",
            )
    return max(file.rank(name) or 0 for name in file)


def _noted_unit(file: NetworkFile) -> int:
    """The unit that the file was trained with. Raises UserError if it does not say."""
    try:
        unit = int(json.loads(file.metadata.get("ss_network_args", "{}"))["unit"])
    except (ValueError, KeyError, TypeError):
        unit = 0
    if unit < 1:
        raise UserError(
            f"unit is missing, and {file.path} does not say with which it was trained.", "unit", "Give --unit."
        )
    return unit


def split_ranks(whole: int, unit: int, legacy: bool = False) -> list[int]:
    """The multiples of `unit` below the whole rank, and that; with `legacy` without it.

    Raises:
        UserError: there is none.
    """
    ranks = list(range(unit, whole, unit))
    if not legacy:
        if unit > whole:
            raise UserError(f"unit is {unit}, but the network's rank is {whole}.", "unit", "Give a smaller unit.")
        ranks.append(whole)
    if not ranks:
        raise UserError(f"Rank {whole} leaves nothing to split with a unit of {unit}.", "unit", "Give a smaller unit.")
    return ranks


def _cut(file: NetworkFile, rank: int) -> dict[str, Tensor]:
    """The first ranks of every module. Alpha stays: training divided it by the rank it computed with."""
    found: dict[str, Tensor] = {}
    for module in file:
        for part, value in file.tensors(module).items():
            if part not in file.modules[module]:
                continue  # an alpha that the metadata tells, not a tensor
            name = file.stored_name(module, part)
            if value.is_floating_point():
                require_finite(value.float(), f"{file.path}: {name}")
            cut = value[:rank] if part == "lora_down.weight" else value[:, :rank] if part == "lora_up.weight" else value
            found[name] = cut.clone()
        if "alpha" not in file.modules[module]:
            # without one it would be taken for the new rank
            down = file.stored_name(module, "lora_down.weight")
            alpha = torch.tensor(file.alpha(module), dtype=file.tensors(module)["lora_down.weight"].dtype)
            found[f"{down.removesuffix('.lora_down.weight')}.alpha"] = alpha
    return found


def _notes(file: NetworkFile, rank: int, whole: int) -> dict[str, str]:
    comment = f"split from DyLoRA, rank {whole} to {rank}; " + file.metadata.get("ss_training_comment", "")
    return {**file.metadata, "ss_network_dim": str(rank), "ss_training_comment": comment}
