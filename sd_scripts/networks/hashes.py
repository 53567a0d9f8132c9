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
from safetensors.torch import save

from sd_scripts.tensorfile import file_header, file_order

LEGACY_START = 0x100000
LEGACY_LENGTH = 0x10000
LEGACY_DIGITS = 8
CHUNK = 1 << 20


def legacy_hash(content: bytes) -> str:
    """First 8 hex digits of the SHA-256 of bytes [0x100000, 0x110000); short content hashes nothing."""
    return hashlib.sha256(content[LEGACY_START : LEGACY_START + LEGACY_LENGTH]).hexdigest()[:LEGACY_DIGITS]


def data_hash(content: bytes) -> str:
    """SHA-256 of everything behind the safetensors header, whose length is in the first 8 bytes."""
    header = int.from_bytes(content[:8], "little")
    return hashlib.sha256(memoryview(content)[8 + header :]).hexdigest()


def network_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash) of these tensors, which must be contiguous and on the CPU."""
    training_notes = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    # An empty table of notes is part of the bytes, too: without any ss_* entry the header still has one.
    content = save(dict(tensors), training_notes)
    return data_hash(content), legacy_hash(content)


def streamed_hashes(
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    content: Callable[[str], memoryview],
    metadata: Mapping[str, str],
) -> tuple[str, str]:
    """The same two hashes, of tensors that are read one by one.

    Args:
        entries: tensor name -> type and shape.
        content: gives a tensor's bytes; called once for each name.
        metadata: of the file; only `ss_*` entries count.
    """
    names = file_order(entries)
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
