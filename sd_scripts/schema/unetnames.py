"""Names of the parts of a U-Net in the two layouts: original single file and diffusers.

A table is a dictionary from a module path in the original layout to the module path in diffusers; what follows the
module path (`.weight`, `.bias`, `.transformer_blocks.0...`) is spelled alike in both.
"""

from __future__ import annotations

from dataclasses import dataclass

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
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
