"""Whole models as they lie on disk: every tensor by its name there, memory-mapped, read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_scripts.models import keymap
from sd_scripts.models.weights import part_files
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import VERSION_NAMES, folder_version, identify, single_file_version
from sd_scripts.tensormap import PICKLES, MappedTensors, open_tensors

UNET_STEMS = ("diffusion_pytorch_model",)
TEXT_STEMS = ("model", "pytorch_model")
TEXT_PARTS = {"sd1": ("text_encoder",), "sd2": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
_WANTED = "a Stable Diffusion 1.x, 2.x or XL model"
_OTHERS = ("sdxl_refiner", "sd3", "flux")


@dataclass(frozen=True)
class StoredFile:
    """One weight file of a model.

    Attributes:
        part: the folder it lies in ("unet", "vae", ...); empty for a single file.
        tensors: what it holds.
    """

    part: str
    tensors: MappedTensors


@dataclass
class StoredModel:
    """A model on disk. Use it as a context manager, or call `close`.

    Attributes:
        path: the single file, or the diffusers folder.
        version: "sd1", "sd2" or "sdxl".
        prediction: "epsilon", "v_prediction", or "" where nothing says it.
        files: the weight files, one for a single file.
        configs: of a folder, the config of each part.
        shapes: of all tensors by key: the name in the file, in a folder `part/name`.
        dtypes: likewise.
    """

    path: Path
    version: str
    prediction: str
    files: list[StoredFile]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    dtypes: dict[str, torch.dtype] = field(init=False)

    def __post_init__(self) -> None:
        self._owners = {_key(file, name): (file.tensors, name) for file in self.files for name in file.tensors.names}
        self.shapes = {key: tensors.shapes[name] for key, (tensors, name) in self._owners.items()}
        self.dtypes = {key: tensors.dtypes[name] for key, (tensors, name) in self._owners.items()}

    @property
    def is_folder(self) -> bool:
        """Whether it is a diffusers folder."""
        return bool(self.configs)

    @property
    def metadata(self) -> dict[str, str]:
        """Text entries of a single .safetensors file; empty for others."""
        return {} if self.is_folder else dict(self.files[0].tensors.metadata)

    @property
    def counts(self) -> tuple[int, int]:
        """Finished epochs and steps that a .ckpt tells."""
        return (0, 0) if self.is_folder else self.files[0].tensors.counts

    def get(self, key: str) -> Tensor:
        """A tensor as it is stored: a view of the file, never to be written into."""
        tensors, name = self._owners[key]
        return tensors.get(name)

    def raw(self, key: str) -> memoryview:
        """A tensor's bytes."""
        tensors, name = self._owners[key]
        return tensors.raw(name)

    def names(self, part: str) -> dict[str, str]:
        """Name inside a part -> key, of a folder."""
        return {key[len(part) + 1 :]: key for key in self.shapes if key.startswith(f"{part}/")}

    def forget(self) -> None:
        """Give the memory behind all tensors back to the system."""
        for file in self.files:
            file.tensors.forget()

    def close(self) -> None:
        """Let the files go."""
        for file in self.files:
            file.tensors.close()

    def __enter__(self) -> StoredModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(file: StoredFile, name: str) -> str:
    return f"{file.part}/{name}" if file.part else name


def open_stored(path: str | Path, key: str | None = None, *, vae: bool = False) -> StoredModel:
    """Open a single file or a diffusers folder of Stable Diffusion 1.x, 2.x or XL.

    Args:
        path: of the file or folder.
        key: the option that named it, for messages.
        vae: it must have a VAE, too.

    Raises:
        UserError: it is missing, damaged, incomplete, another kind of file or model, or a pickle that would run code.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"There is no model at {source}.", key, "Give a model file or a diffusers folder.")
    return _open_folder(source, key, vae) if source.is_dir() else _open_file(source, key, vae)


def _refused(source: Path, version: str, key: str | None) -> UserError:
    if version in _OTHERS:
        return UserError(f"{source} is {VERSION_NAMES[version]}.", key, f"Choose {_WANTED}.")
    return UserError(f"{source} is not a Stable Diffusion model.", key, f"Choose {_WANTED}.")


def _open_file(source: Path, key: str | None, vae: bool) -> StoredModel:
    facts = identify(str(source))
    if facts.problem and facts.version not in _OTHERS:
        raise UserError(f"{source} cannot be read: {facts.problem}.", key, "Download or copy the file again.")
    if facts.kind in ("lora", "vae", "embedding", "text_encoder"):
        raise UserError(f"{source} is {facts.detail}, not a whole model.", key, f"Choose {_WANTED}.")
    tensors = open_tensors(source, key)
    version = single_file_version(tensors.shapes)
    if version not in TEXT_PARTS:
        tensors.close()
        raise _refused(source, version, key)
    wanted = {"U-Net": (keymap.UNET_PREFIX,), **({"VAE": (keymap.VAE_PREFIX,)} if vae else {})}
    encoders = [(f"text encoder {number}", prefix) for number, prefix in enumerate(keymap.TEXT_PREFIXES[version], 1)]
    if len(encoders) == 1:
        encoders = [("text encoder", encoders[0][1])]
    wanted |= {what: (prefix,) for what, prefix in encoders}
    for what, prefixes in wanted.items():
        if not any(name.startswith(prefixes) for name in tensors.names):
            tensors.close()
            raise UserError(f"{source} holds no {what}.", key, "Choose the full version of this model.")
    prediction = facts.prediction or ("v_prediction" if "v_pred" in tensors.shapes else "")
    return StoredModel(source, version, prediction, [StoredFile("", tensors)])


def _open_folder(folder: Path, key: str | None, vae: bool) -> StoredModel:
    index = read_json(folder / "model_index.json", key)
    unet = read_json(folder / "unet" / "config.json", key)
    version = folder_version(index, unet, read_json(folder / "text_encoder" / "config.json", key))
    if version not in TEXT_PARTS:
        raise _refused(folder, version, key)
    configs, files = {"unet": unet}, []
    for part in TEXT_PARTS[version]:
        configs[part] = read_json(folder / part / "config.json", key)
    if vae or (folder / "vae" / "config.json").is_file():
        configs["vae"] = read_json(folder / "vae" / "config.json", key)
    for part in configs:
        stems = TEXT_STEMS if part in TEXT_PARTS[version] else UNET_STEMS
        files += [StoredFile(part, open_tensors(path, key)) for path in part_files(folder / part, stems, key)]
    scheduler = folder / "scheduler" / "scheduler_config.json"
    prediction = read_json(scheduler, key).get("prediction_type", "epsilon") if scheduler.is_file() else "epsilon"
    return StoredModel(folder, version, str(prediction), files, configs)


def read_json(path: Path, key: str | None = None) -> dict[str, Any]:
    """A JSON object out of a model folder. Raises UserError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The model folder is incomplete: {path} is missing.", key) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.", key) from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is damaged: it holds no JSON object.", key)
    return dict(value)


def is_pickle(path: Path) -> bool:
    """Whether a file's ending says that it is one of torch.save."""
    return path.suffix.lower() in PICKLES
