"""Shapes of layers, told from the tensors that a network file has for them: the model is not at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

Shape = tuple[int, ...]
Kernel = tuple[int, ...] | None
# Layers that are 3x3 convolutions in every Stable Diffusion model, by diffusers' names and by the original ones.
_WIDE = re.compile(
    r"_(conv_in|conv_out|conv1|conv2|samplers_0_conv|in_layers_2|out_layers_3|input_blocks_0_0|out_2|op|\d+_\d+_conv)$"
    r"|samplers_0_conv$"
)
_POINT = re.compile(r"_(conv_shortcut|skip_connection)$")
_PROJECTION = re.compile(r"_proj_(in|out)$")


def matrix_of(kind: str, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Rows and columns of the change that a module of kind lora, loha, lokr or full makes, as a matrix.

    Args:
        kind: see networks.changes.
        shapes: of the module's tensors, by the names behind its own.
    """
    if kind == "lora":
        return shapes["lora_up.weight"][0], prod(shapes["lora_down.weight"][1:]) * prod(
            _core(shapes, "lora_mid.weight")
        )
    if kind == "full":
        whole = shapes["diff"]
        return whole[0], prod(whole[1:])
    if kind == "loha":
        return _product(shapes, "hada_w1_a", "hada_w1_b", "hada_t1")
    small = shapes["lokr_w1"] if "lokr_w1" in shapes else (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    large = (
        (shapes["lokr_w2"][0], prod(shapes["lokr_w2"][1:]))
        if "lokr_w2" in shapes
        else _product(shapes, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    )
    return small[0] * large[0], small[1] * large[1]


def _core(shapes: Mapping[str, Shape], name: str) -> Shape:
    """The kernel in a Tucker core."""
    return shapes[name][2:] if name in shapes else ()


def _product(shapes: Mapping[str, Shape], to_out: str, to_in: str, core: str) -> tuple[int, int]:
    """With a Tucker core both factors have their ranks first."""
    rows = shapes[to_out][1 if core in shapes else 0]
    return rows, prod(shapes[to_in][1:]) * prod(_core(shapes, core))


def kernel_of(module: str, shapes: Mapping[str, Shape], columns: int, version: str) -> Kernel:
    """Height and width of a layer's convolution; None for a linear layer.

    Args:
        module: kohya's name of the layer.
        shapes: of its tensors.
        columns: inputs times kernel.
        version: "sd1", "sd2", "sdxl" or "" for an unknown model.
    """
    for name in ("lora_mid.weight", "lora_down.weight", "diff", "hada_t1", "lokr_t2", "lokr_w2"):
        if name in shapes and len(shapes[name]) == 4:
            return shapes[name][2:]
    if "lora_down.weight" in shapes or "diff" in shapes:
        return None
    if _WIDE.search(module) and columns % 9 == 0:
        return (3, 3)
    # sd-scripts runs the projections of Stable Diffusion 1 and 2 as convolutions, those of XL as linear layers.
    if _POINT.search(module) or (_PROJECTION.search(module) and "unet" in module and version != "sdxl"):
        return (1, 1)
    return None
