"""The parts of an original single file: configurations told from the shapes of its weights, weights renamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sd_scripts.models import convert, keymap
from sd_scripts.models.assets import model_config
from sd_scripts.models.module_names import is_ballast
from sd_scripts.models.part import Part
from sd_scripts.models.weights import Weights
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.unetnames import UNET_SHAPES

KEY = "pretrained_model_name_or_path"
HEAD_WIDTH = 64  # of CLIP's heads and of SD2's U-Net heads; SD1's U-Net has 8 heads at every width


def unet_part(weights: Weights, version: str, source: str, dtype: torch.dtype) -> Part:
    """The U-Net of a single file of `version`, read as `dtype`.

    SD2's inner projections become 1x1 convolutions, as sd-scripts runs them from single files; a LoRA trained on them
    has the same shapes there and here.

    Raises:
        UserError: there is no U-Net, it is one for inpainting or depth, or it has unknown weights.
    """
    found = weights.below(keymap.UNET_PREFIX, dtype)
    shape = UNET_SHAPES[version]
    config = model_config(version)["unet"]
    try:
        blocks = [f"input_blocks.{1 + (shape.layers + 1) * level}" for level in range(shape.levels)]
        widths = [found[f"{block}.0.out_layers.3.weight"].shape[0] for block in blocks]
        text = f"{blocks[shape.down_attention.index(True)]}.1.transformer_blocks.0.attn2.to_k.weight"
        config["in_channels"] = found["input_blocks.0.0.weight"].shape[1]
        config["cross_attention_dim"] = found[text].shape[1]
        if version == "sdxl":
            config["projection_class_embeddings_input_dim"] = found["label_emb.0.0.weight"].shape[1]
    except KeyError as error:
        raise UserError(f"The U-Net in {source} is incomplete: {error.args[0]} is missing.", key=KEY) from error
    config["block_out_channels"] = widths
    check_channels(config["in_channels"], source)
    if version != "sd1":
        config["attention_head_dim"] = [max(1, width // HEAD_WIDTH) for width in widths]
    renamed = _named(lambda part: convert.unet_from_original(part, shape), found, "U-Net", source)
    if version == "sd2":
        config["use_linear_projection"] = False
        renamed = convert.fit_projections(renamed, linear=False)
    return Part(config, renamed)


def check_channels(channels: int, source: str) -> None:
    """Refuse U-Nets that want more than a noisy picture. Raises UserError."""
    kind = {9: "an inpainting model", 5: "a depth model", 8: "an image-editing model"}.get(channels)
    if channels != 4:
        raise UserError(
            f"{source} is {kind or 'a model with another input'} ({channels} input channels, 4 can be trained).",
            key=KEY,
            hint="Choose the ordinary version of this model.",
        )


def check_complete(weights: Weights, version: str, source: str, *, vae: bool) -> None:
    """Refuse, before anything is read, a file of `version` without U-Net, text encoders or `vae`. Raises UserError."""
    if not any(name.startswith(keymap.UNET_PREFIX) for name in weights.shapes):
        raise UserError(f"{source} holds no U-Net.", key=KEY, hint="Choose a whole Stable Diffusion model.")
    for number, prefix in enumerate(keymap.TEXT_PREFIXES[version], start=1):
        if not any(name.startswith(prefix) for name in weights.shapes):
            raise UserError(
                f"{source} holds no {'second ' if number == 2 else ''}text encoder.",
                key=KEY,
                hint="Choose the full version of this model, not a U-Net alone.",
            )
    if vae:
        _want_vae(weights, source, KEY)


def text_part(weights: Weights, version: str, source: str, number: int, dtype: torch.dtype) -> Part:
    """A text encoder of a single file of `version`, read as `dtype`; `number` counts from 1.

    Raises:
        UserError: it is damaged.
    """
    prefix = keymap.TEXT_PREFIXES[version][number - 1]
    found = weights.below(prefix, dtype)
    config = model_config(version)["text_encoder" if number == 1 else f"text_encoder_{number}"]
    layers = config["num_hidden_layers"]
    if prefix.endswith(".transformer."):
        renamed = convert.text_from_clip(found)
    elif "CLIPTextModelWithProjection" in config["architectures"]:
        renamed = _named(lambda part: convert.projected_from_openclip(part, layers), found, "text encoder", source)
    else:
        renamed = _named(lambda part: convert.text_from_openclip(part, layers), found, "text encoder", source)
    return Part(text_config(config, renamed, source), renamed)


def text_config(config: dict[str, Any], weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """`config` with the widths that the weights have; vocabulary too, which inserted embeddings make longer."""
    level = "text_model." if any(name.startswith("text_model.") for name in weights) else ""
    projection = weights.get("text_projection.weight")
    try:
        vocabulary, width = weights[f"{level}embeddings.token_embedding.weight"].shape
        inner = weights[f"{level}encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"The text encoder in {source} is incomplete: {error.args[0]} is missing.", key=KEY) from error
    return config | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width if projection is None else projection.shape[0],
        "intermediate_size": inner,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
    }


def _want_vae(weights: Weights, source: str, key: str | None) -> str:
    """The prefix under which a file holds a VAE, as a part of a model or alone. Raises UserError."""
    for prefix in (keymap.VAE_PREFIX, ""):
        if f"{prefix}decoder.conv_in.weight" in weights.shapes:
            return prefix
    raise UserError(
        f"{source} holds no VAE.", key=key, hint="Name a VAE file, or choose a model that contains its VAE."
    )


def vae_part(weights: Weights, source: str, version: str, dtype: torch.dtype, key: str | None = KEY) -> Part:
    """A VAE from a whole single file, from a VAE file in the original layout, or from one in diffusers' layout.

    Raises:
        UserError: there is no VAE in it, or it is not Stable Diffusion's kind.
    """
    found = weights.below(_want_vae(weights, source, key), dtype)
    if any(name.startswith("encoder.down_blocks.") for name in found):
        renamed = convert.vae_from_old_diffusers(found)
    else:
        renamed = _named(convert.vae_from_original, found, "VAE", source, key)
    config = model_config(version)["vae"]
    pattern = re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    widths = {int(match[1]): value.shape[0] for name, value in renamed.items() if (match := pattern.fullmatch(name))}
    latent = renamed["decoder.conv_in.weight"].shape[1]
    if sorted(widths) != [0, 1, 2, 3] or latent != 4:
        raise UserError(
            f"The VAE in {source} is not one for Stable Diffusion ({len(widths)} levels, {latent} latent channels).",
            key=key,
        )
    config["block_out_channels"] = [widths[level] for level in range(4)]
    return Part(config, renamed)


def ballast(weights: Weights, version: str) -> dict[str, Tensor]:
    """What a single file holds beside the modules' weights, by its names there, to be written back unchanged.

    The text encoders' odds and ends and the schedule's numbers. Moving averages of an earlier training are left out,
    since they would not fit the weights that are saved.
    """
    return weights.take([name for name in weights.shapes if is_ballast(name, version)])


def _named(
    rename: Any, weights: Mapping[str, Tensor], what: str, source: str, key: str | None = KEY
) -> dict[str, Tensor]:
    try:
        return rename(weights)
    except convert.UnknownKeysError as error:
        raise UserError(
            f"The {what} in {source} has {len(error.keys)} weights of an unknown kind (first: {error.keys[0]}).",
            key=key,
            hint="It is another kind of model.",
        ) from error
