"""How many numbers a network of each kind trains and writes, from the shapes of the base model's layers.

The few numbers beside the matrices (one alpha for each layer) are not counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import isqrt, prod
from pathlib import Path
from typing import Any, NamedTuple

from kohya_gui import model_shapes
from kohya_gui.model_shapes import Layer

_FULL_SIZE = Path(__file__).with_name("full_size.json")
_TRANSFORMER = ("attention", "mlp", "proj")
_BLOCKS = ("resnet", "sampler")
_TEXT = ("text.q", "text.k", "text.v", "text.out", "text.fc1", "text.fc2")
_TEXT_ATTENTION = _TEXT[:4]
# LyCORIS' presets: the roles that they train, and whether convolutions larger than 1x1 as well
_PRESETS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "full": ((*_TRANSFORMER, *_BLOCKS, "ends", "time", *_TEXT), True),
    "full-lin": ((*_TRANSFORMER, "resnet", "time", *_TEXT), False),
    "attn-mlp": ((*_TRANSFORMER, *_TEXT), False),
    "attn-only": (("attention", *_TEXT_ATTENTION), False),
    "unet-only": ((*_TRANSFORMER, *_BLOCKS, "ends", "time"), True),
    "unet-transformer-only": (_TRANSFORMER, False),
    "unet-convblock-only": ((*_BLOCKS, "ends"), True),
    "ia3": (("attention.k", "attention.v", "mlp.2", "text.k", "text.v", "text.fc2"), False),
}
# trained by LyCORIS in Stable Diffusion 1 and 2 alone
_NOT_IN_SDXL = ("ends", "time")
_INPUTS_OF_IA3 = ("mlp.2", "text.fc2")
# what decides on sizes and is not reckoned with here: ranks that differ by block, and layers without a rank
_UNKNOWN = ("block_dims", "conv_block_dims", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "train_norm")
_SIZING = (*_UNKNOWN, "conv_dim", "algo", "preset", "factor", "use_tucker", "decompose_both", "full_matrix")
_LYCORIS_RANK = 4


class Size(NamedTuple):
    """A layer as a formula takes it: outputs, inputs, kernel positions."""

    out: int
    inputs: int
    kernel: int


Formula = Callable[[Size, int, Mapping[str, Any]], int | None]


def numbers(values: Mapping[str, Any], version: str) -> tuple[int, int] | None:
    """How many numbers are trained and how many are written; None where that depends on more than the form says.

    Args:
        values: every option of the trainer.
        version: "sd1", "sd2" or "sdxl".
    """
    kind = str(values.get("LoRA_type"))
    formula = _FORMULAS.get(kind)
    given = {str(item).partition("=")[0] for item in values.get("network_args") or ()}
    rank = values.get("network_dim") or (_LYCORIS_RANK if kind.startswith("LyCORIS/") else 0)
    if formula is None or not rank or values.get("dim_from_weights") or given.intersection(_SIZING):
        return None
    if any(values.get(key) for key in _UNKNOWN):
        return None
    total = 0
    for layer, count in _layers(values, version).items():
        rank_here = _rank(kind, layer, int(rank), values, version)
        if not rank_here:
            continue
        one = formula(_size(layer), rank_here, {**values, "role": layer.role, "bias": layer.bias})
        if one is None:
            return None
        total += one * count
    return _both(kind, total, values, version, int(rank)) if total else None


def _both(kind: str, written: int, values: Mapping[str, Any], version: str, rank: int) -> tuple[int, int]:
    """What is trained of the numbers in the file, and these."""
    if kind == "LoRA-FA":
        # only the up matrices
        layers = _layers(values, version).items()
        return sum(_rank(kind, layer, rank, values, version) * layer.shape[0] * n for layer, n in layers), written
    if values.get("init_lora_weights") == "pissa" and kind in ("Standard", "Kohya LoCon"):
        lengths = _lengths(kind, values, version, rank)
        return written, 2 * (written - lengths) + lengths
    return written, written


def _lengths(kind: str, values: Mapping[str, Any], version: str, rank: int) -> int:
    """The numbers of DoRA in a file of networks.lora."""
    if not values.get("dora_wd"):
        return 0
    layers = _layers(values, version).items()
    return sum(layer.shape[0] * n for layer, n in layers if _rank(kind, layer, rank, values, version))


def _size(layer: Layer) -> Size:
    return Size(layer.shape[0], layer.shape[1], prod(layer.shape[2:]))


@cache
def _full_size(version: str) -> dict[Layer, int]:
    table = json.loads(_FULL_SIZE.read_text(encoding="utf-8"))
    rows = table.get(version) or table["sd1"]
    return {Layer(role, tuple(shape), bias): count for role, shape, bias, count in rows}


def _layers(values: Mapping[str, Any], version: str) -> Mapping[Layer, int]:
    """The base model's layers that could be trained, each with how often it is there."""
    found = model_shapes.layers(str(values.get("pretrained_model_name_or_path") or ""))
    counted: Mapping[Layer, int] = Counter(found) if found else _full_size(version)
    no_text, no_unet = values.get("network_train_unet_only"), values.get("network_train_text_encoder_only")
    return {
        layer: count for layer, count in counted.items() if not (no_text if layer.role.startswith("text.") else no_unet)
    }


