"""The four ways of naming what is in a network file: kohya's, the same with diffusers' blocks, PEFT's, diffusers' old.

Names and shapes are all that differ. A module goes by one canonical name here, whatever the file calls it: kohya's,
with the original names of SDXL's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sd_scripts.networks.changes import DORA
from sd_scripts.networks.names import TENSORS, TEXT_ENCODER_2, UNET, Layer, layer_of, lora_name, unet_layers
from sd_scripts.networks.netfile import NetworkFile
from sd_scripts.schema.errors import UserError

KOHYA, KOHYA_DIFFUSERS, PEFT, DIFFUSERS = "kohya", "kohya_diffusers", "peft", "diffusers"
OF_PEFT = (PEFT, DIFFUSERS)
# kinds whose tensors PEFT calls alike; of the others it has none, or other ones
_CALLED_ALIKE = ("loha", "lokr")
_PLAIN = frozenset(("lora_up.weight", "lora_down.weight", "alpha", DORA))
_OLD_SIGNS = (".lora.down.", ".lora.up.", ".lora_linear_layer.", "_lora.down.", "_lora.up.")
_KOHYA_STARTS = ("lora_", "oft_", "lycoris_")
_OLD_WORDS = {"lora_down.weight": "down.weight", "lora_up.weight": "up.weight"}
_PROJECTIONS = (".proj_in", ".proj_out")
# The U-Net's projections are 1x1 convolutions in version 1; diffusers has them linear in the others.
_LINEAR_PROJECTIONS = ("sd2", "sdxl")
CONV_AXES = 4


@dataclass(frozen=True)
class Member:
    """A module of a file.

    Attributes:
        module: its name in `NetworkFile`.
        layer: the layer it belongs to; None for one that no known model has.
        canonical: its name in all files.
        kind: of network.
        convolution: its layer is a convolution.
    """

    module: str
    layer: Layer | None
    canonical: str
    kind: str
    convolution: bool


def members(file: NetworkFile, family: str) -> list[Member]:
    """The modules of a file for this family of models."""
    found = []
    for module in file:
        layer = layer_of(module)
        canonical = None if layer is None else lora_name(layer, family == "sdxl")
        shapes = file.shapes(module)
        factor = shapes.get("lora_down.weight") or shapes.get("hada_w1_b") or ()
        convolution = len(factor) == CONV_AXES
        found.append(Member(module, layer, canonical or module, file.kind(module), convolution))
    return found


def style_of(file: NetworkFile, family: str) -> str:
    """Which of the four ways of naming a file uses."""
    names = [file.stored_name(module, part) for module, parts in file.modules.items() for part in parts]
    if not names[0].startswith(_KOHYA_STARTS):
        return DIFFUSERS if any(sign in name for name in names for sign in _OLD_SIGNS) else PEFT
    layers = set(unet_layers("sdxl").values())
    for module, parts in file.modules.items():
        layer = layer_of(module)
        if family == "sdxl" and layer is not None and layer.part == UNET and layer.path in layers:
            stored = file.stored_name(module, parts[0])
            if stored.split(".")[0].endswith(f"_unet_{layer.path.replace('.', '_')}"):
                return KOHYA_DIFFUSERS
    return KOHYA


def family_of(file: NetworkFile, asked: str = "auto", remembered: str = "") -> str:
    """ "sd1", "sd2" or "sdxl": as asked for, else as the file tells; "sd" for one of the first two; "" if unknown."""
    if asked != "auto":
        return asked
    told = remembered or file.version
    if told:
        return told
    layers = [layer for layer in map(layer_of, file) if layer is not None]
    if any(layer.part == TEXT_ENCODER_2 for layer in layers):
        return "sdxl"
    paths = [layer.path for layer in layers if layer.part == UNET]
    only = {version: set(unet_layers(version).values()) for version in ("sd1", "sdxl")}
    if any(path not in only["sdxl"] for path in paths):
        return "sd"
    deep = (path.partition(".transformer_blocks.")[2].split(".")[0] for path in paths)
    if any(path not in only["sd1"] for path in paths) or any(block not in ("", "0") for block in deep):
        return "sdxl"
    return ""


def refuse_unnamed(file: NetworkFile, found: list[Member]) -> None:
    """Raise UserError for modules that PEFT and diffusers have no names for, or would read as something else."""
    for member in found:
        if member.layer is None:
            raise UserError(f"{file.path}: {member.module} belongs to no layer of a known model.", "model")
        parts = set(file.modules[member.module])
        if member.kind in _CALLED_ALIKE or (member.kind == "lora" and parts <= _PLAIN):
            continue
        odd = f" with {min(parts - _PLAIN)}" if member.kind == "lora" else ""
        raise UserError(
            f"{file.path}: {member.module} is of kind {member.kind}{odd}, which PEFT and diffusers have no names for.",
            "to",
            "Only LoRA (LoCon, DoRA), LoHa and LoKr can be renamed to theirs.",
        )


def named(member: Member, part: str, style: str, sdxl: bool) -> str:
    """The usual name of a module's tensor in a way of naming.

    Args:
        member: the module.
        part: kohya's word for the tensor.
        style: one of the four ways.
        sdxl: the model is SDXL: text encoders are numbered, blocks have two spellings.
    """
    layer = member.layer
    if style not in OF_PEFT:
        name = None if layer is None else lora_name(layer, sdxl, style == KOHYA)
        name = name or member.canonical
        return f"{f'oft_{name[5:]}' if member.kind == 'oft' else name}.{part}"
    assert layer is not None
    path = f"{layer.part}.{layer.path}"
    if part == DORA and layer.part != UNET:
        # diffusers hands these to transformers, whose reader wants the whole name and ignores PEFT's short one
        return f"{path}.{TENSORS[DORA]}.weight"
    if style == PEFT or part not in _OLD_WORDS:
        return f"{path}.{TENSORS.get(part, part)}"
    return f"{path}.{'lora' if layer.part == UNET else 'lora_linear_layer'}.{_OLD_WORDS[part]}"


def shaped(member: Member, part: str, shape: tuple[int, ...], source: str, target: str, family: str) -> tuple[int, ...]:
    """The shape of a module's tensor when one way of naming becomes another.

    Raises:
        UserError: PEFT cannot have this tensor.
    """
    layer = member.layer
    if layer is None or (source in OF_PEFT) == (target in OF_PEFT):
        return shape
    if target not in OF_PEFT:
        return _lengths(member, shape, (1, 1) if member.convolution else ()) if part == DORA else shape
    projection = layer.part == UNET and layer.path.endswith(_PROJECTIONS)
    flat = projection and family in _LINEAR_PROJECTIONS
    if part == DORA:
        if len(shape) > 1 and shape[0] == 1 < shape[1]:
            raise UserError(
                f"{member.module} is a DoRA with a length for each column (wd_on_output is off), which PEFT has not.",
                "to",
            )
        lengths = _lengths(member, shape, (1, 1) if member.convolution and not flat else ())
        return (1, lengths[0], 1, 1) if len(lengths) == CONV_AXES else lengths[:1]
    if part in _OLD_WORDS and flat and len(shape) == CONV_AXES and shape[2:] == (1, 1):
        return shape[:2]
    if part in _OLD_WORDS and projection and family == "sd1" and len(shape) == 2:
        return (*shape, 1, 1)
    return shape


def _lengths(member: Member, shape: tuple[int, ...], ones: tuple[int, ...]) -> tuple[int, ...]:
    """kohya's shape of one length for each row; PEFT has [out] for linear layers, [1, out, 1, 1] for convolutions."""
    if prod(shape) != max(shape, default=0):
        raise UserError(f"{member.module} has lengths of shape {list(shape)}, which is no DoRA.", "model")
    return (prod(shape), 1, *ones)
