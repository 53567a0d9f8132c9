"""State dictionaries from one layout to the other: renamed by `keymap`, reshaped where the layouts differ.

Tensors are shared, not copied, wherever the layouts store them alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sd_scripts.models import keymap
from sd_scripts.schema.unetnames import SD_UNET, UnetShape, unet_table

StateDict = dict[str, Tensor]

# Entries that carry no weight of the model: counters, caches and heads that Stable Diffusion never uses.
IGNORED_TEXT_KEYS = ("position_ids", "text_projection", "logit_scale", "attn_mask")
LAYERS = 32  # more text layers than this no table needs
_TEMPERATURE = math.log(100)  # OpenCLIP's logit_scale is never let above it
_QKV = ("q_proj", "k_proj", "v_proj")
_IN_PROJ = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_QKV_KEY = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_PROJECTION = re.compile(r"\.proj_(?:in|out)\.weight$")
_VAE_ATTENTION_WEIGHT = re.compile(r"(?:mid_block\.attentions\.0|mid\.attn_1)\..*\.weight$")


class UnknownKeysError(KeyError):
    """Names in a state dictionary that the layout's table does not know.

    Attributes:
        keys: the names.
    """

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"{len(keys)} unknown weights, first {keys[0]}")
        self.keys = keys


def with_prefix(weights: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The entries below `prefix`, with the prefix taken away."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _renamed(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> StateDict:
    renamed: StateDict = {}
    unknown = []
    for key, value in weights.items():
        name = keymap.translate(key, table)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    if unknown:
        raise UnknownKeysError(unknown)
    return renamed


def fit_projections(weights: StateDict, *, linear: bool) -> StateDict:
    """Store the `proj_in`/`proj_out` weights of attention blocks as matrices (linear) or as 1x1 convolutions.

    SD2's single files hold matrices, sd-scripts runs them as convolutions when they come from a single file; the
    numbers are the same, the shapes (and with them the shapes of a LoRA on top) are not.
    """
    fitted = dict(weights)
    for key, value in weights.items():
        if _PROJECTION.search(key):
            if linear and value.ndim == 4:
                fitted[key] = value[:, :, 0, 0]
            elif not linear and value.ndim == 2:
                fitted[key] = value[:, :, None, None]
    return fitted


def unet_from_original(weights: Mapping[str, Tensor], shape: UnetShape = SD_UNET) -> StateDict:
    """Original U-Net names (prefix taken away) -> diffusers' names. Raises UnknownKeysError."""
    return _renamed(weights, unet_table(shape))


def unet_to_original(weights: Mapping[str, Tensor], shape: UnetShape = SD_UNET) -> StateDict:
    """diffusers' U-Net names -> original names without prefix. Raises UnknownKeysError."""
    return _renamed(weights, keymap.inverse(unet_table(shape)))


def _vae_attention(weights: StateDict, *, matrices: bool) -> StateDict:
    for key, value in weights.items():
        if _VAE_ATTENTION_WEIGHT.search(key) and "norm" not in key:
            if matrices and value.ndim == 4:
                weights[key] = value[:, :, 0, 0]
            elif not matrices and value.ndim == 2:
                weights[key] = value[:, :, None, None]
    return weights


def vae_from_original(weights: Mapping[str, Tensor]) -> StateDict:
    """Original VAE names (prefix taken away) -> diffusers' names. Raises UnknownKeysError.

    Loss and moving-average entries that training left in the file (`loss.`, `model_ema.`) are left out.
    """
    kept = {key: value for key, value in weights.items() if not key.startswith(("loss.", "model_ema."))}
    return _vae_attention(_renamed(kept, keymap.vae_table()), matrices=True)


def vae_to_original(weights: Mapping[str, Tensor]) -> StateDict:
    """diffusers' VAE names -> original names without prefix. Raises UnknownKeysError."""
    return _vae_attention(_renamed(weights, keymap.inverse(keymap.vae_table())), matrices=False)


def vae_from_old_diffusers(weights: Mapping[str, Tensor]) -> StateDict:
    """A diffusers VAE of before 2023 -> today's attention names; newer ones pass unchanged."""
    renamed: StateDict = {}
    for key, value in weights.items():
        parts = key.rsplit(".", 2)
        if ".attentions." in key and len(parts) == 3 and parts[1] in keymap.OLD_VAE_ATTENTION:
            key = f"{parts[0]}.{keymap.OLD_VAE_ATTENTION[parts[1]]}.{parts[2]}"
        renamed[key] = value
    return _vae_attention(renamed, matrices=True)


def _without_ignored(weights: Iterable[tuple[str, Tensor]]) -> StateDict:
    return {key: value for key, value in weights if not any(part in key.split(".") for part in IGNORED_TEXT_KEYS)}