def _of(role: str, roles: Iterable[str]) -> bool:
    return role in roles or role.partition(".")[0] in roles


def _rank(kind: str, layer: Layer, rank: int, values: Mapping[str, Any], version: str) -> int:
    """The rank of this layer's part of the network; 0 where it has none."""
    conv_rank = int(values.get("conv_dim") or 0)
    wide = prod(layer.shape[2:]) > 1
    if kind.startswith("LyCORIS/"):
        roles, with_convolutions = _PRESETS.get(str(values.get("LyCORIS_preset") or "full"), ((), False))
        if not _of(layer.role, roles) or (wide and not with_convolutions):
            return 0
        if version == "sdxl" and layer.role in _NOT_IN_SDXL:
            return 0
        return conv_rank or rank if wide else rank
    if kind == "Kohya OFT":
        roles = (_TRANSFORMER if values.get("enable_all_linear") else ("attention",)) + (
            _BLOCKS if values.get("enable_conv") else ()
        )
        return rank if _of(layer.role, roles) else 0
    if _of(layer.role, (*_TRANSFORMER, *_TEXT)):
        return rank
    if kind == "Standard" or not conv_rank or layer.role not in _BLOCKS:
        return 0
    return conv_rank if wide else rank


def _decomposed(size: Size, values: Mapping[str, Any]) -> int:
    return size.out if values.get("dora_wd") else 0


def _tucker(size: Size, values: Mapping[str, Any]) -> bool:
    return size.kernel > 1 and bool(values.get("use_tucker") or values.get("use_cp"))


def _pair(size: Size, rank: int) -> int:
    return rank * (size.out + size.inputs * size.kernel)


def _lora(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    return _pair(size, rank) + _decomposed(size, values)


def _locon(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    if _tucker(size, values):
        return rank * (size.out + size.inputs + rank * size.kernel) + _decomposed(size, values)
    return _lora(size, rank, values)


def _plain(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    return _pair(size, rank)


def _loha(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    half = rank * (size.out + size.inputs + rank * size.kernel) if _tucker(size, values) else _pair(size, rank)
    return 2 * half + _decomposed(size, values)


def split(size: int, factor: int) -> tuple[int, int]:
    """Two numbers, the smaller one first, whose product is `size`, as LoKr and Diag-OFT choose them."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = isqrt(size) if factor < 0 else min(factor, isqrt(size))
    small = next(number for number in range(max(most, 1), 0, -1) if size % number == 0)
    return small, size // small


def _lokr(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    factor = int(values.get("factor") or -1)
    (a, b), (c, d) = split(size.out, factor), split(size.inputs, factor)
    small = rank * (a + c) if values.get("decompose_both") and rank < max(a, c) / 2 else a * c
    if rank >= max(b, d) / 2:
        large = b * d * size.kernel
    elif _tucker(size, values):
        large = rank * (b + d + rank * size.kernel)
    else:
        large = rank * (b + d * size.kernel)
    return small + large + _decomposed(size, values)


def _glora(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    return rank * (2 * size.inputs + size.inputs * size.kernel + size.out)


def _ia3(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    preset = str(values.get("LyCORIS_preset") or "full")
    on_input = values.get("train_on_input", True) or (preset == "ia3" and values["role"] in _INPUTS_OF_IA3)
    return size.inputs if on_input else size.out


def _oft(size: Size, rank: int, values: Mapping[str, Any]) -> int | None:
    return None if size.out % rank else rank * (size.out // rank) ** 2


def _scale(size: Size, values: Mapping[str, Any]) -> int:
    return size.out if values.get("rescaled") else 0


def _diag_oft(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    side, number = split(size.out, rank)
    return number * side**2 + _scale(size, values)


def _boft(size: Size, rank: int, values: Mapping[str, Any]) -> int | None:
    """The largest even side up to the rank that leaves a power of two of blocks, in as many layers as that has bits."""
    sides = [side for side in range(2, rank + 1, 2) if size.out % side == 0]
    side = next((side for side in reversed(sides) if (size.out // side).bit_count() == 1), None)
    if side is None:
        return None
    number = size.out // side
    return ((number - 1).bit_count() + 1) * number * side**2 + _scale(size, values)


def _full(size: Size, rank: int, values: Mapping[str, Any]) -> int:
    return size.out * size.inputs * size.kernel + (size.out if values["bias"] else 0)


_FORMULAS: Mapping[str, Formula] = {
    "Standard": _lora,
    "Kohya LoCon": _lora,
    "LoRA-FA": _plain,
    "Kohya DyLoRA": _plain,
    "Kohya LoHa": _loha,
    "Kohya LoKr": _lokr,
    "Kohya OFT": _oft,
    "LyCORIS/LoCon": _locon,
    "LyCORIS/LoHa": _loha,
    "LyCORIS/LoKr": _lokr,
    "LyCORIS/GLoRA": _glora,
    "LyCORIS/iA3": _ia3,
    "LyCORIS/Diag-OFT": _diag_oft,
    "LyCORIS/BOFT": _boft,
    "LyCORIS/DyLoRA": _plain,
    "LyCORIS/Native Fine-Tuning": _full,
}
