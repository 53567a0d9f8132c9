"""The two fingerprints that user interfaces know a network by, and the hashes of base models.

Both fingerprints are taken of the safetensors bytes of the final tensors with the `ss_*` metadata only,
so that titles and other later notes do not change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from sd_scripts.tensorfile import file_header, file_order

LEGACY_START = 0x100000
LEGACY_LENGTH = 0x10000
LEGACY_DIGITS = 8
CHUNK = 1 << 20


def network_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash) of these tensors, which must be contiguous and on the CPU."""
    entries = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    return streamed_hashes(entries, lambda name: _bytes(tensors[name]), metadata)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy."""
    flat = tensor.detach().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")


def streamed_hashes(
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    content: Callable[[str], memoryview],
    metadata: Mapping[str, str],
) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash) of tensors that are read one by one.

    The first is the SHA-256 of everything behind the header, the second the first digits of that of bytes 0x100000 to
    0x110000 of the file, where short files have nothing.

    Args:
        entries: tensor name -> type and shape.
        content: gives a tensor's bytes; called once for each name.
        metadata: of the file; only `ss_*` entries count.
    """
    names = file_order(entries)
    # An empty table of notes is part of the bytes, too: without any ss_* entry the header still has one.
    notes = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    head = file_header({name: entries[name] for name in names}, notes)
    weights, window = hashlib.sha256(), hashlib.sha256(head[LEGACY_START : LEGACY_START + LEGACY_LENGTH])
    at = len(head)
    for name in names:
        raw = content(name)
        weights.update(raw)
        window.update(raw[max(LEGACY_START - at, 0) : max(LEGACY_START + LEGACY_LENGTH - at, 0)])
        at += len(raw)
    return weights.hexdigest(), window.hexdigest()[:LEGACY_DIGITS]


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the metadata with `sshs_model_hash` and `sshs_legacy_hash`."""
    model, legacy = network_hashes(tensors, metadata)
    return {**metadata, "sshs_model_hash": model, "sshs_legacy_hash": legacy}


def _open(path: str | Path) -> BinaryIO | str:
    """The open file, or the word that stands for it where there is none."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return "NOFILE"
    except IsADirectoryError:
        return "IsADirectory"
    except PermissionError:
        # Windows reports a folder this way.
        return "IsADirectory" if Path(path).is_dir() else "NOFILE"


def model_hash(path: str | Path) -> str:
    """The short old hash of a model file; `IsADirectory` or `NOFILE` in place of one."""
    handle = _open(path)
    if isinstance(handle, str):
        return handle
    with handle:
        handle.seek(LEGACY_START)
        return hashlib.sha256(handle.read(LEGACY_LENGTH)).hexdigest()[:LEGACY_DIGITS]


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a whole file; `IsADirectory` or `NOFILE` in place of one."""
    handle = _open(path)
    if isinstance(handle, str):
        return handle
    digest = hashlib.sha256()
    with handle:
        while block := handle.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()
