"""Which weights the parts of a model have, told from their configurations: a damaged model is seen without building it.

Names are those of diffusers' and transformers' modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sd_scripts.models.part import Part
from sd_scripts.schema.errors import UserError

Shapes = dict[str, tuple[int, ...]]

_MID_BLOCK = "UNetMidBlock2DCrossAttn"
_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
_WITH_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def _linear(shapes: Shapes, name: str, width: int, out: int, *, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = (out, width)
    if bias:
        shapes[f"{name}.bias"] = (out,)


def _conv(shapes: Shapes, name: str, width: int, out: int, kernel: int = 3) -> None:
    shapes[f"{name}.weight"] = (out, width, kernel, kernel)
    shapes[f"{name}.bias"] = (out,)


def _norm(shapes: Shapes, name: str, width: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)


def _resnet(shapes: Shapes, name: str, width: int, out: int, time: int | None) -> None:
    _norm(shapes, f"{name}.norm1", width)
    _conv(shapes, f"{name}.conv1", width, out)
    if time is not None:
        _linear(shapes, f"{name}.time_emb_proj", time, out)
    _norm(shapes, f"{name}.norm2", out)
    _conv(shapes, f"{name}.conv2", out, out)
    if width != out:
        _conv(shapes, f"{name}.conv_shortcut", width, out, 1)


class _Unet:
    """The shapes of a U-Net as they are counted up."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.shapes: Shapes = {}
        self.widths = list(config["block_out_channels"])
        self.layers = config["layers_per_block"]
        self.time = self.widths[0] * 4
        self.text = config["cross_attention_dim"]
        self.linear = bool(config.get("use_linear_projection"))
        depths = config.get("transformer_layers_per_block", 1)
        self.depths = [depths] * len(self.widths) if isinstance(depths, int) else list(depths)
        self.config = config

    def resnet(self, name: str, width: int, out: int) -> None:
        """A residual block."""
        _resnet(self.shapes, name, width, out, self.time)

    def transformer(self, name: str, width: int, depth: int) -> None:
        """A stack of transformer blocks."""
        _norm(self.shapes, f"{name}.norm", width)
        for projection in ("proj_in", "proj_out"):
            if self.linear:
                _linear(self.shapes, f"{name}.{projection}", width, width)
            else:
                _conv(self.shapes, f"{name}.{projection}", width, width, 1)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            for attention, source in (("attn1", width), ("attn2", self.text)):
                _linear(self.shapes, f"{block}.{attention}.to_q", width, width, bias=False)
                for letter in "kv":
                    _linear(self.shapes, f"{block}.{attention}.to_{letter}", source, width, bias=False)
                _linear(self.shapes, f"{block}.{attention}.to_out.0", width, width)
            _linear(self.shapes, f"{block}.ff.net.0.proj", width, width * 8)
            _linear(self.shapes, f"{block}.ff.net.2", width * 4, width)
            for norm in ("norm1", "norm2", "norm3"):
                _norm(self.shapes, f"{block}.{norm}", width)

    def ends(self) -> None:
        """What stands before and after the blocks."""
        first = self.widths[0]
        _conv(self.shapes, "conv_in", self.config["in_channels"], first)
        _linear(self.shapes, "time_embedding.linear_1", first, self.time)
        _linear(self.shapes, "time_embedding.linear_2", self.time, self.time)
        if self.config.get("addition_embed_type") == "text_time":
            _linear(
                self.shapes, "add_embedding.linear_1", self.config["projection_class_embeddings_input_dim"], self.time
            )
            _linear(self.shapes, "add_embedding.linear_2", self.time, self.time)
        _norm(self.shapes, "conv_norm_out", first)
        _conv(self.shapes, "conv_out", first, self.config["out_channels"])

    def down(self) -> None:
        """The way down, and the middle."""
        before = self.widths[0]
        for level, (kind, width) in enumerate(zip(self.config["down_block_types"], self.widths, strict=True)):
            block = f"down_blocks.{level}"
            for layer in range(self.layers):
                self.resnet(f"{block}.resnets.{layer}", before if layer == 0 else width, width)
                if kind in _WITH_ATTENTION:
                    self.transformer(f"{block}.attentions.{layer}", width, self.depths[level])
            if level < len(self.widths) - 1:
                _conv(self.shapes, f"{block}.downsamplers.0.conv", width, width)
            before = width
        for layer in range(2):
            self.resnet(f"mid_block.resnets.{layer}", before, before)
        self.transformer("mid_block.attentions.0", before, self.depths[-1])

    def up(self) -> None:
        """The way up; each residual block also takes what the way down left at its level."""
        widths = self.widths[::-1]
        before = widths[0]
        for level, (kind, width) in enumerate(zip(self.config["up_block_types"], widths, strict=True)):
            block = f"up_blocks.{level}"
            below = widths[min(level + 1, len(widths) - 1)]
            for layer in range(self.layers + 1):
                skipped = below if layer == self.layers else width
                self.resnet(f"{block}.resnets.{layer}", (before if layer == 0 else width) + skipped, width)
                if kind in _WITH_ATTENTION:
                    self.transformer(f"{block}.attentions.{layer}", width, self.depths[::-1][level])
            if level < len(widths) - 1:
                _conv(self.shapes, f"{block}.upsamplers.0.conv", width, width)
            before = width


