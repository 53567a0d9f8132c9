"""Looking into a network file: how large each tensor is, what each module and block changes, what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_scripts.networks.changes import ADDED, DORA, Misfit, difference, factors, scale_of
from sd_scripts.networks.lora_blocks import SD_LAYOUT, SDXL_LAYOUT, block_index
from sd_scripts.networks.names import TEXT_ENCODER_2, UNET, layer_of
from sd_scripts.networks.netfile import NetworkFile, open_network
from sd_scripts.networks.norms import product_norm
from sd_scripts.schema.tools_inspect import CheckLoraOptions
from sd_scripts.tensorfile import atomic_path
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import refuse_existing

# Tensors that hold a single number; they are printed on demand.
_SINGLE = (".alpha", ".scalar", ".on_input")
_UPS = (
    "lora_up.weight",
    "hada_w1_a",
    "hada_w2_a",
    "lokr_w1",
    "lokr_w1_a",
    "diff",
    "oft_blocks",
    "b2.weight",
    "w_norm",
    "weight",
)
_DOWNS = ("lora_down.weight", "hada_w1_b", "hada_w2_b", "lokr_w2", "lokr_w2_b", "b1.weight")
_SOME_MODULES = 20
_NAMED = 3


@dataclass(frozen=True)
class TensorFacts:
    """Size and spread of a tensor: of its finite numbers, by their absolute values."""

    name: str
    shape: tuple[int, ...]
    mean: float
    least: float
    greatest: float
    not_finite: int


@dataclass(frozen=True)
class ModuleFacts:
    """A module: its rank and alpha, alpha / rank, and the norm of what it adds to the layer's weight.

    `norm` is None where the effect depends on the model's own weights, or cannot be worked out.
    """

    name: str
    block: str
    kind: str
    rank: int | None
    alpha: float | None
    strength: float | None
    norm: float | None
    up_mean: float | None
    down_mean: float | None
    not_finite: int


@dataclass(frozen=True)
class BlockFacts:
    """A block of the model: the norm of all its modules' changes together."""

    name: str
    norm: float | None
    modules: int


@dataclass(frozen=True)
class NetworkFacts:
    """What was found in a file."""

    kind: str
    tensors: list[TensorFacts]
    modules: list[ModuleFacts]
    blocks: list[BlockFacts]
    problems: list[str]
    metadata: dict[str, str]

    def table(self) -> dict[str, Any]:
        """For JSON: numbers that JSON has no word for are null."""
        found = asdict(self)
        del found["tensors"]
        return _plain(found)


def check(options: CheckLoraOptions) -> None:
    """Print what a file's tensors are like, and write the table of its modules. Raises UserError."""
    target = Path(options.json) if options.json else None
    if target is not None:
        refuse_existing([target], options.overwrite)
    file = open_network(options.file, "file")
    facts = look_into(file)
    say(f"number of LoRA modules: {len(facts.modules)}")
    for tensor in facts.tensors:
        if options.show_all_keys or not tensor.name.endswith(_SINGLE):
            shape = "-".join(map(str, tensor.shape))
            say(f"{tensor.name},({shape}),{tensor.mean:g},{tensor.least:g},{tensor.greatest:g}")
    for block in facts.blocks:
        norm = "" if block.norm is None else f", norm {block.norm:.4g}"
        say(f"{block.name}: {counted_as(range(block.modules), 'module')}{norm}")
    for problem in facts.problems:
        say(f"problem: {problem}")
    if target is not None:
        # no result that a job would list and could take back, only another form of what is printed
        with atomic_path(target) as aside:
            aside.write_text(json.dumps(facts.table(), indent=1), encoding="utf-8")
        say(f"table written to {target}")
    wrong = counted_as(facts.problems, "problem") if facts.problems else "nothing wrong found"
    say(f"{facts.kind}, {counted_as(facts.modules, 'module')} in {counted_as(facts.blocks, 'block')}: {wrong}")


def look_into(file: NetworkFile) -> NetworkFacts:
    """Measure every tensor and module of a file, which is read once."""
    tensors: list[TensorFacts] = []
    modules: list[ModuleFacts] = []
    problems: list[str] = []
    ticker = Ticker("modules", len(file.modules))
    for number, name in enumerate(file):
        ticker.at(number)
        parts = file.tensors(name)
        stored = {part: measured(file.stored_name(name, part), parts[part]) for part in file.modules[name]}
        tensors += stored.values()
        facts, problem = _module(file, name, parts, stored)
        modules.append(facts)
        problems += [problem] if problem else []
        if number % _SOME_MODULES == 0:
            file.forget()
    ticker.at(len(file.modules))
    silent = [module.name for module in modules if module.norm == 0]
    if silent:
        problems.append(f"{counted_as(silent, 'module')} without any effect, perhaps never trained: {_some(silent)}")
    if file.others:
        problems.append(f"{counted_as(file.others, 'tensor')} of no module: {_some(file.others)}")
    return NetworkFacts(
        ", ".join(file.kinds()), tensors, modules, _blocks(file, modules), problems, dict(file.metadata)
    )


def counted_as(things: Sized, word: str) -> str:
    """`1 module`, `2 modules`."""
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def measured(name: str, tensor: Tensor) -> TensorFacts:
    """Mean, least and greatest absolute value of a tensor's finite numbers, and how many are not finite."""
    values = tensor.detach().to(torch.float32).abs().flatten()
    finite = values.isfinite()
    wrong = int(values.numel() - finite.sum())
    values = values[finite] if wrong else values
    if not values.numel():
        return TensorFacts(name, tuple(tensor.shape), math.nan, math.nan, math.nan, wrong)
    least, greatest = torch.aminmax(values)
    mean = float(values.mean(dtype=torch.float64))
    return TensorFacts(name, tuple(tensor.shape), mean, float(least), float(greatest), wrong)


