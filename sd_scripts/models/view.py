"""Kohya's names for a model of today's libraries, without touching the model.

Network plugins build their keys by walking `named_modules()` and pick their targets by class name. What they expect
is the module tree of sd-scripts. A view is such a tree: its inner nodes are empty modules with the expected names and
class names, its leaves ARE the layers that the real model runs. Replacing a leaf's `forward`, moving the model or
loading weights therefore works through the view as on the model, in both directions.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from sd_scripts.schema.unetnames import UNET_SHAPES, unet_table

# Class names that sd-scripts' module tree has where the libraries have others. The time embedding must not look like
# one: LyCORIS targets its class and, by name, its layers, and then stumbles over the doubled names.
CLASS_NAMES = {
    "Attention": "CrossAttention",
    "CLIPSdpaAttention": "CLIPAttention",
    "TimestepEmbedding": "TimeEmbeddingLayers",
}
# sd-scripts lists a transformer block's children in this order; layers are initialised in the order of the walk, so
# that a seed gives the same start only if the order is the same.
CHILD_ORDER = {"BasicTransformerBlock": ("attn1", "ff", "attn2")}

# SDXL's U-Net: its parts in the order of the walk, and the class of a module by the child that only it has.
UNET_PARTS = ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out")
ORIGINAL_CLASSES = {"in_layers": "ResnetBlock2D", "op": "Downsample2D", "conv": "Upsample2D"}


class View(nn.Module):
    """An inner node of a view: it has children and names, and computes nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: a view is walked, the model itself is called."""
        raise RuntimeError("a view only carries names; call the model it was made from")

    @property
    def device(self) -> torch.device:
        """Where the model's first weight lies."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's first weight."""
        return next(self.parameters()).dtype


def _node(name: str) -> View:
    """An empty view node whose class is called `name`."""
    return type(name, (View,), {"__module__": __name__})()


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))


def mirror(module: nn.Module) -> nn.Module:
    """The view of `module`: leaves themselves, everything above them rebuilt under kohya's class names."""
    if _is_leaf(module):
        return module
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(mirror(child) for child in module)
    real = type(module).__name__
    made = _node(CLASS_NAMES.get(real, real))
    children = dict(module.named_children())
    first = [name for name in CHILD_ORDER.get(real, ()) if name in children]
    for name in [*first, *(name for name in children if name not in first)]:
        made.add_module(name, mirror(children[name]))
    made.training = module.training
    return made


def unet_view(unet: nn.Module) -> nn.Module:
    """A U-Net under kohya's names: those diffusers had in 2023 for Stable Diffusion 1 and 2, original ones for XL."""
    return mirror(unet) if getattr(unet, "add_embedding", None) is None else _original_view(unet)


def _original_view(unet: nn.Module) -> nn.Module:
    """The view of an SDXL U-Net; its `state_dict()` has the keys of the U-Net in an original file.

    Modules come in the order of the computation (down, middle, up), as in kohya's trainers.
    """
    modules = dict(unet.named_modules())
    tree: dict[str, Any] = {part: {} for part in UNET_PARTS}
    for original, name in unet_table(UNET_SHAPES["sdxl"]).items():
        if name not in modules:  # a residual block that keeps its width has no shortcut
            continue
        *above, last = original.split(".")
        place = tree
        for step in above:
            place = place.setdefault(step, {})
        place[last] = mirror(modules[name])
    return _built(tree, type(unet).__name__, unet.training)


def _built(tree: dict[str, Any], kind: str, training: bool) -> nn.Module:
    """Nodes for a tree of names; numbered children in the order of their numbers."""
    made = _node(kind)
    made.training = training
    for name in sorted(tree, key=int) if all(name.isdigit() for name in tree) else tree:
        child = tree[name]
        if isinstance(child, dict):
            classes = [ORIGINAL_CLASSES[inner] for inner in child if inner in ORIGINAL_CLASSES]
            child = _built(child, classes[0] if classes else "Sequential", training)
        made.add_module(name, child)
    return made


def text_view(text_encoder: nn.Module) -> nn.Module:
    """A CLIP text encoder with the `text_model` level that kohya's keys have; newest transformers dropped it."""
    view = mirror(text_encoder)
    if hasattr(text_encoder, "text_model"):
        return view
    root = _node(type(text_encoder).__name__)
    root.add_module("text_model", view)
    root.training = text_encoder.training
    return root
