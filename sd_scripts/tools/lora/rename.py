"""Turning a network file into one with other names, so that the way back gives the first file again.

What the other way of naming has no place for (alpha tensors, for PEFT) is noted in the new file's metadata.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sd_scripts.models.converting import WIDER, require_room
from sd_scripts.networks.hashes import streamed_hashes
from sd_scripts.networks.netfile import NetworkFile
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import TYPES
from sd_scripts.tools.lora.names import (
    CONV_AXES,
    KOHYA,
    KOHYA_DIFFUSERS,
    OF_PEFT,
    Member,
    family_of,
    members,
    named,
    refuse_unnamed,
    shaped,
    style_of,
)
from sd_scripts.tools.lora.notes import kind_from, network_notes, same
from sd_scripts.tools.lora.remember import AS_TENSOR, NO_ALPHA, NOTE, Remembered, read_alpha, remembered
from sd_scripts.training.metadata import base_model_version

PEFT_SETTINGS = "lora_adapter_metadata"
HASHES = ("sshs_model_hash", "sshs_legacy_hash")
# Notes that belong to one way of naming alone.
_OWN_WAY = (NOTE, PEFT_SETTINGS, *HASHES)
_SOME_TENSORS = 50


@dataclass(frozen=True)
class Piece:
    """A tensor of the new file: the old file's, in this shape and type, or (without a module) a number of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    module: str = ""
    part: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Renamed:
    """The new file: its tensors and its notes."""

    source: str
    family: str
    pieces: dict[str, Piece]
    metadata: dict[str, str]


def renamed(file: NetworkFile, target: str, family: str = "auto", dtype: torch.dtype | None = None) -> Renamed:
    """What a file becomes under other names.

    Args:
        file: the network.
        target: one of the four ways of naming.
        family: of the base model; "auto": as the file tells.
        dtype: number format of the new file; None: as they are.

    Raises:
        UserError: it cannot be renamed so, has these names already, or does not tell its family where that matters.
    """
    if file.others:
        raise UserError(
            f"{file.path} holds {len(file.others)} tensors that belong to no module, such as {file.others[0]}.", "model"
        )
    before = remembered(file.metadata)
    if before.tensors and before.tensors != _fingerprints(file)[0]:
        before = Remembered(family=before.family)
    family = family_of(file, family, before.family)
    source = style_of(file, family)
    found = members(file, family)
    if target == KOHYA_DIFFUSERS and source == KOHYA and family != "sdxl":
        raise UserError(f"{file.path} is not for SDXL; its blocks have one spelling only.", "to")
    if target in OF_PEFT:
        refuse_unnamed(file, found)
    elif source in OF_PEFT and not family:
        raise UserError(
            f"{file.path} does not tell which base model it is for.", "family", "Give --family sd1, sd2 or sdxl."
        )
    back = before if before.style == target else None
    pieces: dict[str, Piece] = {}
    for name, piece in _pieces(file, found, source, target, family, back or Remembered()):
        if name in pieces:
            raise UserError(f"Two tensors of {file.path} would be called {name}.", "model", "It holds a layer twice.")
        pieces[name] = piece
    for member in found:
        pieces |= _alpha(file, member, source, target, family, back)
    if source == target and dtype is None and pieces.keys() == _pieces_before(file).keys():
        raise UserError(f"{file.path} has these names already.", "to")
    if dtype is not None:
        pieces = {name: _cast(piece, dtype) for name, piece in pieces.items()}
    for member in found:
        _alpha_text(file, member, source)
    metadata = _metadata(file, found, source, target, family, back)
    if HASHES[0] in metadata and target not in OF_PEFT:
        metadata = _with_hashes(file, pieces, metadata, back)
    if back is None and source != target:
        note = asdict(_note(file, found, source, target, family, metadata))
        note["tensors"] = _hashes(file, pieces, {})[0]
        metadata[NOTE] = json.dumps({key: value for key, value in note.items() if value})
    return Renamed(source, family, pieces, metadata)


def made(file: NetworkFile, piece: Piece) -> Tensor:
    """A tensor of the new file. Raises UserError for one that its number format cannot hold."""
    if not piece.module:
        return torch.full(piece.shape, piece.number, dtype=torch.float64).to(piece.dtype)
    value = file.tensors(piece.module)[piece.part].reshape(piece.shape)
    if piece.dtype == torch.float16 and value.dtype in WIDER:
        require_room(f"{piece.module}.{piece.part}", value)
    return value.to(piece.dtype)


