"""Tensor files read in place: memory-mapped, never written to, one tensor at a time.

A tensor is a view of the file; its pages come into memory when they are used and are given back by `forget`, so that a
file of 7 GB can be worked through with little memory. Whoever changes a tensor makes a copy first.
"""

from __future__ import annotations

import mmap
import pickle
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import Header, HeaderError, identify, read_safetensors_header
from sd_scripts.tensorfile import TYPES

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
DTYPES = {name: dtype for dtype, name in TYPES.items()}


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


class MappedTensors(ABC):
    """The tensors of one file.

    Attributes:
        path: the file.
        names: of the tensors, in the order in which they lie in the file.
        shapes: name -> shape.
        dtypes: name -> type as stored.
        metadata: text entries of a .safetensors file; empty for others.
        counts: finished epochs and steps of earlier trainings, where a .ckpt tells them.
    """

    path: Path
    names: list[str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    counts: tuple[int, int] = (0, 0)
    _map: mmap.mmap | None = None

    @abstractmethod
    def get(self, name: str) -> Tensor:
        """A tensor as it is stored, on the CPU: a view of the file, which must not be written into."""

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes, in the order of its elements."""
        value = self.get(name).contiguous().reshape(-1)
        return memoryview(value.view(torch.uint8).numpy())

    def forget(self) -> None:
        """Give the memory behind the tensors back to the system; those in use are read again when needed."""
        if self._map is not None:
            self._advise("MADV_DONTNEED", 0, len(self._map))

    def close(self) -> None:
        """Let the file go. Tensors in use keep it mapped."""
        if self._map is None:
            return
        try:
            self._map.close()
        except BufferError:
            # a tensor still looks into it; the last one lets it go
            self.forget()

    def _advise(self, advice: str, start: int, length: int) -> None:
        """Tell the system what is coming, where it listens (Windows does not)."""
        number = getattr(mmap, advice, None)
        if number is not None and self._map is not None:
            page = start - start % mmap.PAGESIZE
            self._map.madvise(number, page, min(length + start - page, len(self._map) - page))

    def __enter__(self) -> MappedTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unreadable(path: Path, reason: object, key: str | None) -> UserError:
    """The sentence for a .safetensors file that cannot be read."""
    return UserError(f"{path} cannot be read as safetensors: {reason}.", key, "Download or copy the file again.")


def checked_header(path: Path, key: str | None) -> tuple[Header, dict[str, torch.dtype]]:
    """The header of a .safetensors file, and the type of each tensor.

    Raises:
        UserError: the file cannot be read, or its tensors do not fill the places that the header gives them.
    """
    try:
        header = read_safetensors_header(path)
    except (HeaderError, OSError) as error:
        raise unreadable(path, error, key) from error
    types = {}
    for name, kind in header.dtypes.items():
        if kind not in DTYPES:
            raise unreadable(path, f"{name} is of type {kind}, which is not known here", key)
        if prod(header.shapes[name]) * DTYPES[kind].itemsize != header.places[name][1]:
            raise unreadable(path, "its header is damaged", key)
        types[name] = DTYPES[kind]
    return header, types


class _Safetensors(MappedTensors):
    def __init__(self, path: Path, key: str | None) -> None:
        self.path = path
        header, self.dtypes = checked_header(path, key)
        try:
            # A private map: the file is open for reading only, and torch takes no read-only memory without a warning.
            with open(path, "rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise unreadable(path, error, key) from error
        self.metadata = header.metadata
        self._places = header.places
        self.names = sorted(header.shapes, key=lambda name: header.places[name])
        self.shapes = header.shapes

    def get(self, name: str) -> Tensor:
        start, length = self._places[name]
        dtype, shape = self.dtypes[name], self.shapes[name]
        if not length:
            return torch.empty(shape, dtype=dtype)
        assert self._map is not None
        self._advise("MADV_WILLNEED", start, length)
        return torch.frombuffer(self._map, dtype=dtype, count=length // dtype.itemsize, offset=start).view(shape)

    def raw(self, name: str) -> memoryview:
        start, length = self._places[name]
        assert self._map is not None
        self._advise("MADV_WILLNEED", start, length)
        return memoryview(self._map)[start : start + length]


class _Pickled(MappedTensors):
    def __init__(self, path: Path, key: str | None) -> None:
        content = read_pickle(path, key)
        self.path = path
        self.metadata = {}
        self._tensors = tensors_of(content, path, key)
        self.names = list(self._tensors)
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}
        self.dtypes = {name: value.dtype for name, value in self._tensors.items()}
        self.counts = (count_of(content, "epoch"), count_of(content, "global_step"))

    def get(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def open_tensors(path: str | Path, key: str | None = None) -> MappedTensors:
    """Open a tensor file: .safetensors, or .ckpt, .pt, .pth and .bin that hold tensors and plain data only.

    Args:
        path: of the file.
        key: the option that named it, for messages.

    Raises:
        UserError: it is missing, damaged, something else, or a pickle that wants to run code.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"There is no file {file}.", key, "Check the path.")
    return _Pickled(file, key) if file.suffix.lower() in PICKLES else _Safetensors(file, key)


def read_pickle(path: Path, key: str | None = None) -> Any:
    """What a .ckpt, .pt, .pth or .bin file holds: tensors (mapped where the file is a zip) and plain data.

    Raises:
        UserError: it is damaged, or wants to run code.
    """
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)), warnings.catch_warnings():
            # of pickles in newer forms, which are read or refused all the same
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights, and loading it could run foreign code ({_refused(error)}).",
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


def tensors_of(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """The named tensors of a pickle, which may lie below `state_dict`. Raises UserError if there are none."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no table of weights.", key=key)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights.", key=key)
    return tensors


def count_of(content: Any, name: str) -> int:
    """A whole number that a pickle tells beside its tensors; 0 where it does not."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch would not load. The rest of its text tells how to load it all the same."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {name[1]}" if name else "it is no plain pickle of tensors"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
