"""What every network shares: parameter groups, reading weights, and files that are complete or absent.

Nothing here knows about a particular kind of network. The writers are also used by the rest of the
trainers, because a model file torn by a full disk or a power cut is worse than no file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sd_scripts.schema.errors import UserError

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
# How torch's writer of zip files speaks of a disk that takes no more.
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")


@dataclass
class ParameterGroup:
    """Parameters that are trained at one learning rate.

    `name` is shown to people (`unet`, `textencoder`, `unet_block4 plus`); `lr` None means the
    optimizer's own default rate. `extra` holds further optimizer settings that a plugin asked for.
    """

    name: str
    params: list[nn.Parameter]
    lr: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


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


def write_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that is complete or absent.

    Raises OSError when the disk refuses; an older file of that name is then still whole.
    """
    with atomic_path(path) as temporary:
        # An empty mapping would still write a metadata block: None leaves it out.
        save_file(dict(tensors), str(temporary), metadata=dict(metadata) if metadata else None)


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


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a weight file (safetensors, or a torch file without any code in it) onto the CPU.

    Raises UserError when the file is missing, damaged, or holds something else than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"The weight file '{file}' does not exist.", hint="Check the path.")
    try:
        if file.suffix == ".safetensors":
            return load_file(str(file), device="cpu")
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(f"The weight file '{file}' is damaged, or holds code instead of weights.") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"The weight file '{file}' cannot be read: {error}", hint="It may be damaged.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"'{file}' does not hold network weights (a table of named tensors was expected).")
    return content
