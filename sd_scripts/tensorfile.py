"""Tensor files that are complete or absent, written tensor by tensor.

A model file torn by a full disk or a power cut is worse than no file, so everything is written aside, flushed and
renamed. Weights are moved to the CPU and cast one at a time while they are written: saving a model takes no second
copy of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError

# How torch's writer of zip files speaks of a disk that takes no more.
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")
# Names of the types in a safetensors header. The library lays tensors out by type, last of this list first, then by
# name; files made here are equal to its own byte for byte, and so are the hashes taken of them.
TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_ORDER = {kind: place for place, kind in enumerate(TYPES)}
_ALIGNMENT = 8  # the header is filled up to a multiple of this


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    The temporary name keeps the suffix, since writers choose the format by it. When the block raises,
    the temporary file is removed and `path` stays as it was.

    Raises OSError when the disk refuses, also where safetensors or torch say so with an error of their own.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        with writing_errors(temporary):
            yield temporary
        # safetensors makes files that only their owner may read; others on the machine use these.
        temporary.chmod(usual)
        flush(temporary)
        os.replace(temporary, target)
        flush_folder(target.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turn what safetensors and torch raise on a full or broken disk into the OSError that it is."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        text = str(error)
        refused = isinstance(error, SafetensorError) and "I/O error" in text
        if not refused and not any(sign in text for sign in _TORCH_WRITER):
            raise
        found = re.search(r"\(os error (\d+)\)", text)
        number = int(found[1]) if found else errno.EIO if _has_room(path.parent) else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error


def _has_room(folder: Path) -> bool:
    """Whether the disk takes another megabyte; torch does not say why it could not write."""
    return shutil.disk_usage(folder).free > 1 << 20


def flush(path: Path) -> None:
    """Ask the system to put the file's bytes on the disk before it is renamed."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Make the rename itself durable; systems that cannot open a folder (Windows) do it on their own."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_tensors(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Tensors as they go into a file: detached, on the CPU, contiguous, cast to `dtype` when one is given."""
    return {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}


def kinds_in_file(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, unchanged: Collection[str] = ()
) -> dict[str, torch.dtype]:
    """The type of each tensor in a file: floating point ones become `dtype`, but for the names in `unchanged`."""
    return {
        name: dtype if dtype is not None and value.is_floating_point() and name not in unchanged else value.dtype
        for name, value in tensors.items()
    }


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    unchanged: Collection[str] = (),
) -> None:
    """Write a safetensors file that is complete or absent.

    Args:
        path: of the file.
        tensors: on any device, in any layout; each is copied only while it is written.
        metadata: the file's text entries.
        dtype: of floating point tensors in the file; None leaves each as it is.
        unchanged: names that keep their type whatever `dtype` says.

    Raises:
        OSError: the disk refuses; an older file of that name is then still whole.
        TypeError: a tensor's type has no name in such files, or an entry of the metadata is no text.
    """
    kinds = kinds_in_file(tensors, dtype, unchanged)
    for name, kind in kinds.items():
        if kind not in TYPES:
            raise TypeError(f"{name} is {kind}, which safetensors files cannot hold")
    if any(not isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise TypeError("the metadata of a safetensors file is text only")
    entries = {name: (kinds[name], tensors[name].shape) for name in tensors}
    write_stream(path, entries, lambda name: tensors[name].detach().to("cpu", kinds[name]), metadata)


def write_stream(
    path: str | Path,
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    make: Callable[[str], torch.Tensor | memoryview],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose tensors are made one by one while it is written, complete or absent.

    Args:
        path: of the file.
        entries: tensor name -> type and shape in the file.
        make: gives a tensor of that type and shape, on the CPU, or its bytes; called once for each name, in the order
            of the file. Nothing made is kept.
        metadata: the file's text entries.

    Raises:
        OSError: the disk refuses; an older file of that name is then still whole.
        ValueError: a tensor was made that is not as `entries` says.
    """
    names = file_order(entries)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        # an empty mapping would still write a metadata block: None leaves it out
        handle.write(file_header({name: entries[name] for name in names}, metadata or None))
        for name in names:
            kind, shape = entries[name]
            content = _content(make(name), name, kind, torch.Size(shape))
            if len(content):
                handle.write(content)


def _content(made: torch.Tensor | memoryview, name: str, kind: torch.dtype, shape: torch.Size) -> memoryview:
    """The bytes of what was made. Raises ValueError if they would not fit the header."""
    if isinstance(made, torch.Tensor):
        if made.dtype != kind or made.shape != shape:
            raise ValueError(f"{name} was made as {made.dtype} {list(made.shape)}, announced as {kind} {list(shape)}")
        made = memoryview(made.contiguous().reshape(-1).view(torch.uint8).numpy()) if made.numel() else memoryview(b"")
    if len(made) != shape.numel() * kind.itemsize:
        raise ValueError(f"{name} has {len(made)} bytes, announced were {shape.numel() * kind.itemsize}")
    return made


def file_order(entries: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> list[str]:
    """The names in the order in which the library lays their tensors out."""
    return sorted(entries, key=lambda name: (-_ORDER[entries[name][0]], name))


def file_header(entries: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None) -> bytes:
    """Length and header of a safetensors file whose tensors lie one behind the other in this order.

    An empty `metadata` makes an empty block of notes, None makes none.
    """
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (kind, shape) in entries.items():
        start, end = end, end + prod(shape) * kind.itemsize
        table[name] = {"dtype": TYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_torch(path: str | Path, content: object) -> None:
    """Write `content` with torch.save, complete or absent (for .ckpt and .pt, which carry no metadata)."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def write_weights(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[dict[str, torch.Tensor], dict[str, str]], dict[str, str]] | None = None,
) -> None:
    """Write weights in the format that the suffix names: .safetensors, else torch.save.

    `finish(tensors, metadata)` may add entries that depend on the final tensors (hashes); it runs for
    safetensors only, since the other formats have no place for them.
    """
    ready = prepare_tensors(tensors, dtype)
    if Path(path).suffix == ".safetensors":
        notes = dict(metadata or {})
        write_safetensors(path, ready, finish(ready, notes) if finish else notes)
    else:
        write_torch(path, ready)
