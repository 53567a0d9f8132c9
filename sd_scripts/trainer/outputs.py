"""Writing the results: weights and states, opened again before they count, the oldest removed as asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sd_scripts.networks.base import read_weights
from sd_scripts.schema.errors import UserError


class WrittenFileError(Exception):
    """A file that was just written does not hold what was to be written."""


def check_written(path: Path, expected: set[str] | None = None) -> int:
    """Open a weight file or a model folder again and look at every tensor; returns the number of tensors.

    Raises WrittenFileError when it cannot be read, misses a name of `expected`, is empty, or holds NaN.
    """
    found: set[str] = set()
    for file in _weight_files(path):
        found |= {f"{file.parent.name}/{name}" if path.is_dir() else name for name in _check_file(file)}
    missing = (expected or set()) - found
    if missing or not found:
        raise WrittenFileError(f"{path.name} was written but lacks {', '.join(sorted(missing)[:5]) or 'everything'}.")
    return len(found)


def _weight_files(path: Path) -> list[Path]:
    """The file itself, or the weight files in a model folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".bin"))


def _check_file(path: Path) -> set[str]:
    found: set[str] = set()
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    _check_tensor(path, name, file.get_tensor(name))
                    found.add(name)
        else:
            for name, tensor in read_weights(path).items():
                _check_tensor(path, name, tensor)
                found.add(name)
    except (SafetensorError, OSError, UserError) as error:
        raise WrittenFileError(f"{path.name} was written but cannot be opened again: {error}") from error
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _check_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise WrittenFileError(f"{path.name} was written but {name} holds NaN or infinite numbers.")


def free_space_warning(folder: Path, needed: int) -> str:
    """A sentence where fewer than `needed` bytes are free in `folder`, else ""."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return ""
    return f"Only {free / 2**20:.0f} MB are free in {folder}; the next save needs about {needed / 2**20:.0f} MB."


def remove_old(path: Path, say: Callable[[str], None]) -> None:
    """Remove a file or state folder that this run wrote earlier and that `save_last_n_*` no longer keeps."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    else:
        return
    say(f"removed the older {path.name}")
