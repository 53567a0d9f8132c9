"""Files of Textual Inversion: which tensors they hold for which model, read in every form that is about.

Stable Diffusion 1 and 2: `emb_params` [vectors, C]. SDXL: `clip_l` [vectors, 768] and `clip_g` [vectors, 1280].
Extended Textual Inversion: one tensor [vectors, C] for each of the U-Net's 16 cross-attention blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sd_scripts.schema.errors import UserError

SINGLE = "emb_params"
PAIR = ("clip_l", "clip_g")
LAYERS = (
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *("OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"),
)
_KIND = {(SINGLE,): "Stable Diffusion 1 or 2", PAIR: "SDXL", LAYERS: "Extended Textual Inversion"}


def read_embedding(path: str | Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The vectors in a file, [vectors, C] in float32 for each of `names`.

    For `emb_params` alone the file's first tensor counts, whatever its name: other programs name it after the token.

    Raises:
        UserError: the file is missing or damaged, or holds embeddings for another kind of model.
    """
    found = _read(Path(path))
    wanted = tuple(names)
    if wanted == (SINGLE,):
        for other in (PAIR, LAYERS):
            if set(other) <= set(found):
                raise _other_kind(path, other, wanted)
        return {SINGLE: found.get(SINGLE, next(iter(found.values())))}
    if not set(wanted) <= set(found):
        kinds = [kind for kind in _KIND if set(kind) <= set(found)]
        raise _other_kind(path, kinds[0] if kinds else (SINGLE,), wanted)
    return {name: found[name] for name in wanted}


def _other_kind(path: str | Path, found: tuple[str, ...], wanted: tuple[str, ...]) -> UserError:
    return UserError(
        f"The embedding '{path}' is for {_KIND[found]}, but this trains one for {_KIND[wanted]}.",
        "weights",
        "Choose another file, or leave weights empty.",
    )


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file as [vectors, C] float32, in the file's order."""
    if not path.is_file():
        raise UserError(f"weights: '{path}' does not exist.", "weights", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(str(path), device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        message = f"The embedding '{path}' is damaged, or holds code instead of vectors."
        raise UserError(message, "weights") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"The embedding '{path}' cannot be read: {error}", "weights", "It may be damaged.") from error
    tensors = _tensors(content)
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if not tensors or any(len(shape) != 2 for shape in shapes):
        what = f"tensors of the shapes {shapes}" if shapes else f"a {type(content).__name__}"
        raise UserError(
            f"'{path}' holds no embedding: {what} instead of named vectors.",
            "weights",
            "Files of this program, of the web UI and of diffusers are understood.",
        )
    return tensors


def _tensors(content: Any) -> dict[str, Tensor]:
    """Named tensors of a file's content; the web UI keeps its own a level down."""
    if not isinstance(content, Mapping):
        return {}
    inner = content.get("string_to_param")
    named = inner if isinstance(inner, Mapping) else content
    found = {str(name): value.detach().float() for name, value in named.items() if isinstance(value, Tensor)}
    return {name: value[None] if value.dim() == 1 else value for name, value in found.items()}
