"""Names of network modules: kohya's, with either spelling of SDXL's U-Net blocks, and those of PEFT and diffusers.

kohya writes underscores where the model has dots, so that a name can only be read with the list of all layers at
hand. The lists are made here from the tables of the models; they hold every layer that has weights, normalisations
too, since some kinds of networks train those.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from sd_scripts.schema.unetnames import UNET_SHAPES, unet_table

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
# How kohya's names begin; a single text encoder is `te`, those of SDXL are numbered. OFT has a word of its own.
PARTS = {
    "lora_unet": UNET,
    "oft_unet": UNET,
    "lora_te": TEXT_ENCODER,
    "lora_te1": TEXT_ENCODER,
    "lora_te2": TEXT_ENCODER_2,
}
# The tensors of a plain LoRA: kohya's word for it and PEFT's.
TENSORS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}
PEFT_TENSORS = {word: name for name, word in TENSORS.items()}
# Blocks in the deepest attention of any of these models, and layers of the deepest text encoder.
_BLOCKS = 10
_TEXT_LAYERS = 32
_BLOCK_LAYERS = (
    "norm1",
    *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm2",
    *(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm3",
    "ff.net.0.proj",
    "ff.net.2",
)
_TEXT_LAYER = (
    "layer_norm1",
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)


class Layer(NamedTuple):
    """A layer of a model: the part it belongs to and its path there, as diffusers and transformers have it."""

    part: str
    path: str


@cache
def unet_layers(version: str) -> dict[str, str]:
    """Original -> diffusers path of every U-Net layer of "sd1", "sd2" or "sdxl"."""
    inner = ["norm", "proj_in", "proj_out"]
    inner += [f"transformer_blocks.{block}.{layer}" for block in range(_BLOCKS) for layer in _BLOCK_LAYERS]
    table: dict[str, str] = {}
    for original, path in unet_table(UNET_SHAPES[version]).items():
        if ".attentions." in path:
            table |= {f"{original}.{layer}": f"{path}.{layer}" for layer in inner}
        else:
            table[original] = path
    return table


@cache
def text_layers() -> tuple[str, ...]:
    """Paths of the layers of a CLIP text encoder."""
    layers = (f"encoder.layers.{number}.{name}" for number in range(_TEXT_LAYERS) for name in _TEXT_LAYER)
    ends = ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
    return (*(f"text_model.{name}" for name in (*ends, *layers)), "text_projection")


def flat(path: str) -> str:
    """A path as kohya spells it inside of a name."""
    return path.replace(".", "_")


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in pairs:
        assert found.setdefault(name, path) == path, f"two layers are called {name}"
    return found


@cache
def _paths(part: str) -> dict[str, str]:
    """Flat name, in either spelling, -> diffusers path."""
    if part != UNET:
        return _unique((flat(path), path) for path in text_layers())
    both = [*unet_layers("sd1").values(), *unet_layers("sdxl").values()]
    sgm = ((flat(original), path) for original, path in unet_layers("sdxl").items())
    return _unique([*((flat(path), path) for path in both), *sgm])


@cache
def _sgm() -> dict[str, str]:
    """Diffusers path -> the flat original name in SDXL's U-Net."""
    return {path: flat(original) for original, path in unet_layers("sdxl").items()}


def _split(lora_name: str) -> tuple[str, str]:
    """The word a name begins with and what follows; the word is empty where it is none of kohya's."""
    for word in PARTS:
        if lora_name.startswith(f"{word}_"):
            return word, lora_name[len(word) + 1 :]
    return "", lora_name


def layer_of(lora_name: str) -> Layer | None:
    """The layer a kohya name means, whichever spelling of blocks it has; None for a name of no known layer."""
    word, rest = _split(lora_name)
    part = PARTS.get(word)
    path = None if part is None else _paths(part).get(rest)
    return None if part is None or path is None else Layer(part, path)


def lora_name(layer: Layer, sdxl: bool, sgm: bool = True) -> str | None:
    """kohya's name of a layer, None for a path that no model has.

    Args:
        layer: part and path.
        sdxl: the model has two text encoders, which are numbered then.
        sgm: spell SDXL's U-Net blocks as kohya's trainers do (`input_blocks_4_1`), else as diffusers does.
    """
    name = flat(layer.path)
    if _paths(layer.part).get(name) != layer.path:
        return None
    if layer.part == UNET:
        return f"lora_unet_{_sgm().get(layer.path) or name if sdxl and sgm else name}"
    number = 2 if layer.part == TEXT_ENCODER_2 else 1
    return f"lora_te{number if sdxl or number == 2 else ''}_{name}"


