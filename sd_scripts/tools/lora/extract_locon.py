"""A LyCORIS file out of a tuned model: low-rank changes of all linear layers and convolutions, or whole changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.models.modules import Place
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_extract import ExtractLoconOptions
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora.device import computing_device, in_parallel
from sd_scripts.tools.lora.extract import model_kind, save
from sd_scripts.tools.lora.extract_models import Loading, Pair, nothing_differs, open_pair
from sd_scripts.tools.lora.merge import ENDINGS
from sd_scripts.tools.lora.notes import same, spec_notes
from sd_scripts.tools.lora.svd import Factors, decompose, decompose_by
from sd_scripts.training.metadata import base_model_version

SAVED = torch.float16  # LyCORIS writes these files in half precision only
_MOST_COLUMNS = torch.iinfo(torch.int16).max


@dataclass(frozen=True)
class Amount:
    """How much of a layer is kept: `number` is a rank, a threshold, a ratio or a quantile, as `mode` says."""

    mode: str
    number: float

    def rank(self, values: Tensor) -> int:
        """How many of these singular values, largest first, are kept in a mode that goes by them."""
        if self.mode == "threshold":
            return int((values > self.number).sum())
        if self.mode == "ratio":
            return int((values > values[0] * self.number).sum())
        return int((torch.cumsum(values, 0) < values.sum() * self.number).sum())


def extract_locon(options: ExtractLoconOptions) -> None:
    """Write the LyCORIS file, complete or not at all. Raises UserError."""
    target = target_of(options.output_name, options.safetensors)
    refuse_existing([target], options.overwrite)
    device = computing_device(options.device)
    loading = Loading(None, torch.device("cpu"), torch.device("cpu"), device)
    with open_pair(
        options.base_model,
        options.db_model,
        loading,
        ("base_model", "db_model"),
        v2=options.is_v2,
        sdxl=options.is_sdxl,
    ) as pair:
        kind = model_kind(pair, False)
        tensors = _modules(pair, options, device)
    names = sorted({name.partition(".")[0] for name in tensors})
    low = [name for name in names if f"{name}.lora_down.weight" in tensors]
    metadata = {
        "ss_v2": str(kind["v2"]),
        "ss_base_model_version": base_model_version(kind),
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": same(float(tensors[f"{name}.lora_down.weight"].shape[0]) for name in low),
        "ss_network_alpha": same(float(tensors[f"{name}.alpha"]) for name in low),
        "ss_network_args": json.dumps({"algo": "locon" if low else "full"}),
    }
    save(target, tensors, None, {**metadata, **spec_notes(target, kind)})
    say(f"{len(low)} low-rank and {len(names) - len(low)} whole changes written to {target}")


def target_of(text: str, safetensors: bool) -> Path:
    """The file to write: with its ending, else the one that the option asks for.

    Raises:
        UserError: the name is missing, or ends as no network file does.
    """
    if not text:
        raise UserError("output_name is missing.", "output_name", "Give the file to write.")
    target = Path(text)
    if safetensors and target.suffix != ".safetensors":
        target = target.with_suffix(".safetensors") if target.suffix in ENDINGS else Path(f"{text}.safetensors")
    elif target.suffix not in ENDINGS:
        target = Path(f"{text}.pt")
    if target.is_dir():
        raise UserError(f"output_name is {target}, which is a folder.", "output_name", "Give a file.")
    return target


def _modules(pair: Pair, options: ExtractLoconOptions, device: torch.device) -> dict[str, Tensor]:
    """All tensors of the file. Raises UserError if no layer differs."""
    places = pair.places
    kinds = ("linear", "conv", "norm") if options.mode == "full" else ("linear", "conv")
    names = [name for name, place in places.items() if place.kind in kinds]
    if options.mode == "full" and pair.embeddings_differ():
        say("note: embeddings of the text encoder differ; they are left out, since LyCORIS cannot load their changes")

    def module(name: str) -> tuple[str, dict[str, Tensor]]:
        if pair.nearly_equal(name):
            return name, {}
        return name, _module(pair, places[name], options)

    tensors: dict[str, Tensor] = {}
    ticker = Ticker("layers", len(names))
    for number, (name, parts) in enumerate(in_parallel(module, pair.forgetting(names), device), 1):
        tensors |= {f"{name}.{part}": value.cpu() for part, value in parts.items()}
        ticker.at(number)
    if not tensors:
        raise nothing_differs(pair, "db_model")
    return tensors


def _module(pair: Pair, place: Place, options: ExtractLoconOptions) -> dict[str, Tensor]:
    change = pair.difference(place.name)
    if options.mode == "full":
        return _whole(pair, place, change)
    large = prod(place.shape[2:]) > 1
    factors = _cut(change, _amount(options, large), options.exact)
    if factors is None:
        return _whole(pair, place, change)
    down = factors.down.reshape(factors.rank, *change.shape[1:])
    up = factors.up.reshape(change.shape[0], factors.rank, *[1] * (change.dim() - 2))
    found = {"lora_down.weight": down, "lora_up.weight": up}
    product = factors.up @ factors.down
    if large and not options.disable_cp:
        core, inner = tucker(down, options.exact)
        found |= {"lora_mid.weight": core, "lora_down.weight": inner}
        inside = torch.einsum("abhw,bi->aihw", core, inner.flatten(1)).flatten(1)
        product = factors.up @ inside
    found["alpha"] = torch.tensor(float(factors.rank))
    found = {part: value.to(SAVED) for part, value in found.items()}
    if options.use_sparse_bias:
        found |= sparse(change.flatten(1) - product, options.sparsity)
    return found


def _amount(options: ExtractLoconOptions, large: bool) -> Amount:
    """What the options say about linear layers and 1x1 convolutions, or about larger ones."""
    linear, conv = {
        "fixed": (float(options.linear_dim), float(options.conv_dim)),
        "threshold": (options.linear_threshold, options.conv_threshold),
        "ratio": (options.linear_ratio, options.conv_ratio),
        "quantile": (options.linear_quantile, options.conv_quantile),
    }[options.mode]
    return Amount(options.mode, conv if large else linear)


def _cut(change: Tensor, amount: Amount, exact: bool) -> Factors | None:
    """The change [out, in, ...] at the rank wanted; None where two factors would take no less room than the whole."""
    matrix = change.flatten(1)

    def allowed(wanted: int) -> int:
        rank = max(1, min(wanted, *change.shape[:2]))
        return 0 if 2 * rank >= change.shape[0] else rank

    if amount.mode == "fixed":
        rank = allowed(int(amount.number))
        return decompose(matrix, rank, exact=exact) if rank else None
    found = decompose_by(matrix, lambda values: allowed(amount.rank(values)))
    return found if found.rank else None


def tucker(down: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """A convolution [rank, in, h, w] as a core [rank, rank, h, w] on a 1x1 convolution [rank, in, 1, 1]."""
    rank, inputs, *size = down.shape
    factors = decompose(down.transpose(0, 1).flatten(1), rank, exact=exact)
    core = factors.down.reshape(rank, rank, *size).transpose(0, 1)
    return core.contiguous(), factors.up.T.reshape(rank, inputs, *[1] * len(size)).contiguous()


def sparse(rest: Tensor, sparsity: float) -> dict[str, Tensor]:
    """The largest values of what is left [out, columns] as places, values and size, as LyCORIS stores them."""
    kept = max(1, round(rest.numel() * (1 - sparsity)))
    if max(rest.shape) > _MOST_COLUMNS:
        raise UserError(f"A layer of shape {list(rest.shape)} is too large for a sparse bias.", "use_sparse_bias")
    flat = rest.flatten()
    places = flat.abs().topk(kept).indices.sort().values
    rows, columns = places // rest.shape[1], places % rest.shape[1]
    return {
        "bias_indices": torch.stack([rows, columns]).to(torch.int16),
        "bias_values": flat[places].to(SAVED),
        "bias_size": torch.tensor(rest.shape, dtype=torch.int16),
    }


def _whole(pair: Pair, place: Place, change: Tensor) -> dict[str, Tensor]:
    """The change itself, with that of the bias."""
    weight_part, bias_part = ("w_norm", "b_norm") if place.kind == "norm" else ("diff", "diff_b")
    found = {weight_part: change.to(SAVED)}
    bias = pair.bias_difference(place.name)
    return found if bias is None else {**found, bias_part: bias.to(SAVED)}