def text_from_clip(weights: Mapping[str, Tensor]) -> StateDict:
    """transformers' CLIP text names with or without the `text_model.` level -> without it, ballast left out."""
    return _without_ignored((key.removeprefix("text_model."), value) for key, value in weights.items())


def text_to_clip(weights: Mapping[str, Tensor]) -> StateDict:
    """CLIP text names with the `text_model.` level that every other program expects in a file."""
    plain = text_from_clip(weights)
    return {f"text_model.{key}": value for key, value in plain.items()}


def text_from_openclip(weights: Mapping[str, Tensor], layers: int) -> StateDict:
    """OpenCLIP's text tower -> transformers' names, its first `layers` layers only.

    SD2 was trained on the last but one of 24 layers, so 23 are used and the last is dropped. The joint query, key and
    value matrix is split in three.
    """
    out: StateDict = {}
    plain: StateDict = {}
    for key, value in _without_ignored(weights.items()).items():
        block = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if block and int(block[1]) >= layers:
            continue
        joint = _IN_PROJ.fullmatch(key)
        if joint:
            for name, part in zip(_QKV, value.chunk(3), strict=True):
                out[f"encoder.layers.{joint[1]}.self_attn.{name}.{joint[2]}"] = part.clone()
        elif key == "positional_embedding":
            out["embeddings.position_embedding.weight"] = value
        else:
            plain[key] = value
    return out | _renamed(plain, keymap.openclip_table(layers))


def text_to_openclip(weights: Mapping[str, Tensor]) -> StateDict:
    """transformers' text tower -> OpenCLIP's names."""
    out: StateDict = {}
    plain: StateDict = {}
    joint: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in text_from_clip(weights).items():
        part = _QKV_KEY.fullmatch(key)
        if part:
            joint.setdefault((part[1], part[3]), {})[part[2]] = value
        elif key == "embeddings.position_embedding.weight":
            out["positional_embedding"] = value
        else:
            plain[key] = value
    out |= _renamed(plain, keymap.inverse(keymap.openclip_table(LAYERS)))
    for (layer, kind), parts in joint.items():
        out[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat([parts[name] for name in "qkv"])
    return out


def projected_from_openclip(weights: Mapping[str, Tensor], layers: int) -> StateDict:
    """OpenCLIP's text tower with its projection -> transformers' `CLIPTextModelWithProjection`.

    OpenCLIP multiplies by the projection from the right, a linear layer by its transpose.
    """
    out = text_to_clip(text_from_openclip(weights, layers))
    if "text_projection" in weights:
        out["text_projection.weight"] = weights["text_projection"].T.contiguous()
    return out


def projected_to_openclip(weights: Mapping[str, Tensor]) -> StateDict:
    """transformers' `CLIPTextModelWithProjection` -> OpenCLIP's names."""
    return text_to_openclip(weights) | {"text_projection": weights["text_projection.weight"].T.contiguous()}


def projected_from_clip(weights: Mapping[str, Tensor]) -> StateDict:
    """A text tower with projection out of a folder, whichever transformers version wrote it."""
    out = text_to_clip(weights)
    if "text_projection.weight" in weights:
        out["text_projection.weight"] = weights["text_projection.weight"]
    return out


def text_ballast(weights: Mapping[str, Tensor], version: str) -> StateDict:
    """What an original file of `version` has for its text encoders beside the weights that any program uses.

    Args:
        weights: of the whole model by original names.
        version: "sd1", "sd2" or "sdxl".

    Returns:
        By original names: CLIP's position numbers (sd1, sdxl), OpenCLIP's temperature (sd2, sdxl) at the value it is
        held to in training, and for sd2 a projection of ones and a 24th layer, a copy of the 23rd. Programs that read
        SD2 files build 24 layers and take the output of the 23rd.
    """
    out: StateDict = {}
    for prefix in keymap.TEXT_PREFIXES[version]:
        if prefix.endswith(".transformer."):
            width = weights[f"{prefix}text_model.embeddings.position_embedding.weight"].shape[0]
            out[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(width)[None]
            continue
        positions = weights[f"{prefix}positional_embedding"]
        out[f"{prefix}logit_scale"] = torch.tensor(_TEMPERATURE, dtype=positions.dtype)
        if version == "sd2":
            width = positions.shape[1]
            out[f"{prefix}text_projection"] = torch.ones(width, width, dtype=positions.dtype)
            place = f"{prefix}transformer.resblocks."
            last = max(int(key[len(place) :].split(".")[0]) for key in weights if key.startswith(place))
            for key in [key for key in weights if key.startswith(f"{place}{last}.")]:
                out[key.replace(f"{place}{last}.", f"{place}{last + 1}.")] = weights[key]
    return out
