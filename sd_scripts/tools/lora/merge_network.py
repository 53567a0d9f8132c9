"""LoRA files merged into one LoRA file.

A module of the result stands for the sum of strength * alpha / rank * up x down of its sources. Side by side
(`concat`) it is exactly that; else it is the nearest product of the largest rank among the sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sd_scripts.networks.changes import DORA, Misfit, factors
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.lora.device import in_parallel
from sd_scripts.tools.lora.layer_shapes import Kernel
from sd_scripts.tools.lora.merge import NAMED, Source, require_one_family
from sd_scripts.tools.models.writing import written
from sd_scripts.tools.report import report

if TYPE_CHECKING:
    from sd_scripts.networks.netfile import NetworkFile

Tensors = dict[str, Tensor]
# Kinds whose tensors are differences of whole weights.
_ADDITIVE = ("full", "norm")


@dataclass(frozen=True)
class Part:
    """One source's share of a module: `strength * scale * up @ down`.

    Attributes:
        up: [out, rank].
        down: [rank, in] or [rank, in, kh, kw].
        scale: alpha / rank.
        strength: of the source.
        kernel: of a convolution's tensors; None for a linear layer's.
    """

    up: Tensor
    down: Tensor
    scale: float
    strength: float
    kernel: Kernel

    @property
    def rank(self) -> int:
        """Rank of the share."""
        return len(self.down)

    def weighted(self, base: float) -> tuple[Tensor, Tensor]:
        """The factors [out, rank] and [rank, in * kh * kw] with everything but the scale `base` in them."""
        share = self.strength * self.scale / base
        root = sqrt(abs(share))
        return self.up * copysign(root, share), self.down.flatten(1) * root


@dataclass(frozen=True)
class Settings:
    """How LoRA files are merged.

    Attributes:
        precision: format that the result is rounded to.
        saving: format of the file.
        concat: side by side.
        shuffle: seed of a random order of the ranks; None for none.
        legacy: as sd-scripts did it.
        bare: without modelspec notes.
    """

    precision: torch.dtype
    saving: torch.dtype
    concat: bool = False
    shuffle: int | None = None
    legacy: bool = False
    bare: bool = False


def merge_networks(sources: Sequence[Source], target: Path, settings: Settings) -> None:
    """Write the LoRA that the sources make together, complete or not at all.

    Raises:
        UserError: a source is no plain LoRA, or the sources do not fit one another.
    """
    require_one_family(sources)
    modules, plain_sums = _sorted_by_kind(sources)
    tensors: Tensors = {}
    kept, whole = 0.0, 0.0
    order = torch.Generator().manual_seed(settings.shuffle or 0)
    ticker = Ticker("modules", len(modules))

    def work(module: str) -> Merged:
        parts = parts_of(sources, module)
        return legacy_merged(parts, module, settings.concat) if settings.legacy else merged(parts, settings.concat)

    for number, (module, found) in enumerate(zip(modules, in_parallel(work, modules, torch.device("cpu")))):
        ticker.at(number)
        kept, whole = kept + found.kept, whole + found.whole
        up, down = found.up, found.down
        if settings.shuffle is not None:
            turned = torch.randperm(len(down), generator=order)
            up, down = up[:, turned], down[turned]
        tensors |= named(module, up, down, found.alpha, found.kernel, settings.precision, settings.saving)
    for module in plain_sums:
        tensors |= _added(sources, module, settings)
    report.phase("modules", len(modules), len(modules))
    if kept < whole * (1 - 1e-6):
        share = sqrt(kept / whole)
        common = "where the networks change the same layers, the result holds"
        say(f"{common} {share:.1%} of the sum (Frobenius norm); --concat would hold all of it")
    files = [source.file for source in sources]
    # kohya's own LoRA has no normalisations and whole differences; LyCORIS has
    network = files[0].metadata.get("ss_network_module", "") if plain_sums else ""
    save(tensors, files, target, bare=settings.bare, network=network)
    say(f"{len(modules) + len(plain_sums)} modules written to {target}")


def _sorted_by_kind(sources: Sequence[Source]) -> tuple[list[str], list[str]]:
    """The LoRA modules of all sources, and those whose tensors are simply added.

    Raises:
        UserError: a module is neither, or differs in kind between the sources.
    """
    kinds: dict[str, tuple[str, Source]] = {}
    for source in sources:
        file = source.file
        for module in file:
            kind = file.kind(module)
            more = {DORA: "decomposed (DoRA)", "diff_b": "a change of a bias, too"} if kind == "lora" else {}
            what = next((text for part, text in more.items() if part in file.modules[module]), kind)
            if what not in ("lora", *_ADDITIVE):
                raise UserError(
                    f"{file.path} is no plain LoRA: {module} is {what}.",
                    "models",
                    "Merge it into a model with --sd_model; svd_merge_lora.py takes LoHa, LoKr and full files, too.",
                )
            known, other = kinds.setdefault(module, (kind, source))
            if known != kind:
                raise UserError(
                    f"{module} is {known} in {other.file.path}, but {kind} in {file.path}.",
                    "models",
                    "Merge them into a model, one after the other.",
                )
    modules = [module for module, (kind, _) in kinds.items() if kind == "lora"]
    return modules, [module for module in kinds if module not in set(modules)]


def _added(sources: Sequence[Source], module: str, settings: Settings) -> Tensors:
    """A module of whole differences: the sum of its tensors, each times its strength."""
    total: Tensors = {}
    for source in sources:
        if module not in source.file.modules:
            continue
        source.require_finite(module)
        for part, value in source.file.tensors(module).items():
            share = value.float() * source.strength(module)
            before = total.get(part)
            if before is not None and before.shape != share.shape:
                raise UserError(
                    f"{source.file.path}: {module} changes a layer of another size than in the file before.", "models"
                )
            total[part] = share if before is None else before + share
    return {
        f"{module}.{part}": value.to(settings.precision).to(settings.saving).contiguous()
        for part, value in total.items()
    }


def parts_of(sources: Sequence[Source], module: str) -> list[Part]:
    """The shares of the sources that have the module, all of them plain LoRA.

    Raises:
        UserError: they do not fit one another, or hold a value that is not finite.
    """
    found: list[Part] = []
    for source in sources:
        if module not in source.file.modules:
            continue
        source.require_finite(module)
        tensors = source.file.tensors(module)
        try:
            up, down, scale = factors({name: value.float() for name, value in tensors.items()})
        except Misfit as error:
            raise UserError(f"{source.file.path}: {module} {error}.", "models") from error
        part = Part(up, down, scale, source.strength(module), tuple(down.shape[2:]) or None)
        if found and (len(up), down[0].numel()) != (len(found[0].up), found[0].down[0].numel()):
            sizes = " and ".join(f"{len(one.up)} x {one.down[0].numel()}" for one in (found[0], part))
            raise UserError(
                f"{source.file.path}: {module} changes a layer of another size than in the file before ({sizes}).",
                "models",
                "The networks are for different models.",
            )
        found.append(part)
        source.file.forget()
    return found


@dataclass(frozen=True)
class Merged:
    """One module of the result.

    Attributes:
        up: [out, rank].
        down: [rank, in * kh * kw].
        alpha: of the module.
        kernel: of a convolution; None for a linear layer.
        kept, whole: squared norms of the result and of the sum that it stands for, where it is cut.
    """

    up: Tensor
    down: Tensor
    alpha: float
    kernel: Kernel
    kept: float = 0.0
    whole: float = 0.0


def merged(parts: Sequence[Part], concat: bool) -> Merged:
    """The sum of the shares: side by side, or cut to the largest of their ranks.

    The scale alpha / rank stays that of the first source, so that its factors are not touched at strength 1.
    """
    from sd_scripts.tools.lora.svd import decompose_product

    base = parts[0].scale or 1.0
    pairs = [part.weighted(base) for part in parts]
    up, down = torch.cat([pair[0] for pair in pairs], dim=1), torch.cat([pair[1] for pair in pairs])
    rank = len(down) if concat else min(max(part.rank for part in parts), len(down))
    if len(parts) == 1 or concat:
        return Merged(up, down, base * rank, parts[0].kernel)
    found = decompose_product(up, down)
    squares = (found.values.double() * base).square()
    whole, kept = float(squares.sum()), float(squares[:rank].sum())
    cut = found.cut(rank)
    # Both factors of like size, as training leaves them: half of every singular value in each.
    root = cut.values.sqrt()
    left, right = cut.up / torch.where(root > 0, root, 1.0), cut.down * root[:, None]
    missing = rank - cut.rank
    if missing > 0:
        left = torch.cat([left, left.new_zeros(len(left), missing)], dim=1)
        right = torch.cat([right, right.new_zeros(missing, right.shape[1])])
    return Merged(left, right, base * rank, parts[0].kernel, kept, whole)


def legacy_merged(parts: Sequence[Part], module: str, concat: bool) -> Merged:
    """The same as sd-scripts did: factors times the ratio, added or side by side, with the alpha of the first.

    Raises:
        UserError: the ranks differ, where factors are to be added.
    """
    alpha = parts[0].scale * parts[0].rank or float(parts[0].rank)
    ups, downs = [], []
    for part in parts:
        root = sqrt(abs(part.scale * part.rank / alpha))
        ups.append(part.up * (root * abs(part.strength)))
        downs.append(part.down.flatten(1) * (root * part.strength))
    if concat:
        return Merged(torch.cat(ups, dim=1), torch.cat(downs), alpha, parts[0].kernel)
    if len({part.rank for part in parts}) > 1:
        ranks = " and ".join(str(rank) for rank in sorted({part.rank for part in parts}))
        raise UserError(
            f"{module} has the ranks {ranks}; the old way cannot add these.",
            "legacy",
            "Leave out --legacy, or give --concat.",
        )
    return Merged(torch.stack(ups).sum(0), torch.stack(downs).sum(0), alpha, parts[0].kernel)


def named(
    module: str,
    up: Tensor,
    down: Tensor,
    alpha: float,
    kernel: Kernel,
    precision: torch.dtype,
    saving: torch.dtype,
) -> Tensors:
    """The tensors of a module as they go into a file: up [out, rank], down [rank, in * kh * kw], rounded once."""
    if kernel is not None:
        up, down = up[:, :, None, None], down.reshape(len(down), -1, *kernel)
    values = {"alpha": torch.tensor(alpha), "lora_down.weight": down, "lora_up.weight": up}
    return {f"{module}.{part}": value.to(precision).to("cpu", saving).contiguous() for part, value in values.items()}


def save(
    tensors: Tensors,
    files: Sequence[NetworkFile],
    target: Path,
    *,
    bare: bool,
    network: str = "",
    dim: str = "",
    alpha: str = "",
    arguments: str | None = None,
) -> None:
    """Write a LoRA file with notes and hashes.

    Args:
        tensors: as they go into the file.
        files: what they were made of.
        target: .safetensors, or another ending for a file without notes.
        bare: without modelspec notes.
        network: `ss_network_module`; networks.lora if not given.
        dim, alpha: as they are noted; told by the tensors if not given.
        arguments: `ss_network_args`, if any.

    Raises:
        UserError: a value is too large for the format.
    """
    from sd_scripts.tensorfile import write_safetensors, write_torch
    from sd_scripts.tools.lora.notes import hashed, kind_of_files, network_notes, same, spec_notes

    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value.float().sum()))]
    if bad:
        raise UserError(
            f"The result is too large for its number format ({', '.join(bad[:NAMED])}).",
            "save_precision",
            "Choose bf16 or float, or lower ratios.",
        )
    if target.suffix != ".safetensors":
        with written(target):
            write_torch(target, tensors)
        return
    downs = {name: len(value) for name, value in tensors.items() if name.endswith("lora_down.weight")}
    alphas = [float(value) for name, value in tensors.items() if name.endswith(".alpha")]
    notes = network_notes(
        files,
        dim=dim or same(downs.values()),
        alpha=alpha or same(alphas),
        module=network or "networks.lora",
        arguments=arguments,
    )
    metadata = hashed(tensors, notes)
    if not bare:
        metadata |= spec_notes(target, kind_of_files(files), [file.path for file in files])
    with written(target):
        write_safetensors(target, tensors, metadata)
