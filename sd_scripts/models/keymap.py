"""Names of the same weights in the two layouts: original single file ("LDM") and diffusers / transformers.

Only strings live here; `convert.py` moves the tensors. A table is a dictionary from a module path in the original
layout to the module path in diffusers; what follows the module path (`.weight`, `.bias`, `.transformer_blocks.0...`)
is spelled alike in both. The U-Net's table is in `schema/unetnames.py`, since networks need it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
# Where single files keep the text encoders, in order; those under `transformer.` are transformers' CLIP, those under
# `model.` are OpenCLIP's.
TEXT_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
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
