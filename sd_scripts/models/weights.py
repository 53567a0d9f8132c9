"""Read weight files of any supported kind as a mapping of named tensors, mapped from the disk where possible.

Mapped tensors are private: changing one in memory never reaches the file.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import identify

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
KEY = "pretrained_model_name_or_path"


class _Ignored:
    """Stands in for a class of the program that trained a .ckpt; its content is thrown away."""

    def __setstate__(self, state: object) -> None:
        del state


# What Lightning left in the original Stable Diffusion files beside the weights. Only these names are let through, and
# what they build is empty; anything else in a pickle is refused.
_HARMLESS: list[tuple[type, str]] = [
    (_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Ignored, "pytorch_lightning.callbacks.early_stopping.EarlyStopping"),
    (_Ignored, "pytorch_lightning.utilities.parsing.AttributeDict"),
]


def read_weights(path: Path, key: str | None = KEY) -> dict[str, Tensor]:
    """All tensors of one weight file, on the CPU, in the file's own types.

    Args:
        path: .safetensors, or .ckpt/.pt/.pth/.bin holding nothing but tensors and plain data.
        key: the option that named the file, for messages.

    Raises:
        UserError: the file is missing, damaged, something else, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise UserError(f"There is no model file {path}.", key=key, hint="Check the path.")
    if path.suffix.lower() in PICKLES:
        return _read_pickle(path, key)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        facts = identify(str(path))
        raise UserError(
            f"{path} cannot be read as safetensors: {facts.problem or error}.",
            key=key,
            hint="Download or copy the file again.",
        ) from error


def _read_pickle(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights, and loading it could run foreign code ({_first_line(error)}).",
            key=key,
            hint="Convert it to .safetensors with a program you trust, or take a .safetensors version of the model.",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        facts = identify(str(path))
        raise UserError(
            f"{path} cannot be read: {facts.problem or _first_line(error)}.",
            key=key,
            hint="Download or copy the file again.",
        ) from error
    return _tensors_of(content, path, key)


def _tensors_of(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table of weights.", key=key)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights.", key=key)
    return tensors


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def read_part(folder: Path, stems: tuple[str, ...], key: str | None = KEY) -> dict[str, Tensor]:
    """The weights of one part of a diffusers folder: whole or in shards, full or half precision, new or old format.

    Full precision is preferred to a variant ("fp16"), safetensors to a pickle.

    Raises:
        UserError: there is no weight file, or it cannot be read.
    """
    for suffix in (".safetensors", ".bin"):
        for variant in ("", ".fp16", ".bf16"):
            for stem in stems:
                index = folder / f"{stem}{suffix}.index{variant}.json"
                older_index = folder / f"{stem}{variant}{suffix}.index.json"
                for shards in (index, older_index):
                    if shards.is_file():
                        return _read_shards(shards, key)
                whole = folder / f"{stem}{variant}{suffix}"
                if whole.is_file():
                    return read_weights(whole, key)
    raise UserError(
        f"{folder} holds no weights ({stems[0]}.safetensors or .bin).",
        key=key,
        hint="The model folder is incomplete: download or copy it again.",
    )


def _read_shards(index: Path, key: str | None) -> dict[str, Tensor]:
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    weights: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        weights |= read_weights(index.parent / name, key)
    return weights
