"""Names of the same weights in the two layouts: original single file ("LDM") and diffusers / transformers.

Only strings live here; `convert.py` moves the tensors. A table is a dictionary from a module path in the original
layout to the module path in diffusers; what follows the module path (`.weight`, `.bias`, `.transformer_blocks.0...`)
is spelled alike in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
# Where single files keep the text encoders, in order; those under `transformer.` are transformers' CLIP, those under
# `model.` are OpenCLIP's.
TEXT_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# diffusers' own names of the VAE attention before 2023; old folders and old external VAEs still carry them.
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class UnetShape:
    """What of a U-Net decides its module names.

    Attributes:
        layers: residual blocks a level of the way down.
        down_attention: for each level, from the finest, whether it has attention.
    """

    layers: int = 2
    down_attention: tuple[bool, ...] = (True, True, True, False)

    @property
    def levels(self) -> int:
        """How many resolutions the U-Net works at."""
        return len(self.down_attention)


SD_UNET = UnetShape()
UNET_SHAPES = {"sd1": SD_UNET, "sd2": SD_UNET, "sdxl": UnetShape(down_attention=(False, True, True))}


def _resnet(table: dict[str, str], original: str, diffusers: str) -> None:
    for inner, name in RESNET.items():
        table[f"{original}.{inner}"] = f"{diffusers}.{name}"


def unet_table(shape: UnetShape = SD_UNET) -> dict[str, str]:
    """Original -> diffusers module paths of a U-Net, without the `model.diffusion_model.` prefix."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
    }
    _resnet(table, "middle_block.0", "mid_block.resnets.0")
    _resnet(table, "middle_block.2", "mid_block.resnets.1")
    stride = shape.layers + 1
    for level, attention in enumerate(shape.down_attention):
        for layer in range(shape.layers):
            place = f"input_blocks.{level * stride + layer + 1}"
            _resnet(table, f"{place}.0", f"down_blocks.{level}.resnets.{layer}")
            if attention:
                table[f"{place}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < shape.levels - 1:
            table[f"input_blocks.{(level + 1) * stride}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for level, attention in enumerate(reversed(shape.down_attention)):
        for layer in range(stride):
            place = f"output_blocks.{level * stride + layer}"
            _resnet(table, f"{place}.0", f"up_blocks.{level}.resnets.{layer}")
            if attention:
                table[f"{place}.1"] = f"up_blocks.{level}.attentions.{layer}"
        if level < shape.levels - 1:
            # The upsampler is the next entry of the same block: second after a residual block, third after attention.
            slot = 2 if attention else 1
            table[f"output_blocks.{level * stride + shape.layers}.{slot}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return table


def vae_table(levels: int = 4, layers: int = 2) -> dict[str, str]:
    """Original -> diffusers module paths of the VAE, without the `first_stage_model.` prefix.

    The decoder's levels are numbered from the finest in the original and from the coarsest in diffusers.
    """
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for index in range(2):
            for inner, name in VAE_RESNET.items():
                table[f"{side}.mid.block_{index + 1}.{inner}"] = f"{side}.mid_block.resnets.{index}.{name}"
        for inner, name in VAE_ATTENTION.items():
            table[f"{side}.mid.attn_1.{inner}"] = f"{side}.mid_block.attentions.0.{name}"
    for level in range(levels):
        for layer in range(layers):
            for inner, name in VAE_RESNET.items():
                table[f"encoder.down.{level}.block.{layer}.{inner}"] = (
                    f"encoder.down_blocks.{level}.resnets.{layer}.{name}"
                )
        table[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        mirrored = levels - 1 - level
        for layer in range(layers + 1):
            for inner, name in VAE_RESNET.items():
                table[f"decoder.up.{mirrored}.block.{layer}.{inner}"] = (
                    f"decoder.up_blocks.{level}.resnets.{layer}.{name}"
                )
        table[f"decoder.up.{mirrored}.upsample.conv"] = f"decoder.up_blocks.{level}.upsamplers.0.conv"
    return table


def openclip_table(layers: int) -> dict[str, str]:
    """OpenCLIP -> transformers module paths of a text tower, without the parts that need their tensors changed."""
    table = {
        "token_embedding": "embeddings.token_embedding",
        "ln_final": "final_layer_norm",
    }
    for layer in range(layers):
        for inner, name in OPENCLIP_LAYER.items():
            table[f"transformer.resblocks.{layer}.{inner}"] = f"encoder.layers.{layer}.{name}"
    return table


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """The same table read from right to left."""
    return {value: key for key, value in table.items()}


def translate(key: str, table: Mapping[str, str]) -> str | None:
    """`key` with its longest module path found in `table` replaced, or None when no part of it is known."""
    head = key
    while head:
        found = table.get(head)
        if found is not None:
            return found + key[len(head) :]
        head = head.rpartition(".")[0]
    return None
