"""A model on disk as the layers that networks are trained on: named, shaped and listed as the trainers run them.

Nothing is built and nothing read before it is asked for; `rewrite` writes a model again with some layers changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.models.module_names import Spot, spots_in_file, spots_in_folder
from sd_scripts.models.rewriting import rewrite
from sd_scripts.models.stored import StoredModel, open_stored
from sd_scripts.schema.errors import UserError

__all__ = ["ModelFile", "Place", "open_model", "rewrite"]

_PREFIXES = {
    "sd1": {"text_encoder": "lora_te", "unet": "lora_unet"},
    "sd2": {"text_encoder": "lora_te", "unet": "lora_unet"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "unet": "lora_unet"},
}
_KINDS = {1: "norm", 2: "linear", 4: "conv"}
_PROJECTIONS = ("proj_in", "proj_out")


@dataclass(frozen=True)
class Place:
    """A layer with a weight.

    Attributes:
        name: kohya's name of the layer.
        part: "unet", "text_encoder" or "text_encoder_2".
        path: the layer's path in sd-scripts' module tree, with dots.
        weight: key of the stored weight.
        bias: key of the stored bias; None without one.
        rows: (start, stop) of the layer's rows in OpenCLIP's joint query, key and value matrix; None elsewhere.
        kind: "linear", "conv" or "norm".
        shape: of the weight as the trainers run it.
        transposed: the file holds the transpose (OpenCLIP's text projection).
        group: what networks.lora takes it for: "attention", "resnet" (with convolutions), "" for neither.
    """

    name: str
    part: str
    path: str
    weight: str
    bias: str | None
    rows: tuple[int, int] | None
    kind: str
    shape: tuple[int, ...]
    transposed: bool
    group: str

    def run(self, stored: Tensor) -> Tensor:
        """The layer's weight or bias, as the trainers run it, out of the stored tensor. Shares its memory."""
        part = stored if self.rows is None else stored[slice(*self.rows)]
        if part.ndim == 1:
            return part
        return part.T if self.transposed else part.reshape(self.shape)

    def put(self, weight: Tensor, stored: Tensor) -> None:
        """Write a weight or bias as the trainers run it into a copy of the stored tensor, in its shape and type."""
        part = stored if self.rows is None else stored[slice(*self.rows)]
        part.copy_(weight.T if self.transposed and weight.ndim == 2 else weight.reshape(part.shape))


@dataclass
class ModelFile:
    """The layers of a model file or folder. Use it as a context manager, or call `close`.

    Attributes:
        stored: the model's tensors on disk.
        places: kohya's name -> layer, text encoders first, in the order in which networks list them.
    """

    stored: StoredModel
    places: Mapping[str, Place]

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.stored.path

    @property
    def version(self) -> str:
        """ "sd1", "sd2" or "sdxl"."""
        return self.stored.version

    def weight(self, name: str) -> Tensor:
        """A layer's weight as the trainers run it: a view of the file, never to be written into."""
        place = self.places[name]
        return place.run(self.stored.get(place.weight))

    def bias(self, name: str) -> Tensor | None:
        """A layer's bias, or None: a view of the file, never to be written into."""
        place = self.places[name]
        return None if place.bias is None else place.run(self.stored.get(place.bias))

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a layer's weight is stored."""
        return self.stored.dtypes[self.places[name].weight]

    def targets(self, conv: bool = False) -> list[str]:
        """The layers that networks.lora would train, in its order; `conv`: with those of residual blocks."""
        groups = ("attention", "resnet") if conv else ("attention",)
        return [name for name, place in self.places.items() if place.group in groups and place.kind != "norm"]

    @cached_property
    def owners(self) -> dict[str, list[Place]]:
        """Key of a stored tensor -> the layers that have their weight or bias in it."""
        found: dict[str, list[Place]] = {}
        for place in self.places.values():
            for key in (place.weight, place.bias):
                if key is not None:
                    found.setdefault(key, []).append(place)
        return found

    def forget(self) -> None:
        """Give the memory behind all tensors back to the system."""
        self.stored.forget()

    def close(self) -> None:
        """Let the files go."""
        self.stored.close()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_model(path: str | Path, key: str | None = None) -> ModelFile:
    """Open a single file or a diffusers folder of Stable Diffusion 1.x, 2.x or XL for work on its layers.

    Args:
        path: of the file or folder.
        key: the option that named it, for messages.

    Raises:
        UserError: it is missing, damaged, incomplete, another kind of file or model, or a pickle that would run code.
    """
    stored = open_stored(path, key)
    spots = (spots_in_folder if stored.is_folder else spots_in_file)(stored.shapes, stored.version)
    places = [
        _place(spot, stored) for spot in sorted(spots, key=lambda spot: (spot.part == "unet", spot.part, spot.order))
    ]
    found = {place.name: place for place in places}
    if not any(place.group == "attention" and place.part == "unet" for place in places):
        stored.close()
        raise UserError(f"{path} holds no U-Net whose layers are known.", key, "It is another kind of model.")
    if len(found) != len(places):
        stored.close()
        raise UserError(f"{path} holds the same layers twice.", key, "Convert it with the converter first.")
    return ModelFile(stored, found)


def _place(spot: Spot, stored: StoredModel) -> Place:
    shape = stored.shapes[spot.weight]
    rows = None
    if spot.third is not None:
        third = shape[0] // 3
        rows = (spot.third * third, (spot.third + 1) * third)
        shape = (third, *shape[1:])
    if spot.transposed:
        shape = shape[::-1]
    if stored.version == "sd2" and not stored.is_folder and len(shape) == 2 and spot.path.endswith(_PROJECTIONS):
        # sd-scripts runs these of a single file as convolutions, and networks on top have their shapes.
        shape = (*shape, 1, 1)
    return Place(
        name=f"{_PREFIXES[stored.version][spot.part]}_{spot.path.replace('.', '_')}",
        part=spot.part,
        path=spot.path,
        weight=spot.weight,
        bias=spot.bias if spot.bias in stored.shapes else None,
        rows=rows,
        kind=_KINDS.get(len(shape), "other"),
        shape=shape,
        transposed=spot.transposed,
        group=spot.group,
    )
