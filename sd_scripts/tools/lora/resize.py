"""A LoRA cut to smaller ranks: every module's product decomposed again, the strongest parts kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_scripts.networks.changes import Misfit, factors
from sd_scripts.networks.netfile import NetworkFile, open_network
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_extract import ResizeLoraOptions, ToolResizeLoraOptions
from sd_scripts.tensormap import open_tensors
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.lora.device import computing_device, in_parallel
from sd_scripts.tools.lora.extract import save, spread
from sd_scripts.tools.lora.merge import listed, number_format, target_file
from sd_scripts.tools.lora.notes import DYNAMIC
from sd_scripts.tools.lora.svd import choose_rank, completed, decompose_product

_REPLACED = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha")
_PEFT_SETTINGS = "lora_adapter_metadata"
_LEAST_RATIO = 2.0
_BETWEEN_FORGETTING = 32


@dataclass(frozen=True)
class Ranks:
    """How many singular values are kept: at most so many of a linear layer and of a convolution, by a method or all."""

    linear: int
    conv: int
    method: str | None
    param: float | None
    legacy: bool


@dataclass(frozen=True)
class Resized:
    """A module after resizing.

    Attributes:
        module: its name.
        tensors: by their names behind it; the factors, alpha, and what else it had.
        conv: it belongs to a convolution.
        rank, alpha: of the new module.
        sum_kept, norm_kept: shares of the sum of the singular values and of the Frobenius norm; NaN of nothing.
        ratio: largest through smallest singular value kept; NaN of nothing.
    """

    module: str
    tensors: dict[str, Tensor]
    conv: bool
    rank: int
    alpha: float
    sum_kept: float
    norm_kept: float
    ratio: float


def resize_lora(options: ToolResizeLoraOptions) -> None:
    """Write the smaller LoRA, complete or not at all. Raises UserError."""
    target = target_file(options.save_to, options.overwrite)
    ranks = _checked(options)
    if not options.model:
        raise UserError("model is missing.", "model", "Give --model and the LoRA to resize.")
    device = computing_device(options.device)
    file = open_network(options.model, "model")
    try:
        names = [name for name in file if file.kind(name) == "lora"]
        if not names:
            raise UserError(
                f"{file.path} holds modules of kind {', '.join(file.kinds())}, and only LoRA can be resized.",
                "model",
                "networks/svd_merge_lora.py makes a LoRA of any rank out of LoHa, LoKr and full changes.",
            )
        done = _all_resized(file, names, ranks, device, options.verbose)
        tensors = _renamed(file, done) | _copied(file, names)
        metadata = _notes(file, done, ranks)
        old = _same_rank(file, names)
    finally:
        file.close()
    save(target, tensors, number_format(options.save_precision) or torch.float32, metadata)
    say(f"{len(done)} modules of rank {old} resized to {spread(result.rank for result in done)}, written to {target}")


def _checked(options: ToolResizeLoraOptions) -> Ranks:
    """Raises UserError for a dynamic method without its number, or with an impossible one."""
    method, param = options.dynamic_method, options.dynamic_param
    if method is None and param is not None:
        say("note: dynamic_param does nothing without a dynamic_method")
    if method is not None:
        least, most = (_LEAST_RATIO, math.inf) if method == "sv_ratio" else (0.0, 1.0)
        if param is None or not (least <= param <= most and param > 0):
            allowed = "2 or more" if method == "sv_ratio" else "above 0 and at most 1"
            given = "missing" if param is None else f"{param:g}"
            raise UserError(f"dynamic_param is {given}, but {method} needs a number {allowed}.", "dynamic_param")
    conv = options.new_conv_rank if isinstance(options, ResizeLoraOptions) else None
    return Ranks(options.new_rank, conv or options.new_rank, method, param, options.legacy)


def _all_resized(
    file: NetworkFile, names: list[str], ranks: Ranks, device: torch.device, verbose: bool
) -> list[Resized]:
    done: list[Resized] = []
    ticker = Ticker("modules", len(names))
    for number, result in enumerate(in_parallel(lambda name: _module(file, name, ranks, device), names, device), 1):
        done.append(result)
        ticker.at(number)
        if verbose:
            say(statistics(result))
        if number % _BETWEEN_FORGETTING == 0:
            file.forget()
    if verbose:
        shares = torch.tensor([result.norm_kept for result in done if not math.isnan(result.norm_kept)])
        if len(shares):
            mean, spread = float(shares.mean()), float(shares.std(correction=0))
            say(f"of the norms, {mean:.2%} are kept on average, with a standard deviation of {spread:.3f}")
    return done


def statistics(result: Resized) -> str:
    """One line on a module: its rank and alpha, the shares kept, and the ratio of the singular values."""
    return (
        f"{result.module}: rank {result.rank}, alpha {result.alpha:g}, {result.sum_kept:.1%} of the sum and "
        f"{result.norm_kept:.1%} of the norm kept, largest / smallest {result.ratio:.1f}"
    )


def _module(file: NetworkFile, name: str, ranks: Ranks, device: torch.device) -> Resized:
    stored = file.tensors(name)
    try:
        up, down, scale = factors({part: value.to(device) for part, value in stored.items()})
    except Misfit as error:
        raise UserError(f"{file.path}: {name} {error}.", "model") from error
    conv = down.dim() > 2
    most = min(ranks.conv if conv else ranks.linear, up.shape[0], down[0].numel())
    found = decompose_product(up, down.flatten(1), name=f"{file.path}: {name}")
    values = found.values
    if ranks.legacy:  # counted among as many as the whole matrix has
        values = torch.cat([values, values.new_zeros(min(up.shape[0], down[0].numel()) - len(values))])
    rank = choose_rank(values, ranks.method, ranks.param, most, ranks.legacy)
    kept = completed(found, rank)
    total, norm = float(found.values.sum()), float(torch.linalg.vector_norm(found.values))
    # copies: the file is closed before the result is written
    tensors = {part: value.clone() for part, value in stored.items() if part not in _REPLACED}
    tensors["lora_down.weight"] = kept.down.reshape(rank, *down.shape[1:]).cpu()
    tensors["lora_up.weight"] = kept.up.reshape(kept.up.shape[0], rank, *[1] * (down.dim() - 2)).cpu()
    tensors["alpha"] = torch.tensor(scale * rank)
    smallest = float(kept.values[-1])
    return Resized(
        name,
        tensors,
        conv,
        rank,
        scale * rank,
        float(kept.values.sum()) / total if total else math.nan,
        float(torch.linalg.vector_norm(kept.values)) / norm if norm else math.nan,
        float(kept.values[0]) / smallest if smallest else math.inf if total else math.nan,
    )


def _renamed(file: NetworkFile, done: list[Resized]) -> dict[str, Tensor]:
    """All tensors by the names that the file uses. A file of PEFT has no alpha: there the factor carries the scale."""
    found: dict[str, Tensor] = {}
    for result in done:
        tensors = dict(result.tensors)
        down = file.stored_name(result.module, "lora_down.weight")
        if "alpha" in file.modules[result.module]:
            found[file.stored_name(result.module, "alpha")] = tensors.pop("alpha")
        elif down.endswith(".lora_down.weight"):
            found[f"{down.removesuffix('.lora_down.weight')}.alpha"] = tensors.pop("alpha")
        else:
            tensors["lora_up.weight"] = tensors["lora_up.weight"] * (float(tensors.pop("alpha")) / result.rank)
        found |= {file.stored_name(result.module, part): value for part, value in tensors.items()}
    return found


def _copied(file: NetworkFile, names: list[str]) -> dict[str, Tensor]:
    """What is no LoRA, as it is."""
    taken = set(names)
    rest = [name for name in file if name not in taken]
    if rest:
        say(f"note: {listed(rest, 'modules')} are no LoRA and are copied as they are")
    found = {file.stored_name(name, part): value.clone() for name in rest for part, value in file.tensors(name).items()}
    if file.others:
        with open_tensors(file.path, "model") as source:
            found |= {name: source.get(name).clone() for name in file.others}
    return found


def _same_rank(file: NetworkFile, names: list[str]) -> str:
    """The rank of the linear layers, of all if there are none; a range where they differ."""
    ranks = [file.rank(name) or 0 for name in names]
    linear = [rank for rank, name in zip(ranks, names) if len(file.shapes(name)["lora_down.weight"]) < 4]
    return spread(linear or ranks)


def _notes(file: NetworkFile, done: list[Resized], ranks: Ranks) -> dict[str, str]:
    """The file's own entries, with the new ranks and a word on where they come from."""
    metadata: dict[str, str] = {key: value for key, value in file.metadata.items() if key != _PEFT_SETTINGS}
    old = _same_rank(file, [result.module for result in done])
    if ranks.method is not None:
        comment = f"Dynamic resize with {ranks.method}: {ranks.param} from {old}; "
        metadata |= {"ss_network_dim": DYNAMIC, "ss_network_alpha": DYNAMIC}
    else:
        conv = f" (conv: {ranks.conv})" if ranks.conv != ranks.linear else ""
        comment = f"dimension is resized from {old} to {ranks.linear}{conv}; "
        linear = [result for result in done if not result.conv] or done
        # a module of nothing, or too small for the rank, has another one
        alphas = {result.alpha for result in linear if result.rank == ranks.linear}
        alpha = str(alphas.pop()) if len(alphas) == 1 else DYNAMIC
        metadata |= {"ss_network_dim": str(ranks.linear), "ss_network_alpha": alpha}
    metadata["ss_training_comment"] = comment + metadata.get("ss_training_comment", "")
    arguments = _arguments(metadata, done, ranks)
    return metadata if arguments is None else {**metadata, "ss_network_args": arguments}


def _arguments(metadata: Mapping[str, str], done: list[Resized], ranks: Ranks) -> str | None:
    """`ss_network_args` with the new rank and alpha of the convolutions, where it had theirs; else None."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", ""))
    except ValueError:
        return None
    alphas = {result.alpha for result in done if result.conv and result.rank == ranks.conv}
    if not isinstance(arguments, dict) or "conv_dim" not in arguments or not alphas:
        return None
    dynamic = ranks.method is not None
    arguments["conv_dim"] = DYNAMIC if dynamic else str(ranks.conv)
    arguments["conv_alpha"] = DYNAMIC if dynamic or len(alphas) > 1 else str(alphas.pop())
    return json.dumps(arguments)
