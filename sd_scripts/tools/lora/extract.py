"""A LoRA out of a tuned model: what each layer adds to the original, as the product of two thin matrices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_extract import ExtractLoraOptions
from sd_scripts.tensorfile import write_weights
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.lora.device import computing_device, in_parallel
from sd_scripts.tools.lora.extract_models import Loading, Pair, nothing_differs, open_pair
from sd_scripts.tools.lora.merge import number_format, target_file
from sd_scripts.tools.lora.notes import hashed, spec_notes
from sd_scripts.tools.lora.svd import Factors, completed, decompose
from sd_scripts.tools.report import report
from sd_scripts.training.metadata import base_model_version


def extract_lora(options: ExtractLoraOptions) -> None:
    """Write the LoRA, complete or not at all. Raises UserError."""
    target = target_file(options.save_to, options.overwrite)
    loading = Loading(
        number_format(options.load_precision),
        computing_device(options.load_original_model_to, "load_original_model_to"),
        computing_device(options.load_tuned_model_to, "load_tuned_model_to"),
        computing_device(options.device),
    )
    with open_pair(
        options.model_org,
        options.model_tuned,
        loading,
        ("model_org", "model_tuned"),
        v2=options.v2,
        sdxl=options.sdxl,
    ) as pair:
        names = _chosen(pair, options)
        kind = model_kind(pair, options.v_parameterization)
        tensors = _modules(pair, names, options, loading.device)
    modelspec = {} if options.no_metadata else spec_notes(target, kind)
    save(target, tensors, number_format(options.save_precision), {**_notes(options, kind), **modelspec})
    ranks = (len(value) for name, value in tensors.items() if name.endswith(".lora_down.weight"))
    say(f"{len(names)} modules of rank {spread(ranks)} written to {target}")


def _chosen(pair: Pair, options: ExtractLoraOptions) -> list[str]:
    """The layers to take: all that networks.lora would train, without the text encoder if that is the same."""
    names = pair.targets(options.conv_dim is not None)
    texts = [name for name in names if pair.places[name].part != "unet"]
    if pair.differ_by_more(texts, options.min_diff):
        return names
    say(f"the text encoder is left out: nothing in it differs by more than {options.min_diff:g}")
    return [name for name in names if pair.places[name].part == "unet"]


def _modules(pair: Pair, names: list[str], options: ExtractLoraOptions, device: torch.device) -> dict[str, Tensor]:
    """All tensors of the network. Raises UserError if no layer differs."""

    def module(name: str) -> tuple[str, bool, dict[str, Tensor]]:
        change = pair.difference(name)
        return name, bool(change.any()), factored(change, options)

    tensors: dict[str, Tensor] = {}
    differing = 0
    ticker = Ticker("layers", len(names))
    for number, (name, differs, parts) in enumerate(in_parallel(module, pair.forgetting(names), device), 1):
        tensors |= {f"{name}.{part}": value.cpu() for part, value in parts.items()}
        differing += differs
        ticker.at(number)
    if not differing:
        raise nothing_differs(pair, "model_tuned")
    return tensors


def factored(change: Tensor, options: ExtractLoraOptions) -> dict[str, Tensor]:
    """A layer's change [out, in, ...] as tensors of a LoRA module, by their names behind its own."""
    large = prod(change.shape[2:]) > 1
    rank = options.conv_dim if large and options.conv_dim is not None else options.dim
    if large and options.legacy:
        rank = min(rank, change.shape[1])
    matrix = change.flatten(1)
    found = decompose(matrix, rank, exact=options.exact)
    found = completed(found, min(rank, *matrix.shape))
    found = clamped(found, options.clamp_quantile, options.legacy)
    return {
        "lora_down.weight": found.down.reshape(found.rank, *change.shape[1:]),
        "lora_up.weight": found.up.reshape(change.shape[0], found.rank, *[1] * (change.dim() - 2)),
        "alpha": torch.tensor(float(found.rank)),
    }


def clamped(factors: Factors, quantile: float, legacy: bool = False) -> Factors:
    """Both factors cut to plus and minus a quantile of all their values.

    The quantile is that of the values with either sign, since the sign of a singular vector is anyone's choice; with
    `legacy` that of the values with the signs they happen to have.
    """
    values = torch.cat([factors.up.flatten(), factors.down.flatten()])
    if legacy:
        limit = _quantile(values, quantile)
    elif quantile < 1:
        limit = _quantile(values.abs(), 2 * quantile - 1)
    else:
        return factors
    return Factors(factors.up.clamp(-limit, limit), factors.down.clamp(-limit, limit), factors.values)


def _quantile(values: Tensor, share: float) -> float:
    """As torch.quantile, which refuses more than 16 million values."""
    place = share * (values.numel() - 1)
    below = int(place)
    least = float(values.kthvalue(below + 1).values)
    if place == below:
        return least
    return least + (place - below) * (float(values.kthvalue(below + 2).values) - least)


def model_kind(pair: Pair, v_parameterization: bool) -> dict[str, bool]:
    """v2, v_param and is_sdxl. A model of version 2 that does not say what it predicts is taken to predict v."""
    v2 = pair.version == "sd2"
    says_v = {"v_prediction": True, "epsilon": False}.get(pair.original.stored.prediction, v2)
    return {"v2": v2, "v_param": says_v or v_parameterization, "is_sdxl": pair.version == "sdxl"}


def _notes(options: ExtractLoraOptions, kind: Mapping[str, bool]) -> dict[str, str]:
    conv = options.conv_dim
    arguments = {} if conv is None else {"conv_dim": str(conv), "conv_alpha": str(float(conv))}
    return {
        "ss_v2": str(kind["v2"]),
        "ss_base_model_version": base_model_version(kind),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(options.dim),
        "ss_network_alpha": str(float(options.dim)),
        "ss_network_args": json.dumps(arguments),
    }


def spread(ranks: Iterable[int]) -> str:
    """`4`, or `4 to 16` where they differ."""
    low, *_, high = sorted([*ranks] * 2)
    return str(low) if low == high else f"{low} to {high}"


def save(target: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
    """Write a network file with the hashes of its tensors, complete or not at all.

    Raises:
        UserError: a value is too large for the number format.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value if dtype is None else value.to(dtype)).all()):
            kind = "fp16" if torch.float16 in (dtype, value.dtype) else "the file"
            hint = "" if dtype is None else "Choose bf16 or float."
            raise UserError(f"{name} has values that are larger than {kind} holds.", "save_precision", hint)
    with report.writing(target):
        write_weights(target, tensors, dtype, metadata, finish=hashed)
