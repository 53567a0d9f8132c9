"""PEFT's own folders: `adapter_model.safetensors` with `adapter_config.json` beside it, one for each part of a model.

They are read as if they were one file, with the settings in its metadata as diffusers writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_scripts.networks.names import TEXT_ENCODER, TEXT_ENCODER_2, UNET, read_key
from sd_scripts.networks.netfile import NetworkFile, open_network
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_stream
from sd_scripts.tensormap import MappedTensors, open_tensors
from sd_scripts.tools.files import write_text
from sd_scripts.tools.lora.rename import PEFT_SETTINGS, Piece
from sd_scripts.tools.report import report

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PARTS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
WRAPPED = "base_model.model."
_CLASSES = {
    UNET: ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
    TEXT_ENCODER: ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
    TEXT_ENCODER_2: ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
}


class _Joined(MappedTensors):
    """The adapters of a model's parts as one file; names begin with the part, as diffusers has them."""

    def __init__(self, path: Path, sources: Mapping[str, MappedTensors], metadata: dict[str, str]) -> None:
        self.path, self.metadata = path, metadata
        self._places = {
            f"{part}.{name.removeprefix(WRAPPED)}": (source, name)
            for part, source in sources.items()
            for name in source.names
        }
        self._sources = list(sources.values())
        self.names = list(self._places)
        self.shapes = {name: source.shapes[stored] for name, (source, stored) in self._places.items()}
        self.dtypes = {name: source.dtypes[stored] for name, (source, stored) in self._places.items()}

    def get(self, name: str) -> Tensor:
        source, stored = self._places[name]
        return source.get(stored)

    def forget(self) -> None:
        for source in self._sources:
            source.forget()

    def close(self) -> None:
        for source in self._sources:
            source.close()


def open_lora(path: Path, key: str) -> NetworkFile:
    """A network file, or PEFT's folder of one part of a model, or a folder of such folders.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    if path.is_dir():
        folders = {part: path / part for part in PARTS if (path / part / WEIGHTS).is_file()}
        folders = folders or ({"": path} if (path / WEIGHTS).is_file() else {})
        if not folders:
            raise UserError(f"The folder {path} holds no {WEIGHTS}.", key, "Give a LoRA file or PEFT's folder.")
    elif path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        folders = {"": path.parent}
    else:
        return open_network(path, key)
    sources: dict[str, MappedTensors] = {}
    metadata: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for part, folder in folders.items():
        source, config = open_tensors(folder / WEIGHTS, key), _config(folder / CONFIG, key)
        part = part or _part_of(source, config)
        sources[part] = source
        metadata |= source.metadata
        settings |= {f"{part}.{name}": value for name, value in config.items()}
    return NetworkFile(_Joined(path, sources, {**metadata, PEFT_SETTINGS: json.dumps(settings)}), key)


def _config(path: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.", key) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no settings of PEFT.", key)
    return found


def _part_of(source: MappedTensors, config: Mapping[str, Any]) -> str:
    """The part of a model that an adapter is for, by the class that PEFT noted, else by its first name."""
    noted = config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, dict) else None
    for part, (known, _) in _CLASSES.items():
        if name == known:
            return part
    layers = (read_key(name) for name in source.names)
    return next((found[0].part for found in layers if found is not None), UNET)


def write_adapters(
    folder: Path, pieces: Mapping[str, Piece], make: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> list[Path]:
    """Write PEFT's folder for each part of the model; the tensors have the names that PEFT has in a single file.

    Returns the files, each complete or absent.
    """
    settings = json.loads(metadata.get(PEFT_SETTINGS, "{}"))
    notes = {name: text for name, text in metadata.items() if name != PEFT_SETTINGS}
    written = []
    for part in PARTS:
        names = {_inside(name, part): name for name in pieces if name.startswith(f"{part}.")}
        if not names:
            continue
        entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            inside: (pieces[name].dtype, pieces[name].shape) for inside, name in names.items()
        }
        target = folder / part
        target.mkdir(parents=True, exist_ok=True)
        tensors = partial(_made, make, names)
        with report.writing(target / WEIGHTS):
            write_stream(target / WEIGHTS, entries, tensors, notes)
        own = {name.removeprefix(f"{part}."): value for name, value in settings.items() if name.startswith(f"{part}.")}
        known, library = _CLASSES[part]
        config = {
            "base_model_name_or_path": None,
            "bias": "none",
            "inference_mode": True,
            **own,
            "auto_mapping": {"base_model_class": known, "parent_library": library},
        }
        write_text(target / CONFIG, json.dumps(config, indent=2, sort_keys=True))
        written += [target / WEIGHTS, target / CONFIG]
    return written


def _made(make: Callable[[str], Tensor], names: Mapping[str, str], inside: str) -> Tensor:
    return make(names[inside])


def files_of(folder: Path) -> list[Path]:
    """All files that `write_adapters` may write."""
    return [folder / part / name for part in PARTS for name in (WEIGHTS, CONFIG)]


def _inside(name: str, part: str) -> str:
    """A tensor's name in its part's own folder; newest transformers has no text_model level in the first encoder."""
    rest = name.removeprefix(f"{part}.")
    rest = rest.removeprefix("text_model.") if part == TEXT_ENCODER else rest
    return WRAPPED + rest.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