def _cast(piece: Piece, dtype: torch.dtype) -> Piece:
    kind = dtype if piece.dtype.is_floating_point else piece.dtype
    return Piece(piece.shape, kind, piece.module, piece.part, piece.number)


def _pieces(
    file: NetworkFile, found: list[Member], source: str, target: str, family: str, back: Remembered
) -> Iterator[tuple[str, Piece]]:
    """Every tensor but alphas that the other names tell elsewhere."""
    for member in found:
        tensors = file.tensors(member.module)
        for part in file.modules[member.module]:
            kept = target in OF_PEFT and back.alphas.get(member.canonical, back.alpha) == AS_TENSOR
            if part == "alpha" and not kept and _moves_alpha(file, member, source, target):
                continue
            key = f"{member.canonical}.{part}"
            shape = shaped(member, part, tuple(tensors[part].shape), source, target, family)
            if math.prod(back.shapes.get(key, ())) == math.prod(shape):
                shape = tuple(back.shapes.get(key, shape))
            name = back.names.get(key) or named(member, part, target, family == "sdxl")
            yield name, Piece(shape, tensors[part].dtype, member.module, part)


def _moves_alpha(file: NetworkFile, member: Member, source: str, target: str) -> bool:
    """Whether alpha is a tensor under one way of naming and a number in the settings under the other."""
    as_tensor = source in OF_PEFT and "alpha" in file.modules[member.module]
    return member.kind == "lora" and (source in OF_PEFT) != (target in OF_PEFT) and not as_tensor


def _alpha(
    file: NetworkFile, member: Member, source: str, target: str, family: str, back: Remembered | None
) -> dict[str, Piece]:
    """The alpha tensor that kohya's names need and PEFT's settings tell; none where it was not there before."""
    if target in OF_PEFT or not _moves_alpha(file, member, source, target):
        return {}
    text = "F32::" if back is None else back.alphas.get(member.canonical, back.alpha)
    if text in (NO_ALPHA, AS_TENSOR):
        return {}
    dtype, shape, number = read_alpha(text)
    name = (back or Remembered()).names.get(f"{member.canonical}.alpha") or named(
        member, "alpha", target, family == "sdxl"
    )
    value = (file.alpha(member.module) or 0.0) if number is None else number
    return {name: Piece(shape, dtype, number=value)}


def _alpha_text(file: NetworkFile, member: Member, source: str) -> str:
    """A stored alpha tensor as text: type, shape, and its number if the settings will tell another (0: the rank)."""
    if "alpha" not in file.modules[member.module]:
        return NO_ALPHA
    if source in OF_PEFT:
        return AS_TENSOR
    stored = file.tensors(member.module)["alpha"]
    if stored.numel() != 1 or not math.isfinite(float(stored)):
        raise UserError(f"{file.path}: the alpha of {member.module} is no number.", "model")
    number = "" if float(stored) == file.alpha(member.module) else repr(float(stored))
    return f"{TYPES[stored.dtype]}:{','.join(map(str, stored.shape))}:{number}"


# ---- notes


def _metadata(
    file: NetworkFile, found: list[Member], source: str, target: str, family: str, back: Remembered | None
) -> dict[str, str]:
    """The new file's notes but for the note of the conversion itself; fingerprints are to be made anew."""
    notes = {key: text for key, text in file.metadata.items() if key not in _OWN_WAY}
    if back is not None:
        kept = {key: text for key, text in notes.items() if key not in back.added}
        return {**kept, **back.metadata}
    if target in OF_PEFT:
        settings = {PEFT_SETTINGS: file.metadata[PEFT_SETTINGS]} if PEFT_SETTINGS in file.metadata else {}
        if source not in OF_PEFT and all(member.kind == "lora" for member in found):
            settings = {PEFT_SETTINGS: json.dumps(peft_settings(file, found), indent=2, sort_keys=True)}
        return {"format": "pt", **notes, **settings}
    if source in OF_PEFT:
        ranks, alphas = zip(*((file.rank(member.module), file.alpha(member.module)) for member in found))
        kind = kind_from(family, notes.get("ss_base_model_version", ""))
        base = {"ss_v2": str(kind["v2"]), "ss_base_model_version": base_model_version(kind)}
        module = "networks.lora" if all(member.kind == "lora" for member in found) else "lycoris.kohya"
        notes = {**network_notes([file], dim=same(ranks), alpha=same(alphas), module=module), **base, **notes}
    if source in OF_PEFT or HASHES[0] in file.metadata:
        notes |= dict.fromkeys(HASHES, "")
    return notes