def unet_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Weights of a U-Net; None for one whose blocks are of other kinds than Stable Diffusion's."""
    kinds = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    usual = kinds <= {*_DOWN, *_UP} and (config.get("mid_block_type") or _MID_BLOCK) == _MID_BLOCK
    depths = config.get("transformer_layers_per_block", 1)
    even = isinstance(depths, int) or all(isinstance(depth, int) for depth in depths)
    if not usual or not even or not isinstance(config.get("layers_per_block"), int):
        return None
    counted = _Unet(config)
    counted.ends()
    counted.down()
    counted.up()
    return counted.shapes


def text_shapes(config: Mapping[str, Any], *, projected: bool) -> Shapes:
    """Weights of a text encoder, without the `text_model.` level."""
    shapes: Shapes = {}
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes["embeddings.token_embedding.weight"] = (config["vocab_size"], width)
    shapes["embeddings.position_embedding.weight"] = (config["max_position_embeddings"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            _linear(shapes, f"{block}.self_attn.{name}", width, width)
        for name in ("layer_norm1", "layer_norm2"):
            _norm(shapes, f"{block}.{name}", width)
        _linear(shapes, f"{block}.mlp.fc1", width, inner)
        _linear(shapes, f"{block}.mlp.fc2", inner, width)
    _norm(shapes, "final_layer_norm", width)
    if projected:
        _linear(shapes, "text_projection", width, config["projection_dim"], bias=False)
    return shapes


def vae_shapes(config: Mapping[str, Any]) -> Shapes:
    """Weights of Stable Diffusion's VAE."""
    shapes: Shapes = {}
    widths, layers, latent = list(config["block_out_channels"]), config["layers_per_block"], config["latent_channels"]
    for side, order in (("encoder", widths), ("decoder", widths[::-1])):
        down = side == "encoder"
        _conv(shapes, f"{side}.conv_in", config["in_channels"] if down else latent, order[0])
        before = order[0]
        for level, width in enumerate(order):
            block = f"{side}.{'down' if down else 'up'}_blocks.{level}"
            for layer in range(layers if down else layers + 1):
                _resnet(shapes, f"{block}.resnets.{layer}", before if layer == 0 else width, width, None)
            if level < len(order) - 1:
                _conv(shapes, f"{block}.{'down' if down else 'up'}samplers.0.conv", width, width)
            before = width
        for layer in range(2):
            _resnet(shapes, f"{side}.mid_block.resnets.{layer}", widths[-1], widths[-1], None)
        _norm(shapes, f"{side}.mid_block.attentions.0.group_norm", widths[-1])
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            _linear(shapes, f"{side}.mid_block.attentions.0.{name}", widths[-1], widths[-1])
        _norm(shapes, f"{side}.conv_norm_out", before)
        _conv(shapes, f"{side}.conv_out", before, latent * 2 if down else config["out_channels"])
    _conv(shapes, "quant_conv", latent * 2, latent * 2, 1)
    _conv(shapes, "post_quant_conv", latent, latent, 1)
    return shapes


def check_part(name: str, part: Part, source: str, key: str | None = None) -> None:
    """Refuse a part that has not just the weights that its configuration promises.

    Args:
        name: "unet", "vae", "text_encoder" or "text_encoder_2".
        part: its configuration and weights.
        source: the file or folder, for the message.
        key: the option that named it.

    Raises:
        UserError: a weight is missing, one too many, or has another shape.
    """
    weights: Mapping[str, Tensor] = part.weights
    try:
        if name == "unet":
            wanted = unet_shapes(part.config)
        elif name == "vae":
            wanted = vae_shapes(part.config)
        else:
            wanted = text_shapes(part.config, projected=name == "text_encoder_2")
            weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"The configuration of {name} in {source} is damaged ({error}).", key) from error
    if wanted is None:
        return
    missing = [key for key in wanted if key not in weights]
    extra = [key for key in weights if key not in wanted]
    wrong = [key for key, shape in wanted.items() if key in weights and tuple(weights[key].shape) != shape]
    what = {"unet": "U-Net", "vae": "VAE"}.get(name, "text encoder")
    for names, problem in ((missing, "lacks"), (extra, "has unknown"), (wrong, "has other shapes for")):
        if names:
            raise UserError(
                f"The {what} in {source} {problem} {len(names)} of {len(wanted)} weights (first: {names[0]}).",
                key,
                "The file is damaged, or it is another kind of model.",
            )
