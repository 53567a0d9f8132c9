"""The layers and sizes of a base model, from the shapes in its file header; no weight is read."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from sd_scripts.schema.headers import HeaderError, read_safetensors_header

# the weights that networks train, with what each of them is
_ROLES = (
    ("attention", re.compile(r"attn[12]\.to_(?P<which>q|k|v|out)(\.0)?\.weight$")),
    ("mlp", re.compile(r"\.ff\.net\.(?P<which>0\.proj|2)\.weight$")),
    ("proj", re.compile(r"\.proj_(in|out)\.weight$")),
    ("resnet", re.compile(r"(in_layers\.2|out_layers\.3|skip_connection|emb_layers\.1)\.weight$")),
    ("resnet", re.compile(r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)\.weight$")),
    ("sampler", re.compile(r"(\.\d+\.op|\.\d+\.conv|samplers\.0\.conv)\.weight$")),
    ("ends", re.compile(r"(^|\.)(input_blocks\.0\.0|out\.2|conv_in|conv_out)\.weight$")),
    ("time", re.compile(r"(^|\.)(time_embed\.[02]|time_embedding\.linear_[12])\.weight$")),
)
_TEXT = re.compile(r"layers\.\d+\.(self_attn\.(?P<attn>q|k|v|out)_proj|mlp\.(?P<mlp>fc[12]))\.weight$")
_OPEN_CLIP = re.compile(r"resblocks\.(\d+)\.(attn\.(in_proj_weight|out_proj\.weight)|mlp\.c_(fc|proj)\.weight)$")
_OPEN_CLIP_ROLES = {"out_proj.weight": "out", "mlp.c_fc.weight": "fc1", "mlp.c_proj.weight": "fc2"}
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


class Layer(NamedTuple):
    """A layer that a network can change.

    `role` begins with "text." for the text encoders; for the U-Net it is "attention.q" (k, v, out), "mlp.0.proj" or
    "mlp.2", "proj", "resnet", "sampler", "ends" (first and last) or "time".
    """

    role: str
    shape: tuple[int, ...]
    bias: bool


Shapes = Mapping[str, tuple[int, ...]]


def of_layers(shapes: Shapes) -> list[Layer]:
    """The layers of a U-Net, in either of its spellings."""
    found = []
    for name, shape in shapes.items():
        for role, pattern in _ROLES:
            match = pattern.search(name)
            if match:
                which = match.groupdict().get("which")
                has_bias = name.removesuffix("weight") + "bias" in shapes
                found.append(Layer(f"{role}.{which}" if which else role, tuple(shape), has_bias))
                break
    return found


def of_text_layers(shapes: Shapes) -> list[Layer]:
    """The layers of the text encoders, in the spelling of transformers or of OpenCLIP."""
    found = []
    for name, shape in shapes.items():
        if match := _TEXT.search(name):
            role = f"text.{match['attn'] or match['mlp']}"
            found.append(Layer(role, tuple(shape), name.removesuffix("weight") + "bias" in shapes))
    layers = [(int(match[1]), name, shape) for name, shape in shapes.items() if (match := _OPEN_CLIP.search(name))]
    last = max((number for number, _, _ in layers), default=0)
    # alone, as in SD 2, its last layer is not used
    kept = [(name, shape) for number, name, shape in layers if number < last or found]
    for name, shape in kept:
        if name.endswith("in_proj_weight"):
            # question, key and value lie in one tensor but train apart
            found += [Layer(f"text.{which}", (shape[0] // 3, *shape[1:]), True) for which in "qkv"]
        else:
            role = next(role for ending, role in _OPEN_CLIP_ROLES.items() if name.endswith(ending))
            found.append(Layer(f"text.{role}", tuple(shape), True))
    return found


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


def layers(path: str) -> list[Layer] | None:
    """The layers of a single file or a diffusers folder; None where the headers do not tell."""
    found = parts(path)
    if found is None:
        return None
    unet, text = of_layers(found.unet), of_text_layers(found.text)
    usable = [layer for layer in (*unet, *text) if len(layer.shape) in (2, 4)]
    return usable if len(usable) == len(unet) + len(text) and unet and text else None


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