def sgm_name(name: str) -> str:
    """An SDXL U-Net name with kohya's spelling of blocks; any other name as it is."""
    word, rest = _split(name)
    path = _paths(UNET).get(rest) if PARTS.get(word) == UNET else None
    found = None if path is None else _sgm().get(path)
    return name if found is None else f"{word}_{found}"


def diffusers_name(name: str) -> str:
    """An SDXL U-Net name with diffusers' spelling of blocks; any other name as it is."""
    word, rest = _split(name)
    path = _paths(UNET).get(rest) if PARTS.get(word) == UNET else None
    return name if path is None else f"{word}_{flat(path)}"


def peft_key(key: str) -> str | None:
    """The PEFT name of a tensor that kohya calls `key`: `unet.<path>.lora_A.weight`; None for an unknown layer."""
    name, _, tensor = key.partition(".")
    layer = layer_of(name)
    return None if layer is None else f"{layer.part}.{layer.path}.{TENSORS.get(tensor, tensor)}"


def kohya_key(key: str, sdxl: bool, sgm: bool = True) -> str | None:
    """The kohya name of a tensor that PEFT or diffusers call `key`, in any of their spellings; None if unknown.

    Args:
        key: such as `unet.<path>.lora_A.weight`, with or without `base_model.model.` before it.
        sdxl: number the text encoders.
        sgm: spell SDXL's U-Net blocks as kohya's trainers do.
    """
    found = read_key(key)
    name = None if found is None else lora_name(found[0], sdxl, sgm)
    return None if found is None or name is None else f"{name}.{found[1]}"


# ---- the spellings of PEFT and diffusers

# What PEFT and diffusers put before a path, and what diffusers called its attention processors' layers once.
_WRAPPED = "base_model.model."
_OLD_LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    UNET: {
        "to_q_lora": ("to_q", "lora"),
        "to_k_lora": ("to_k", "lora"),
        "to_v_lora": ("to_v", "lora"),
        "to_out_lora": ("to_out", "0", "lora"),
    },
    TEXT_ENCODER: {
        "to_q_lora": ("q_proj", "lora"),
        "to_k_lora": ("k_proj", "lora"),
        "to_v_lora": ("v_proj", "lora"),
        "to_out_lora": ("out_proj", "lora"),
    },
}
_OLD_LAYERS[TEXT_ENCODER_2] = _OLD_LAYERS[TEXT_ENCODER]
_TEXT_STARTS = ("text_model", "encoder", "embeddings", "final_layer_norm", "text_projection")
_DIRECTIONS = {"down": "lora_down.weight", "up": "lora_up.weight"}


def read_key(key: str, part: str = "") -> tuple[Layer, str] | None:
    """Layer and kohya's word for the tensor of a PEFT or diffusers name; None for a name that is none.

    Args:
        key: the tensor's name.
        part: the part of the model that names without one belong to; empty: the U-Net, or what the path shows.
    """
    rest = key.removeprefix(_WRAPPED)
    for known in (UNET, TEXT_ENCODER, TEXT_ENCODER_2):
        if rest.startswith(f"{known}."):
            part, rest = known, rest[len(known) + 1 :].removeprefix(_WRAPPED)
    steps = [step for step in rest.split(".") if step != "processor"]
    if not part:
        part = TEXT_ENCODER if steps[0] in _TEXT_STARTS else UNET
    steps = [word for step in steps for word in _OLD_LAYERS[part].get(step, (step,))]
    for end in range(len(steps) - 1, 0, -1):
        layer = _known_layer(part, ".".join(steps[:end]))
        if layer is not None:
            word = _tensor_word(steps[end:])
            return None if word is None else (layer, word)
    return None


def _known_layer(part: str, path: str) -> Layer | None:
    # newest transformers has no text_model level
    tries = (path,) if part == UNET else (path, f"text_model.{path}")
    return next((Layer(part, one) for one in tries if _paths(part).get(flat(one)) == one), None)


def _tensor_word(tensor: list[str]) -> str | None:
    """kohya's word for `lora_A.weight`, `lora.down.weight`, `lora_A.default.weight` and the like."""
    if tensor[0] in ("lora", "lora_linear_layer"):
        return _DIRECTIONS.get(tensor[1]) if len(tensor) == 3 and tensor[2] == "weight" else None
    if tensor[0] in ("lora_A", "lora_B"):
        return PEFT_TENSORS.get(f"{tensor[0]}.weight") if tensor[-1] == "weight" and len(tensor) <= 3 else None
    if tensor[0] == "lora_magnitude_vector":
        return PEFT_TENSORS[tensor[0]]
    return ".".join(tensor)
