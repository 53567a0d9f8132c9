"""Networks of any ranks and kinds merged into one LoRA: their sum, cut at a rank by singular values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.networks.changes import ADDED, DORA, Misfit, difference
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.lora.device import in_parallel
from sd_scripts.tools.lora.layer_shapes import Kernel, kernel_of, matrix_of
from sd_scripts.tools.lora.merge import Source, require_one_family
from sd_scripts.tools.lora.merge_network import Merged, named, parts_of, save
from sd_scripts.tools.lora.svd import Factors, completed, decompose, decompose_product
from sd_scripts.tools.report import report

CLAMP_QUANTILE = 0.99


@dataclass(frozen=True)
class Settings:
    """How networks are merged by SVD.

    Attributes:
        rank: of linear layers and 1x1 convolutions.
        conv_rank: of other convolutions.
        precision: format that the result is rounded to.
        saving: format of the file.
        device: where it is computed.
        exact: whole matrices are decomposed exactly.
        legacy: large values are cut off as sd-scripts did.
        bare: without modelspec notes.
        conv_noted: whether the rank of convolutions was asked for, and is noted in the file.
    """

    rank: int
    conv_rank: int
    precision: torch.dtype
    saving: torch.dtype
    device: torch.device
    exact: bool = False
    legacy: bool = False
    bare: bool = False
    conv_noted: bool = False


def merge_by_svd(sources: Sequence[Source], target: Path, settings: Settings) -> None:
    """Write the LoRA of a given rank that comes nearest to the sum, complete or not at all.

    Raises:
        UserError: the effect of a network depends on the model, or the networks do not fit one another.
    """
    version = require_one_family(sources)
    _require_added(sources)
    modules = list(dict.fromkeys(module for source in sources for module in source.file))
    tensors: dict[str, Tensor] = {}
    kept, whole = 0.0, 0.0
    convolutions = False
    ticker = Ticker("modules", len(modules))

    def work(module: str) -> Merged:
        return _merged(sources, module, version, settings)

    for number, (module, found) in enumerate(zip(modules, in_parallel(work, modules, settings.device))):
        ticker.at(number)
        kept, whole = kept + found.kept, whole + found.whole
        convolutions |= _is_wide(found.kernel)
        tensors |= named(module, found.up, found.down, found.alpha, found.kernel, settings.precision, settings.saving)
    report.phase("modules", len(modules), len(modules))
    if whole:
        say(f"the result holds {sqrt(min(kept / whole, 1.0)):.1%} of the sum (Frobenius norm)")
    conv = json.dumps({"conv_dim": settings.conv_rank, "conv_alpha": settings.conv_rank})
    save(
        tensors,
        [source.file for source in sources],
        target,
        bare=settings.bare,
        dim=str(settings.rank),
        alpha=str(settings.rank),
        arguments=conv if convolutions or settings.conv_noted else None,
    )
    say(f"{len(modules)} modules written to {target}")


def _require_added(sources: Sequence[Source]) -> None:
    """Raises UserError for networks that are no sum with the model's weights."""
    for source in sources:
        file = source.file
        for module in file:
            kind = file.kind(module)
            decomposed = DORA in file.modules[module]
            if kind in ADDED and not decomposed and "diff_b" not in file.modules[module]:
                continue
            what = "decomposed (DoRA)" if decomposed else "a change of a bias" if kind in ADDED else kind
            raise UserError(
                f"{file.path} cannot become a LoRA: {module} is {what}.",
                "models",
                "Merge it into a model instead (merge_lora.py with --sd_model).",
            )


def _merged(sources: Sequence[Source], module: str, version: str, settings: Settings) -> Merged:
    having = [source for source in sources if module in source.file.modules]
    if settings.legacy:
        return _as_once(having, module, version, settings)
    if all(source.file.kind(module) == "lora" for source in having):
        parts = parts_of(having, module)
        pairs = [part.weighted(1.0) for part in parts]
        up = torch.cat([pair[0] for pair in pairs], dim=1).to(settings.device)
        down = torch.cat([pair[1] for pair in pairs]).to(settings.device)
        kernel = parts[0].kernel
        rank = min(settings.conv_rank if _is_wide(kernel) else settings.rank, len(up), down.shape[1])
        found = decompose_product(up, down, name=module)
        whole = float(found.values.double().square().sum())
    else:
        matrix, kernel = _whole(having, module, version)
        matrix = matrix.to(settings.device)
        rank = min(settings.conv_rank if _is_wide(kernel) else settings.rank, *matrix.shape)
        found = decompose(matrix, rank, exact=settings.exact, name=module)
        whole = float(matrix.double().square().sum())
    found = completed(found, rank)
    return Merged(found.up, found.down, float(rank), kernel, float(found.values.double().square().sum()), whole)


def _as_once(sources: Sequence[Source], module: str, version: str, settings: Settings) -> Merged:
    """A module as sd-scripts made it: the whole matrix decomposed, large values cut off.

    What is cut off depends on the signs that the library gives the singular vectors, so it must be the same one.
    """
    matrix, kernel = _whole(sources, module, version)
    wide = _is_wide(kernel)
    channels = matrix.shape[1] // prod(kernel or (1,))
    rank = min(settings.conv_rank if wide else settings.rank, len(matrix), channels)
    left, values, right = torch.linalg.svd(matrix.to(settings.device), full_matrices=False)
    found = Factors(left[:, :rank] * values[:rank], right[:rank], values[:rank])
    return Merged(*clamped(found, CLAMP_QUANTILE), float(rank), kernel)


def _whole(sources: Sequence[Source], module: str, version: str) -> tuple[Tensor, Kernel]:
    """The sum as a matrix [out, in * kh * kw], and the kernel of a convolution."""
    total: Tensor | None = None
    kernel: Kernel = None
    for source in sources:
        source.require_finite(module)
        kind, shapes = source.file.kind(module), source.file.shapes(module)
        rows, columns = matrix_of(kind, shapes)
        if total is not None and total.shape != (rows, columns):
            raise UserError(
                f"{source.file.path}: {module} changes a layer of another size than in the file before"
                f" ({total.shape[0]} x {total.shape[1]} and {rows} x {columns}).",
                "models",
                "The networks are for different models.",
            )
        try:
            part = difference(source.file.tensors(module), (rows, columns), source.strength(module), kind)
        except Misfit as error:
            raise UserError(f"{source.file.path}: {module} {error}.", "models") from error
        if total is None:
            total, kernel = part, kernel_of(module, shapes, columns, version)
        else:
            total += part
    assert total is not None
    return total, kernel


def _is_wide(kernel: Kernel) -> bool:
    return kernel is not None and max(kernel) > 1


def clamped(factors: Factors, share: float) -> tuple[Tensor, Tensor]:
    """Up and down with all values cut to the range that this share of them lies below, as sd-scripts did it."""
    values = torch.cat([factors.up.flatten(), factors.down.flatten()]).double().sort().values
    place = share * (len(values) - 1)
    low = int(place)
    upper = values[min(low + 1, len(values) - 1)]
    limit = float(values[low] + (upper - values[low]) * (place - low))
    return factors.up.clamp(-limit, limit), factors.down.clamp(-limit, limit)
