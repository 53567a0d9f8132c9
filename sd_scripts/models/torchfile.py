"""PyTorch files (.ckpt, .bin) whose tensors are made one by one while the file is written.

torch.save wants all tensors at once. Here only their shapes are known beforehand: a zip file with a pickle that names
the tensors and one stored entry for the numbers of each, as torch.load expects them.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_scripts.tensorfile import atomic_path, write_torch

Entries = Mapping[str, tuple[torch.dtype, Sequence[int]]]

_ROOT = "archive"
_VERSION = b"3\n"
_ALIGNMENT = 64  # tensors that are mapped start at a multiple of it, as in torch's own files
_LOCAL_HEADER = 30  # bytes of a zip entry's header without name and extra field
_PADDING = 0x4246  # the extra field that torch fills up with
_CLASSES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}


@dataclass(frozen=True)
class _Numbers:
    """Stands in the pickle for the numbers of a tensor."""

    dtype: torch.dtype
    count: int
    number: int


@dataclass(frozen=True)
class _Later:
    """Stands in the pickle for a tensor."""

    numbers: _Numbers
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        stride = tuple(prod(self.shape[place + 1 :]) for place in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (self.numbers, 0, self.shape, stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: object) -> tuple[Any, ...] | None:
        if not isinstance(item, _Numbers):
            return None
        return "storage", getattr(torch, _CLASSES[item.dtype]), str(item.number), "cpu", item.count


def write_torch_stream(
    path: str | Path,
    entries: Entries,
    make: Callable[[str], Tensor | memoryview],
    around: Mapping[str, object] | None = None,
) -> None:
    """Write a file for torch.load, tensor by tensor, complete or absent.

    Args:
        path: of the file.
        entries: tensor name -> type and shape in the file.
        make: gives a tensor of that type and shape, on the CPU, or its bytes; called once for each name, in order.
        around: what else the file tells; the tensors are then under `state_dict`. None: the file is their table alone.

    Raises:
        OSError: the disk refuses; an older file of that name is then still whole.
        ValueError: a tensor was made that is not as `entries` says.
    """
    if any(kind not in _CLASSES for kind, _ in entries.values()):
        # 8-bit floats and the like have no class of numbers of their own: torch knows how to name them
        made = {name: _tensor(make(name), *entries[name]) for name in entries}
        write_torch(path, made if around is None else {"state_dict": made, **around})
        return
    table = {
        name: _Later(_Numbers(kind, prod(shape), number), tuple(shape))
        for number, (name, (kind, shape)) in enumerate(entries.items())
    }
    pickled = BytesIO()
    _Pickler(pickled, protocol=2).dump(table if around is None else {"state_dict": table, **around})
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", memoryview(pickled.getvalue()))
        _add(archive, "byteorder", memoryview(sys.byteorder.encode()))
        for number, (name, (kind, shape)) in enumerate(entries.items()):
            content = _bytes(make(name))
            if len(content) != prod(shape) * kind.itemsize:
                raise ValueError(f"{name} has {len(content)} bytes, announced were {prod(shape) * kind.itemsize}")
            _add(archive, f"data/{number}", content)
        _add(archive, "version", memoryview(_VERSION))


def _bytes(made: Tensor | memoryview) -> memoryview:
    if isinstance(made, memoryview):
        return made
    return memoryview(made.contiguous().reshape(-1).view(torch.uint8).numpy()) if made.numel() else memoryview(b"")


def _tensor(made: Tensor | memoryview, kind: torch.dtype, shape: Sequence[int]) -> Tensor:
    return made if isinstance(made, Tensor) else torch.frombuffer(bytearray(made), dtype=kind).reshape(tuple(shape))


def _add(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = len(content)
    start = archive.start_dir + _LOCAL_HEADER + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING, padding) + b"Z" * padding
    with archive.open(info, "w") as entry:
        entry.write(content)
