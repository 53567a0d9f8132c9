"""What a run will write and how long it may take: file names, sizes and times before anything is started."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kohya_gui.model_shapes import PerRank, per_rank

# of the full-size models, for files whose header does not tell
_PER_RANK = {
    "sd1": PerRank(423_936, 165_888, 82_880, 544_000),
    "sd2": PerRank(432_128, 423_936, 82_880, 544_000),
    "sdxl": PerRank(2_659_840, 903_168, 58_560, 355_840),
}
_BYTES = {"float": 4, "fp16": 2, "bf16": 2}
_FACTORS = {"Standard": 1, "Kohya LoCon": 1, "LoRA-FA": 1, "LyCORIS/LoCon": 1, "LyCORIS/LoHa": 2}
MOST_NAMES = 200


@dataclass(frozen=True)
class Write:
    """A file (or state folder) that a run will write; `size` in bytes, None if it cannot be told before."""

    name: str
    size: int | None
    state: bool = False


def network_weights(values: Mapping[str, Any], version: str) -> int | None:
    """About how many numbers the network holds; None for kinds whose size depends on more than the rank."""
    kind = str(values.get("LoRA_type"))
    rank = values.get("network_dim")
    if kind not in _FACTORS or not rank or values.get("dim_from_weights"):
        return None
    sizes = per_rank(str(values.get("pretrained_model_name_or_path") or ""))
    sizes = sizes or _PER_RANK.get(version, _PER_RANK["sd1"])
    count = 0 if values.get("network_train_text_encoder_only") else sizes.unet
    count += 0 if values.get("network_train_unet_only") else sizes.text
    total = count * int(rank)
    conv = values.get("conv_dim") if kind != "Standard" else None
    if conv and not values.get("network_train_text_encoder_only"):
        total += sizes.conv_rank * int(rank) + sizes.conv * int(conv)
    return total * _FACTORS[kind]


def file_size(values: Mapping[str, Any], version: str) -> int | None:
    """About how many bytes the network's file takes."""
    weights = network_weights(values, version)
    if weights is None:
        return None
    trained_in_16_bits = values.get("full_fp16") or values.get("full_bf16")
    return weights * _BYTES.get(str(values.get("save_precision")), 2 if trained_in_16_bits else 4)


def writes(values: Mapping[str, Any], steps: int, epochs: int, size: int | None) -> list[Write]:
    """What lies in the output folder at the end, in the order of writing. At most MOST_NAMES of them are listed."""
    name = values.get("output_name")
    ending = f".{values.get('save_model_as') or 'safetensors'}"
    state = size * 6 if size else None
    found: list[Write] = []
    every = int(values.get("save_every_n_epochs") or 0)
    if values.get("save_n_epoch_ratio"):
        every = max(epochs // int(values["save_n_epoch_ratio"]), 1)
    moments = (
        [("epoch", epoch) for epoch in _last(range(every, epochs, every), values, "epochs", every)] if every else []
    )
    by = int(values.get("save_every_n_steps") or 0)
    if by:
        moments += [("at", step) for step in _last(range(by, steps + 1, by), values, "steps", by)]
    for kind, number in moments[:MOST_NAMES]:
        stem = f"{name or kind}-{number:06d}" if kind == "epoch" else f"{name or kind}-step{number:08d}"
        found.append(Write(stem + ending, size))
        if values.get("save_state"):
            found.append(Write(f"{stem}-state", state, True))
    found.append(Write(f"{name or 'last'}{ending}", size))
    if values.get("save_state") or values.get("save_state_on_train_end"):
        found.append(Write(f"{name or 'last'}-state", state, True))
    return found


def _last(moments: range, values: Mapping[str, Any], unit: str, every: int) -> Sequence[int]:
    kept = values.get(f"save_last_n_{unit}")
    if not kept:
        return moments
    # counted in epochs or steps, not in files
    return moments[-max(math.ceil(int(kept) / every), 1) :]


def bytes_text(size: float | None) -> str:
    """A size for people: 9.1 MB."""
    if size is None:
        return "size unknown"
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def time_text(seconds: float) -> str:
    """A duration for people: 45 s, 14 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest // 10 * 10} min" if hours < 24 else f"{hours / 24:.1f} days"


def number_text(value: float) -> str:
    """A rate for people: 1e-4, 0.05."""
    if value and abs(value) < 1e-2:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"
