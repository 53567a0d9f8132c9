"""Write a model on disk again, tensor by tensor, with some of its layers changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sd_scripts.models.converting import WIDER, open_lazily, require_room, write_file
from sd_scripts.models.lazy import Lazy
from sd_scripts.models.module_names import is_ballast
from sd_scripts.models.replacing import replaced_folder
from sd_scripts.models.stored import StoredFile, is_pickle
from sd_scripts.models.torchfile import write_torch_stream
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_stream
from sd_scripts.tensormap import PICKLES

if TYPE_CHECKING:
    from sd_scripts.models.modules import ModelFile, Place

Changes = Callable[[str], tuple[Tensor | None, Tensor | None]]
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".onnx_data", ".h5")
_FORGET_AFTER = 128 << 20  # bytes read from the files between two moments of giving memory back


class _Writer:
    """Makes the tensors of the new files.

    A layer's weight and bias lie in different places of a file, but are changed in one go: what comes later waits.
    """

    def __init__(self, model: ModelFile, changes: Changes, names: Collection[str], dtype: torch.dtype | None) -> None:
        self._model, self._changes, self.dtype = model, changes, dtype
        self._wanted = set(names)
        unknown = sorted(self._wanted - model.places.keys())
        if unknown:
            raise UserError(f"{model.path} has no layer {unknown[0]}.", hint="It is for another kind of model.")
        self._waiting: dict[tuple[str, str], Tensor | None] = {}
        self._since = 0

    def kind(self, key: str) -> torch.dtype:
        """The type of a tensor in the new file."""
        kind = self._model.stored.dtypes[key]
        if self.dtype is None or not kind.is_floating_point:
            return kind
        kept = not self._model.stored.is_folder and is_ballast(key, self._model.version)
        return kind if kept else self.dtype

    def changes(self, key: str) -> bool:
        """Whether a tensor may be another in the new file."""
        return bool(self._places(key))

    def stored(self, key: str) -> Tensor:
        """A tensor as it was, in the type of the new file."""
        return self._model.stored.get(key).to(self.kind(key))

    def make(self, key: str) -> Tensor | memoryview:
        """A tensor for the new file, or its bytes where nothing changes."""
        stored = self._model.stored
        kind = self.kind(key)
        if self._since > _FORGET_AFTER:
            stored.forget()
            self._since = 0
        changed = {place: value for place in self._places(key) if (value := self._changed(place, key)) is not None}
        old = stored.get(key)
        self._since += old.nbytes
        if not changed:
            if kind == old.dtype:
                return stored.raw(key)
            if kind == torch.float16 and old.dtype in WIDER:
                require_room(key, old)
            return old.to(kind)
        if len(changed) == 1 and not any(place.rows or place.transposed for place in changed):
            # all of the tensor is new: no need to copy the old one first
            return next(iter(changed.values())).detach().reshape(old.shape).to("cpu", kind)
        new = old.to(kind, copy=True)
        for place, value in changed.items():
            place.put(value.detach().to("cpu"), new)
        return new

    def _places(self, key: str) -> list[Place]:
        return [place for place in self._model.owners.get(key, []) if place.name in self._wanted]

    def _changed(self, place: Place, key: str) -> Tensor | None:
        waiting = (place.name, key)
        if waiting in self._waiting:
            return self._waiting.pop(waiting)
        weight, bias = self._changes(place.name)
        if bias is not None and place.bias is None:
            raise UserError(f"The layer {place.name} of {self._model.path} has no bias that could be changed.")
        results = {place.weight: weight, **({place.bias: bias} if place.bias is not None else {})}
        mine = results.pop(key)
        self._waiting |= {(place.name, other): value for other, value in results.items()}
        return mine


def rewrite(
    model: ModelFile,
    target: Path,
    changes: Changes,
    names: Collection[str],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a model again; what is not changed is copied as it is. Complete or not at all.

    Args:
        model: the model; it may lie at `target`.
        target: a file; its ending says the format, .safetensors, or .ckpt and .pt for torch. A model that is a folder
            becomes a folder where the target has none of these endings.
        changes: name -> new weight and new bias in the shapes that the trainers run; None for as it was. Called once
            for each of `names`, in the order of the file.
        names: of the layers that are changed.
        dtype: of the weights in the result; None leaves each as it is. Changed ones are cast from what `changes` gives.
        metadata: text entries of a .safetensors file; None keeps the model's own.
        finish: called with a new folder just before it takes its place.

    Raises:
        UserError: the model has no such layer, or a bias is to be changed that it has not, or the target does not fit,
            or a weight is too large for fp16.
        OSError: the disk refuses.
    """
    writer = _Writer(model, changes, names, dtype)
    stored = model.stored
    if stored.is_folder and target.suffix.lower() in (".safetensors", *PICKLES):
        _as_file(model, target, writer, metadata)
        return
    if stored.is_folder:
        with replaced_folder(target) as aside:
            copy_rest(stored.path, aside, {file.tensors.path for file in stored.files})
            for file in stored.files:
                _write(file, aside / file.part / file.tensors.path.name, writer, file.tensors.metadata or None)
            if finish is not None:
                finish(aside)
        return
    if not target.suffix:
        raise UserError(f"{target} has no ending.", hint="Give a .safetensors or .ckpt file.")
    _write(stored.files[0], target, writer, stored.metadata if metadata is None else metadata, stored.counts)


def _as_file(model: ModelFile, target: Path, writer: _Writer, metadata: Mapping[str, str] | None) -> None:
    """A folder's model as a single file."""
    lazy = open_lazily(model.path)
    try:
        for name, part in lazy.parts.items():
            for stored, key in model.stored.names(name).items():
                inner = next((key for key in (stored, *_spellings(stored)) if key in part.weights), None)
                if inner is not None and writer.changes(key):
                    part.weights[inner] = _changed(part.weights[inner], key, writer)
        write_file(lazy, target, writer.dtype, metadata)
    finally:
        lazy.files.close()


def _spellings(name: str) -> tuple[str, str]:
    """A text encoder's weight with and without the level that newest transformers leaves out."""
    return name.removeprefix("text_model."), f"text_model.{name}"


def _changed(value: Tensor, key: str, writer: _Writer) -> Lazy:
    def make() -> Tensor:
        made = writer.make(key)
        if not isinstance(made, Tensor):
            # its layer was named, but only the other of weight and bias changed
            return writer.stored(key)
        return made

    return Lazy(value.shape, writer.kind(key), make)


def _write(
    file: StoredFile,
    path: Path,
    writer: _Writer,
    metadata: Mapping[str, str] | None,
    counts: tuple[int, int] | None = None,
) -> None:
    """One weight file; `counts` are those of a single file."""
    prefix = f"{file.part}/" if file.part else ""
    entries = {name: (writer.kind(prefix + name), file.tensors.shapes[name]) for name in file.tensors.names}
    if is_pickle(path):
        around = None if counts is None else {"epoch": counts[0], "global_step": counts[1]}
        write_torch_stream(path, entries, lambda name: writer.make(prefix + name), around)
    else:
        write_stream(path, entries, lambda name: writer.make(prefix + name), metadata)


def copy_rest(source: Path, target: Path, written: Collection[Path]) -> None:
    """Copy a model folder without the weight files that are written anew, and without other copies of their weights."""
    parts = {path.parent for path in written}
    for path in sorted(source.rglob("*")):
        hidden = any(step.startswith(".") for step in path.relative_to(source).parts)
        if not path.is_file() or hidden or (path.parent in parts and path.suffix.lower() in _WEIGHTS):
            continue
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