def peft_settings(file: NetworkFile, found: list[Member]) -> dict[str, Any]:
    """Ranks and alphas as diffusers notes PEFT's settings, for each part of the model that has modules."""
    settings: dict[str, Any] = {}
    parts: dict[str, list[Member]] = {}
    for member in found:
        assert member.layer is not None
        parts.setdefault(member.layer.part, []).append(member)
    for part, belonging in parts.items():
        # newest transformers has no text_model level; the end of a path is found with it and without
        paths = {m.module: m.layer.path.removeprefix("text_model.") for m in belonging if m.layer is not None}
        ranks = {paths[name]: file.rank(name) for name in paths}
        alphas = {paths[name]: _short(file.alpha(name)) for name in paths}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        own = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
            "target_modules": list(ranks),
            "use_dora": any("dora_scale" in file.modules[name] for name in paths),
            "peft_type": "LORA",
        }
        settings |= {f"{part}.{key}": value for key, value in own.items()}
    return settings


def _short(number: float | None) -> float | int | None:
    return int(number) if number is not None and number == int(number) else number


def _note(
    file: NetworkFile, found: list[Member], source: str, target: str, family: str, metadata: Mapping[str, str]
) -> Remembered:
    """What the way back will need."""
    names: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    alphas = {member.canonical: _alpha_text(file, member, source) for member in found if member.kind == "lora"}
    usual = Counter(alphas.values()).most_common(1)[0][0] if alphas else NO_ALPHA
    for member in found:
        made_of = file.shapes(member.module)
        factor = made_of.get("lora_down.weight", ())
        factor = shaped(member, "lora_down.weight", factor, source, target, family)
        in_new_file = replace(member, convolution=len(factor) == CONV_AXES)
        for part, shape in made_of.items():
            key, stored = f"{member.canonical}.{part}", file.stored_name(member.module, part)
            if stored != named(member, part, source, family == "sdxl"):
                names[key] = stored
            there = shaped(member, part, shape, source, target, family)
            if shaped(in_new_file, part, there, target, source, family) != shape:
                shapes[key] = list(shape)
    old = file.metadata
    return Remembered(
        style=source,
        family=family,
        names=names,
        shapes=shapes,
        alpha=usual,
        alphas={name: text for name, text in alphas.items() if text != usual},
        metadata={key: text for key, text in old.items() if key in _OWN_WAY or metadata.get(key) != text},
        added=[key for key in metadata if key not in old],
        hashes=list(_fingerprints(file)) if HASHES[0] in old else [],
    )


def _pieces_before(file: NetworkFile) -> dict[str, Piece]:
    """The tensors of a file as it is."""
    pieces = {}
    for module, parts in file.modules.items():
        tensors = file.tensors(module)
        for part in parts:
            piece = Piece(tuple(tensors[part].shape), tensors[part].dtype, module, part)
            pieces[file.stored_name(module, part)] = piece
    return pieces


def _fingerprints(file: NetworkFile) -> tuple[str, str]:
    """Fingerprints of a file as it is."""
    return _hashes(file, _pieces_before(file), file.metadata)


def _hashes(file: NetworkFile, pieces: Mapping[str, Piece], notes: Mapping[str, str]) -> tuple[str, str]:
    read = 0

    def content(name: str) -> memoryview:
        nonlocal read
        read += 1
        if read % _SOME_TENSORS == 0:
            file.forget()
        flat = made(file, pieces[name]).contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")

    entries = {name: (piece.dtype, piece.shape) for name, piece in pieces.items()}
    return streamed_hashes(entries, content, notes)


def _with_hashes(
    file: NetworkFile, pieces: Mapping[str, Piece], notes: dict[str, str], back: Remembered | None
) -> dict[str, str]:
    """The notes with fingerprints of the new tensors; on the way back those of the first file, if all is as it was."""
    found = _hashes(file, pieces, notes)
    if back is not None and list(found) == back.hashes:
        return notes
    return {**notes, **dict(zip(HASHES, found))}
