"""How large a network on a given base model gets, from the shapes in the model's file header; no weight is read."""

import os
import re
from collections.abc import Mapping, Sequence
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
_UNET = "model.diffusion_model."
_TEXTS = ("cond_stage_model.", "conditioner.embedders.")
_TOKENS = "token_embedding.weight"
_FIRST_HALF = re.compile(
    r"(^|\.)(time_embed(ding)?|input_blocks|middle_block|down_blocks|mid_block|conv_in|label_emb)\."
)
# where the first half hands something over: first layer, each block, each halving, and the middle
_OUTPUTS = re.compile(
    r"(input_blocks\.0\.0|input_blocks\.\d+\.0\.(out_layers\.3|op)|middle_block\.2\.out_layers\.3"
    r"|^conv_in|down_blocks\.\d+\.(resnets\.\d+\.conv2|downsamplers\.0\.conv)|mid_block\.resnets\.1\.conv2)\.weight$"
)
_HINT = (16, 16, 32, 32, 96, 96, 256)
_STEERED = re.compile(
    r"(input_blocks\.(?P<number>\d+)|middle_block|down_blocks\.(?P<block>\d+)|mid_block)\..*transformer_blocks\.\d+\."
    r"(attn1\.to_[qkv]|attn2\.to_q)\.weight$"
)


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


class Parts(NamedTuple):
    """Shapes of the U-Net, of all text encoders together, and of the VAE, each under the names of its layout."""

    unet: Shapes
    text: Shapes
    vae: Shapes


def parts(path: str) -> Parts | None:
    """The parts of a single file or a diffusers folder; None where the headers do not tell."""
    try:
        if os.path.isdir(path):
            first, second = _first(Path(path, "text_encoder")), _first(Path(path, "text_encoder_2"))
            text = {**first, **{f"2.{name}": shape for name, shape in second.items()}}
            found = Parts(_first(Path(path, "unet")), text, _first(Path(path, "vae")))
        elif path.endswith(".safetensors"):
            whole = _read(Path(path))
            found = Parts(*(_starting(whole, starts) for starts in ((_UNET,), _TEXTS, ("first_stage_model.",))))
        else:
            return None
    except (OSError, HeaderError):
        return None
    return found if found.unet else None


def _starting(shapes: Shapes, starts: tuple[str, ...]) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name.startswith(starts)}


def per_rank(path: str) -> PerRank | None:
    """The sizes for a single file or a diffusers folder; None where the header does not tell."""
    found = parts(path)
    if found is None:
        return None
    try:
        attention, thin, wide = of_unet(found.unet)
        words = of_text(found.text)
    except IndexError:
        return None
    return PerRank(attention, words, thin, wide) if attention and words else None


class Whole(NamedTuple):
    """Weights of the U-Net, the text encoders and the VAE."""

    unet: int
    text: int
    vae: int


def whole(path: str) -> Whole | None:
    """How many numbers the parts of a model hold; None where the headers do not tell."""
    found = parts(path)
    if found is None or not all(found):
        return None
    return Whole(*(sum(prod(shape) for shape in part.values()) for part in found))


def token_width(path: str) -> int | None:
    """How many numbers one new word has, over all text encoders; None where the headers do not tell."""
    found = parts(path)
    widths = (
        [shape[1] for name, shape in found.text.items() if name.endswith(_TOKENS) and len(shape) == 2] if found else []
    )
    return sum(widths) or None


def control(path: str) -> int | None:
    """How many numbers a ControlNet for this model holds; None where the headers do not tell."""
    found = parts(path)
    return of_control(found.unet) or None if found else None


def of_control(unet: Shapes) -> int:
    """A copy of the U-Net's first half, a 1x1 layer behind each of its outputs, and what reads the picture."""
    copied = [shape for name, shape in unet.items() if _FIRST_HALF.search(name)]
    widths = [shape[0] for name, shape in unet.items() if _OUTPUTS.search(name)]
    if not widths:
        return 0
    channels = (3, *_HINT, min(widths))
    hint = sum(9 * before * after + after for before, after in zip(channels, channels[1:]))
    return sum(prod(shape) for shape in copied) + sum(width * width + width for width in widths) + hint


def lllite_layers(path: str) -> list[tuple[int, int]] | None:
    """(width, depth) of every layer that ControlNet-LLLite corrects; None where the headers do not tell."""
    found = parts(path)
    return of_lllite(found.unet) or None if found else None


def of_lllite(unet: Shapes) -> list[tuple[int, int]]:
    """The queries, keys and values in the first half of SDXL's U-Net: width, and how often halved they work, from 1."""
    layers = []
    for name, shape in unet.items():
        match = _STEERED.search(name)
        if match:
            number, block = match["number"], match["block"]
            depth = int(number) // 3 + 1 if number else int(block) + 1 if block else 3
            layers.append((shape[1], min(depth, 3)))
    return layers


def lllite_weights(layers: Sequence[tuple[int, int]], signs: int, inner: int) -> int:
    """How many numbers a ControlNet-LLLite holds: `signs` for the control picture, `inner` in its small networks."""
    half = signs // 2
    picture = {
        1: half * signs * 4 + signs,
        2: half * signs * 16 + signs,
        3: half * half * 16 + half + half * signs * 4 + signs,
    }
    total = 0
    for width, depth in layers:
        total += 3 * half * 16 + half + picture[depth]
        total += width * inner + inner + (inner + signs) * inner + inner + inner * width + width
    return total