def _module(
    file: NetworkFile, name: str, parts: dict[str, Tensor], stored: dict[str, TensorFacts]
) -> tuple[ModuleFacts, str]:
    """A module's facts, and a sentence on what is wrong with it, or ""."""
    kind, wrong = file.kind(name), sum(tensor.not_finite for tensor in stored.values())
    norm: float | None = None
    problem = f"{name} has {wrong} numbers that are not finite" if wrong else ""
    if not wrong:
        try:
            norm = change_norm(kind, parts)
        except (Misfit, RuntimeError) as error:
            problem = f"{name} {error}"
    rank, alpha = rank_of(kind, parts), _number(parts.get("alpha"))
    facts = ModuleFacts(
        name=name,
        block=block_of(name, file.version == "sdxl"),
        kind=f"{kind} (DoRA)" if DORA in parts else kind,
        rank=rank,
        alpha=alpha,
        strength=scale_of(parts, rank) if rank and not wrong else None,
        norm=norm,
        up_mean=next((stored[part].mean for part in _UPS if part in stored), None),
        down_mean=next((stored[part].mean for part in _DOWNS if part in stored), None),
        not_finite=wrong,
    )
    return facts, problem


def _number(tensor: Tensor | None) -> float | None:
    return None if tensor is None or tensor.numel() != 1 else float(tensor)


def rank_of(kind: str, parts: dict[str, Tensor]) -> int | None:
    """The rank of a module, None for kinds (or Kronecker products) without one."""
    if kind == "lora":
        return parts["lora_down.weight"].shape[0]
    if kind == "loha":
        return parts["hada_w1_b"].shape[0]
    if kind == "glora":
        return parts["a2.weight"].shape[0]
    factor = next((parts[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts), None)
    return None if kind != "lokr" or factor is None else factor.shape[0]


def change_norm(kind: str, parts: dict[str, Tensor]) -> float | None:
    """The Frobenius norm of what a module adds at strength 1; None where that depends on the model's weights.

    Raises:
        Misfit: its tensors do not go together.
    """
    if kind not in ADDED or DORA in parts:
        return None
    if kind == "lora":
        up, down, scale = factors({name: value.double() for name, value in parts.items()})
        return abs(scale) * math.sqrt(max(float(product_norm(up, down)), 0.0))
    shape = _SHAPES[kind](parts)
    return None if shape is None else float(torch.linalg.vector_norm(difference(parts, shape, 1.0, kind)))


def _loha_shape(parts: dict[str, Tensor]) -> tuple[int, ...]:
    mid = parts.get("hada_t1")
    a, b = parts["hada_w1_a"], parts["hada_w1_b"]
    # Tucker: the first factor stands the other way round
    return (a.shape[0], b.shape[1]) if mid is None else (a.shape[1], b.shape[1], *mid.shape[2:])


def _lokr_shape(parts: dict[str, Tensor]) -> tuple[int, ...]:
    first = _factor_shape(parts, "lokr_w1")
    second = _factor_shape(parts, "lokr_w2")
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _factor_shape(parts: dict[str, Tensor], name: str) -> tuple[int, ...]:
    if name in parts:
        return tuple(parts[name].shape)
    a, b, mid = parts[f"{name}_a"], parts[f"{name}_b"], parts.get("lokr_t2")
    if mid is not None and name == "lokr_w2":
        return (a.shape[1], b.shape[1], *mid.shape[2:])
    return (a.shape[0], b.shape[1], *b.shape[2:])


def _full_shape(parts: dict[str, Tensor]) -> tuple[int, ...] | None:
    return tuple(parts["diff"].shape) if "diff" in parts else None


_SHAPES: dict[str, Callable[[dict[str, Tensor]], tuple[int, ...] | None]] = {
    "loha": _loha_shape,
    "lokr": _lokr_shape,
    "full": _full_shape,
}


def block_of(name: str, sdxl: bool) -> str:
    """The block of a module: IN00 ... MID ... OUT11 in the order of `block_dims`, or a text encoder's layer."""
    layer = layer_of(name)
    if layer is None:
        return "other"
    if layer.part != UNET:
        number = 2 if layer.part == TEXT_ENCODER_2 else 1
        found = layer.path.split("encoder.layers.")
        place = f" layer {int(found[1].split('.')[0]):02d}" if len(found) > 1 else " (rest)"
        return (f"text encoder {number}" if sdxl else "text encoder") + place
    index = block_index(name, sdxl)
    layout = SDXL_LAYOUT if sdxl else SD_LAYOUT
    for label, (start, count) in (("IN", layout.down), ("MID", layout.mid), ("OUT", layout.up)):
        if start <= index < start + count:
            return label if count == 1 else f"{label}{index - start:02d}"
    return "U-Net (rest)"


def _blocks(file: NetworkFile, modules: list[ModuleFacts]) -> list[BlockFacts]:
    """The blocks in the order of the computation: text encoders, then the U-Net from its input to its output."""
    grouped: dict[str, list[ModuleFacts]] = {}
    for module in modules:
        grouped.setdefault(module.block, []).append(module)
    return [BlockFacts(name, _together(grouped[name]), len(grouped[name])) for name in sorted(grouped, key=_order)]


def _order(name: str) -> tuple[int, str]:
    starts = ("text encoder", "IN", "MID", "OUT", "U-Net")
    return next((place for place, start in enumerate(starts) if name.startswith(start)), len(starts)), name


def _together(modules: list[ModuleFacts]) -> float | None:
    norms = [module.norm for module in modules if module.norm is not None]
    return math.sqrt(math.fsum(norm * norm for norm in norms)) if norms else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
