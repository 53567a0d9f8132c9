"""Dry runs of the tools that work on LoRA and model files, from headers alone."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.pickers import size_text
from kohya_gui.prepare.folders import free_space
from kohya_gui.tools_fields import NOTES
from kohya_gui.tools_record import Tool
from kohya_gui.weights import FAMILIES, PRECISIONS, Weights, said_now, weights
from sd_scripts.schema.errors import UserError

Values = Mapping[str, Any]
Lines = list[tuple[str, str]]
# a result may be a little larger than worked out: header, notes
_MARGIN = 1_000_000


@dataclass(frozen=True)
class Read:
    """A file that a tool will read: the option that names it, its path, and what it is."""

    key: str
    path: str
    found: Weights


def read(values: Values, key: str) -> Read:
    """What an option names.

    Raises:
        UserError: nothing is named, or it cannot be read.
    """
    path = str(values.get(key) or "")
    if not path:
        raise UserError("A file is missing.", key, "Choose one.")
    found = weights(path)
    if found.kind == "missing":
        raise UserError(f"There is no file {path}.", key, "Choose an existing one.")
    if found.problem:
        raise UserError(f"{Path(path).name} cannot be used: {found.problem}.", key, "Choose another file.")
    return Read(key, path, found)


def network(values: Values, key: str) -> Read:
    """A LoRA or another network.

    Raises:
        UserError: it is something else, as far as its header tells.
    """
    item = read(values, key)
    if not item.found.is_network and not item.found.dark:
        raise UserError(f"{Path(item.path).name} is no LoRA: {item.found.detail}.", key, "Choose a LoRA file.")
    return item


def model(values: Values, key: str, *, folder: bool = True) -> Read:
    """A whole model.

    Raises:
        UserError: it is something else, as far as its header tells.
    """
    item = read(values, key)
    name = Path(item.path).name
    if item.found.is_network:
        raise UserError(f"{name} is a LoRA, no model.", key, "Choose a model file or folder.")
    if not item.found.is_model and not item.found.dark:
        raise UserError(f"{name} is no whole model: {item.found.detail}.", key, "Choose a model file or folder.")
    if not folder and os.path.isdir(item.path):
        raise UserError(f"{name} is a folder.", key, "Choose a model in one file; Convert model makes one of a folder.")
    return item


def alike(items: Sequence[Read]) -> str:
    """The family that all files are of; "" where none tells.

    Raises:
        UserError: naming two of different families.
    """
    known = [item for item in items if item.found.family]
    for other in known[1:]:
        first = known[0]
        if other.found.family != first.found.family:
            raise UserError(
                f"{Path(other.path).name} is for {FAMILIES[other.found.family]}, "
                f"but {Path(first.path).name} is for {FAMILIES[first.found.family]}.",
                other.key,
                "Only files of one family work together.",
            )
    return known[0].found.family if known else ""


def described(found: Weights, words: Words) -> str:
    """What a file is, in a few words: LoRA for Stable Diffusion XL, rank 16, 23 MB."""
    parts = []
    if found.is_network:
        family = FAMILIES.get(found.family, "")
        kind = found.algorithm
        parts.append(words("{kind} for {family}", kind=kind, family=family) if family else kind)
        if found.rank:
            parts.append(words("rank {n}", n=found.rank))
        if found.conv_rank:
            parts.append(words("rank {n} in convolutions", n=found.conv_rank))
    elif found.detail:
        parts.append(words.said(found.detail))
    return ", ".join([*parts, size_text(found.size)])


def reads(items: Sequence[Read], words: Words) -> Lines:
    """The lines about what is read."""
    return [(words("Reads"), f"{Path(item.path).name}: {described(item.found, words)}") for item in items]


def bytes_of(numbers: float, precision: Any, otherwise: int = 4) -> int:
    """Bytes of so many numbers in a precision."""
    return int(numbers * PRECISIONS.get(str(precision or ""), otherwise))


def writes(values: Values, key: str, size: int, inputs: Sequence[Read], words: Words, field: str = "") -> Lines:
    """The lines about the file that is written.

    Args:
        values: the form's, paths resolved.
        key: the option that names the file.
        size: its bytes as far as known, else 0.
        inputs: what is read meanwhile.
        words: the language.
        field: the option that complaints name, if that is another one.

    Raises:
        UserError: it may not be written, or does not fit.
    """
    path = Path(str(values.get(key) or ""))
    if not str(values.get(key) or ""):
        raise UserError("The name of the new file is missing.", key, "Say where to save.")
    return _target_lines(path, field or key, size, bool(values.get("overwrite")), inputs, words)


def _target_lines(path: Path, key: str, size: int, over: bool, inputs: Sequence[Read], words: Words) -> Lines:
    there = os.path.lexists(path)
    if there and not over:
        same = any(os.path.realpath(item.path) == os.path.realpath(path) for item in inputs)
        said = f"{path.name} is a file that is read." if same else f"{path} is there already."
        raise UserError(said, key, "Choose another name, or allow that it is overwritten.")
    room(path, key, size)
    about = f" ({words('about {size}', size=size_text(size))})" if size else ""
    lines = [(words("Writes over") if there else words("Writes"), f"{path}{about}")]
    return [*lines, (words("Free disk space"), size_text(free_space(path)))]


def room(path: Path, key: str, size: int) -> None:
    """Refuse a place where nothing can be written, or too little.

    Raises:
        UserError: naming the option.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder.", key, "Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"Nothing may be written into {folder}.", key, "Choose another folder.")
    free = free_space(folder)
    if size and size + _MARGIN > free:
        raise UserError(
            f"{path.name} needs about {size_text(size)}, but only {size_text(free)} are free.",
            key,
            "Free some space, or choose another disk.",
        )


def notes(tool: Tool, values: Values, roots: Roots, words: Words) -> dict[str, dict[str, str]]:
    """What stands under the fields that name files: what these are, or why they cannot be used."""
    found = {}
    for key in tool.seen:
        path = str(values.get(key) or "")
        if not path or not roots.allows(path):
            continue
        seen = weights(roots.inside(path))
        if seen.kind == "missing":
            continue
        if seen.problem:
            found[key] = {"say": "error", "text": words.said(f"It cannot be used: {seen.problem}.")}
        else:
            found[key] = {"say": "info", "text": described(seen, words)}
    if tool.name == "edit_metadata" and "model" in found:
        now = said_now(roots.inside(str(values["model"])))
        found |= {name: {"say": "info", "text": words("Now: {note}", note=now[name])} for name in NOTES if name in now}
    return found
