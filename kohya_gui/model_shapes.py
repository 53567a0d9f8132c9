"""How large a network on a given base model gets, from the shapes in the model's file header; no weight is read."""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from sd_scripts.schema.headers import HeaderError, read_safetensors_header

_ATTENTION = re.compile(r"(attn[12]\.to_(q|k|v|out\.0)|\.ff\.net\.(0\.proj|2)|\.proj_in|\.proj_out)\.weight$")
_TEXT = re.compile(r"layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight$")
_OPEN_CLIP = re.compile(r"resblocks\.(\d+)\.(attn\.(in_proj_weight|out_proj\.weight)|mlp\.c_(fc|proj)\.weight)$")
_CONV = re.compile(
    r"((in_layers\.2|out_layers\.3|skip_connection|emb_layers\.1|\.\d+\.op|\.\d+\.conv)"
    r"|(resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|samplers\.0\.conv))\.weight$"
)
# the text encoders of a single file: of SD 1 and 2, and of SDXL
_TEXTS = ("cond_stage_model.", "conditioner.embedders.")


class PerRank(NamedTuple):
    """Weights for each unit of rank: in the U-Net's and the text encoder's layers, what training convolutions adds
    for the rank (1x1 layers), and for each unit of convolution rank."""

    unet: int
    text: int
    conv_rank: int
    conv: int


Shapes = Mapping[str, tuple[int, ...]]


def _both_ends(shape: tuple[int, ...]) -> int:
    """Inputs of one output plus outputs: a pair of matrices of rank 1."""
    return shape[0] + prod(shape[1:])


def of_unet(shapes: Shapes) -> tuple[int, int, int]:
    """Weights a rank in the attention layers, in the 1x1 layers of the blocks, and in their 3x3 convolutions."""
    attention = sum(_both_ends(shape) for name, shape in shapes.items() if _ATTENTION.search(name))
    blocks = [shape for name, shape in shapes.items() if _CONV.search(name)]
    wide = sum(_both_ends(shape) for shape in blocks if shape[2:] == (3, 3))
    return attention, sum(_both_ends(shape) for shape in blocks) - wide, wide


def of_text(shapes: Shapes) -> int:
    """Weights a rank in the text encoder, in the spelling of transformers or of OpenCLIP."""
    found = sum(_both_ends(shape) for name, shape in shapes.items() if _TEXT.search(name))
    layers = [(int(match[1]), name, shape) for name, shape in shapes.items() if (match := _OPEN_CLIP.search(name))]
    last = max((number for number, _, _ in layers), default=0)
    total = found
    for number, name, shape in layers:
        # alone, as in SD 2, its last layer is not used; question, key and value lie in one tensor but train apart
        parts = 3 if name.endswith("in_proj_weight") else 1
        total += parts * _both_ends((shape[0] // parts, *shape[1:])) if number < last or found else 0
    return total


@lru_cache(maxsize=64)
def _shapes(path: str, changed: int, length: int) -> Shapes:
    return read_safetensors_header(path).shapes


def _read(path: Path) -> Shapes:
    facts = os.stat(path)
    return _shapes(str(path), facts.st_mtime_ns, facts.st_size)


def _first(folder: Path) -> Shapes:
    for path in sorted(folder.glob("*.safetensors")):
        return _read(path)
    return {}


def per_rank(path: str) -> PerRank | None:
    """The sizes for a single file or a diffusers folder; None where the header does not tell."""
    try:
        if os.path.isdir(path):
            unet, text = _first(Path(path, "unet")), _first(Path(path, "text_encoder"))
            text = {**text, **{f"2.{name}": shape for name, shape in _first(Path(path, "text_encoder_2")).items()}}
        elif path.endswith(".safetensors"):
            whole = _read(Path(path))
            unet = {name: shape for name, shape in whole.items() if name.startswith("model.diffusion_model.")}
            text = {name: shape for name, shape in whole.items() if name.startswith(_TEXTS)}
        else:
            return None
        attention, thin, wide = of_unet(unet)
        words = of_text(text)
    except (OSError, HeaderError, IndexError):
        return None
    return PerRank(attention, words, thin, wide) if attention and words else None
