"""The note that a conversion of names leaves in a file, so that the way back gives the first file again.

Anybody may have written it, so that it counts only if all of it is as it should be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

import torch

from sd_scripts.tensorfile import TYPES

NOTE = "convert_lora"
NO_ALPHA, AS_TENSOR = "none", "tensor"
_STYLES = ("", "kohya", "kohya_diffusers", "peft", "diffusers")
_FAMILIES = ("", "sd", "sd1", "sd2", "sdxl")
_DTYPES = {name: dtype for dtype, name in TYPES.items()}
_ALPHA = re.compile(r"([A-Z0-9_]+):((?:1(?:,1)*)?):(.*)")


@dataclass(frozen=True)
class Remembered:
    """What the way back needs to know of the file before.

    Attributes:
        style: names it had.
        family: its base model.
        names: canonical name and part -> name in that file, where it is not the usual one.
        shapes: the same -> shape, where it was changed.
        alpha: type, shape and number of the alpha tensors of most modules, as text; "none" without,
            "tensor" where PEFT's names have some.
        alphas: canonical module -> the same, where it is another. The number is empty where it stands elsewhere, too.
        metadata: notes it had that were dropped or changed.
        added: notes that were added.
        hashes: fingerprints of its tensors, where it noted any.
        tensors: fingerprint of the tensors that the conversion made; with others, none of this counts.
    """

    style: str = ""
    family: str = ""
    names: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    alpha: str = NO_ALPHA
    alphas: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    tensors: str = ""


def remembered(metadata: Mapping[str, str]) -> Remembered:
    """The note that a conversion left; an empty one where there is none, or it is not as a conversion leaves it."""
    known = {one.name for one in fields(Remembered)}
    try:
        table = json.loads(metadata.get(NOTE, "{}"))
        found = Remembered(**{key: value for key, value in table.items() if key in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Remembered()
    return found if _is_sound(found) else Remembered()


def _is_sound(note: Remembered) -> bool:
    empty = Remembered()
    if any(type(getattr(note, one.name)) is not type(getattr(empty, one.name)) for one in fields(Remembered)):
        return False
    texts = [*note.metadata.values(), *note.names.values(), *note.added, *note.hashes, *note.alphas.values()]
    sides = [side for shape in note.shapes.values() for side in (shape if isinstance(shape, list) else [None])]
    return (
        note.style in _STYLES
        and note.family in _FAMILIES
        and all(isinstance(text, str) for text in texts)
        and len(set(note.names.values())) == len(note.names)
        and all(type(side) is int and side >= 0 for side in sides)
        and all(_is_alpha(text) for text in (note.alpha, *note.alphas.values()))
    )


def _is_alpha(text: Any) -> bool:
    if text in (NO_ALPHA, AS_TENSOR):
        return True
    try:
        _, _, number = read_alpha(text)
    except (ValueError, KeyError):
        return False
    return number is None or isfinite(number)


def read_alpha(text: str) -> tuple[torch.dtype, tuple[int, ...], float | None]:
    """Type, shape (of one number) and number of an alpha tensor; no number where it stands elsewhere, too.

    Raises:
        ValueError, KeyError: the text is none of those in a note.
    """
    parts = _ALPHA.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text!r} describes no tensor of one number")
    kind, sides, number = parts.groups()
    return _DTYPES[kind], tuple(int(side) for side in sides.split(",") if side), float(number) if number else None
