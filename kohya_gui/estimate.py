"""What a run will write and how long it may take: file names, sizes and times before anything is started."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kohya_gui import model_shapes, network_sizes
from kohya_gui.model_shapes import Whole
from kohya_gui.phrases import phrase
from sd_scripts.schema.naming import Saves, epochs_between_saves
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.values import trains_text_encoder

# of the full-size models, for files whose header does not tell
_WHOLE = {
    "sd1": Whole(859_520_964, 123_060_557, 83_653_863),
    "sd2": Whole(865_910_724, 340_387_840, 83_653_863),
    "sdxl": Whole(2_567_463_684, 817_720_397, 83_653_863),
}
_TOKEN = {"sd1": 768, "sd2": 1024, "sdxl": 768 + 1280}
_CONTROL = {"sd1": 361_279_120, "sd2": 364_228_240, "sdxl": 1_251_014_736}
_LLLITE = [(640, 2)] * 16 + [(1280, 3)] * 120
_BYTES = {"float": 4, "fp16": 2, "bf16": 2}
_LAYERS_OF_XTI = 16
# numbers that an optimizer keeps for every trained one, in bytes; the usual two moments where it is not listed
_MOMENTS = (("8bit", 2), ("paged", 2), ("lion", 4), ("adafactor", 0), ("sgdnesterov", 4))
_FORMATS = {"embedding": "pt", "xti": "pt"}
MOST_NAMES = 200
_MOST_SAVES = 20_000


@dataclass(frozen=True)
class Write:
    """A file (or state folder) that a run will write; `size` in bytes, None if it cannot be told before."""

    name: str
    size: int | None
    state: bool = False


@dataclass(frozen=True)
class Trained:
    """What a method trains and writes, in numbers: `learned` are changed by training, `written` stand in the file."""

    learned: int
    written: int


def trained(values: Mapping[str, Any], version: str, method: str) -> Trained | None:
    """How many numbers are trained and written; None where that depends on more than the form says.

    Args:
        values: every option of the trainer.
        version: "sd1", "sd2" or "sdxl".
        method: the trainer's method, as in COMMANDS.
    """
    model = str(values.get("pretrained_model_name_or_path") or "")
    if method == "full":
        whole = model_shapes.whole(model) or _WHOLE.get(version, _WHOLE["sd1"])
        learned = whole.unet + (whole.text if trains_text_encoder(values) else 0)
        return Trained(learned, sum(whole))
    if method == "network":
        numbers = network_sizes.numbers(values, version)
        return None if numbers is None else Trained(*numbers)
    if method == "controlnet":
        count = model_shapes.control(model) or _CONTROL.get(version)
    elif method == "lllite":
        layers = model_shapes.lllite_layers(model) or _LLLITE
        count = model_shapes.lllite_weights(
            layers, int(values.get("cond_emb_dim") or 32), int(values.get("network_dim") or 64)
        )
    else:
        width = model_shapes.token_width(model) or _TOKEN.get(version, 768)
        count = width * int(values.get("num_vectors_per_token") or 1) * (_LAYERS_OF_XTI if method == "xti" else 1)
    return None if count is None else Trained(count, count)


def file_size(values: Mapping[str, Any], version: str, method: str = "network") -> int | None:
    """About how many bytes one written file takes."""
    found = trained(values, version, method)
    return None if found is None else found.written * _written_bytes(values)


def _written_bytes(values: Mapping[str, Any]) -> int:
    in_16_bits = values.get("full_fp16") or values.get("full_bf16")
    return _BYTES.get(str(values.get("save_precision")), 2 if in_16_bits else 4)


def state_size(values: Mapping[str, Any], version: str, method: str = "network") -> int | None:
    """About how many bytes a training state takes: the weights, and what the optimizer knows of each."""
    found = trained(values, version, method)
    if found is None:
        return None
    name = str(values.get("optimizer_type") or "").lower()
    name = "8bit" if values.get("use_8bit_adam") else "lion" if values.get("use_lion_optimizer") else name
    kept = 2 if values.get("full_fp16") or values.get("full_bf16") else 4
    moments = next((size for sign, size in _MOMENTS if sign in name), 2 * kept)
    return found.learned * (kept + moments)


@dataclass(frozen=True)
class Lengths:
    """A run's lengths as the names of its files need them."""

    total_steps: int
    epochs: int
    steps_per_epoch: int
    save_every_n_epochs: int | None


def file_format(values: Mapping[str, Any], method: str = "network") -> str:
    """What is written: "safetensors", "ckpt", "pt", or a diffusers folder. A whole model is written as it was read."""
    chosen = values.get("save_model_as")
    if chosen:
        return str(chosen)
    if method != "full":
        return _FORMATS.get(method, "safetensors")
    if os.path.isfile(str(values.get("pretrained_model_name_or_path") or "")):
        return "safetensors" if values.get("use_safetensors") else "ckpt"
    return "diffusers_safetensors" if values.get("use_safetensors") else "diffusers"


def writes(
    values: Mapping[str, Any],
    lengths: tuple[int, int, int],
    size: int | None,
    state: int | None = None,
    method: str = "network",
) -> list[Write]:
    """What lies in the output folder at the end, in the order of writing. At most MOST_NAMES of them are listed.

    Args:
        values: every option of the trainer.
        lengths: steps, epochs and steps of an epoch.
        size: bytes of a file, and `state` of a training state; None if unknown.
        method: the trainer's method.
    """
    known = SavingOptions.__dataclass_fields__
    options = SavingOptions(**{key: values[key] for key in known if key in values})
    every = epochs_between_saves(options.save_every_n_epochs, options.save_n_epoch_ratio, lengths[1])
    plan = Lengths(*lengths, every)
    unnamed = str(values.get("token_string") or "") or None if method in ("embedding", "xti") else None
    saves = Saves.of(options, plan, file_format(values, method), unnamed)
    last, found = saves.at_end(), dict[str, Write]()
    for names in islice(saves.moments(plan), _MOST_SAVES):
        with_state = options.save_state or (names == last and options.save_state_on_train_end)
        found[names.file.name] = Write(names.file.name, size)
        if names.old_file is not None:
            found.pop(names.old_file.name, None)
        if with_state:
            found[names.state.name] = Write(names.state.name, state, True)
            if names.old_state is not None:
                found.pop(names.old_state.name, None)
    return list(found.values())[-MOST_NAMES:]


def bytes_text(size: float | None) -> str:
    """A size for people: 9.1 MB."""
    if size is None:
        return phrase("size unknown")
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
    return f"{hours} h {rest // 10 * 10} min" if hours < 24 else phrase("{n} days", n=f"{hours / 24:.1f}")


def number_text(value: float) -> str:
    """A rate for people: 1e-4, 0.05."""
    if value and abs(value) < 1e-2:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"
