"""Which layer a stored weight belongs to: kohya's names told from the names in the files, without building a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sd_scripts.models import convert, keymap
from sd_scripts.models.assets import model_config
from sd_scripts.schema.unetnames import RESNET, UNET_SHAPES, unet_table

# Modules under one roof in the order of the walk through sd-scripts' module tree, in which networks list their layers.
# One list serves all levels: no two modules under the same roof stand in it the wrong way round.
_WALK = (
    *("text_model", "embeddings", "encoder", "conv_in", "time_embedding", "time_embed", "label_emb"),
    *("down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block", "output_blocks", "out"),
    *("conv_norm_out", "conv_out", "attentions", "resnets", "downsamplers", "upsamplers", "linear_1", "linear_2"),
    *("self_attn", "layer_norm1", "mlp", "layer_norm2", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    *("norm", "proj_in", "transformer_blocks", "proj_out", "attn1", "ff", "attn2"),
    *("norm1", "conv1", "time_emb_proj", "norm2", "norm3", "conv2", "conv_shortcut"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "op", "conv"),
    *("to_q", "to_k", "to_v", "to_out", "net", "proj", "final_layer_norm", "text_projection"),
)
_RANK = {name: rank for rank, name in enumerate(_WALK)}
_IN_PROJ = re.compile(r"(transformer\.resblocks\.\d+)\.attn\.in_proj_weight")
_LAYER = re.compile(r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\.")
_EMBEDDINGS = ("token_embedding", "position_embedding")
_RESNET_PARTS = {"resnets", "downsamplers", "upsamplers", *(name.split(".")[0] for name in RESNET), "op", "conv"}
_ATTENTION_PARTS = {"proj_in", "proj_out", "transformer_blocks"}
_TEXT_TARGETS = {"self_attn", "mlp"}


@dataclass(frozen=True)
class Spot:
    """A layer and where its weight lies.

    Attributes:
        part: "unet", "text_encoder" or "text_encoder_2".
        path: the layer's path in sd-scripts' module tree, with dots.
        weight: key of the weight.
        bias: key that the bias would have.
        third: which third of the rows is the layer's, in OpenCLIP's joint query, key and value matrix.
        transposed: the file holds the transpose.
    """

    part: str
    path: str
    weight: str
    bias: str
    third: int | None = None
    transposed: bool = False

    @property
    def order(self) -> list[tuple[int, int, str]]:
        """Sorts the layers of a part as the walk comes by them."""
        return [
            (0, int(step), "") if step.isdigit() else (1, _RANK.get(step, len(_RANK)), step)
            for step in self.path.split(".")
        ]

    @property
    def group(self) -> str:
        """What networks.lora takes it for: "attention", "resnet" (with convolutions), or "" for neither."""
        steps = set(self.path.split("."))
        if self.part != "unet":
            return "attention" if steps & _TEXT_TARGETS else ""
        if steps & _ATTENTION_PARTS:
            return "attention"
        return "resnet" if steps & _RESNET_PARTS else ""


def spots_in_file(keys: Mapping[str, object], version: str) -> Iterator[Spot]:
    """The layers of U-Net and text encoders in an original single file."""
    table = unet_table(UNET_SHAPES[version])
    for key in keys:
        if key.startswith(keymap.UNET_PREFIX) and key.endswith(".weight"):
            inner = key.removeprefix(keymap.UNET_PREFIX)
            name = keymap.translate(inner, table)
            if name is not None:
                yield _spot("unet", inner if version == "sdxl" else name, key)
    for number, prefix in enumerate(keymap.TEXT_PREFIXES[version], start=1):
        part = "text_encoder" if number == 1 else f"text_encoder_{number}"
        limit = model_config(version)[part]["num_hidden_layers"]
        found = [key for key in keys if key.startswith(prefix) and _layer(key) < limit]
        yield from _clip(part, found, prefix) if prefix.endswith(".transformer.") else _openclip(part, found, prefix)


def spots_in_folder(keys: Mapping[str, object], version: str) -> Iterator[Spot]:
    """The layers of U-Net and text encoders in a diffusers folder, whose keys are `part/name`."""
    table = keymap.inverse(unet_table(UNET_SHAPES[version]))
    for key in keys:
        part, _, name = key.partition("/")
        if part == "unet" and name.endswith(".weight"):
            path = keymap.translate(name, table) if version == "sdxl" else name
            if path is not None:
                yield _spot(part, path, key)
        elif part.startswith("text_encoder") and not name.startswith(("vision_model.", "visual_")):
            yield from _clip(part, [key], f"{part}/")


def _layer(key: str) -> int:
    found = _LAYER.search(key)
    return int(found[1]) if found else -1


def _spot(part: str, path: str, key: str) -> Spot:
    return Spot(part, path.removesuffix(".weight"), key, key.removesuffix("weight") + "bias")


def _clip(part: str, keys: list[str], prefix: str) -> Iterator[Spot]:
    for key in keys:
        name = key.removeprefix(prefix).removeprefix("text_model.")
        steps = name.split(".")
        if steps[-1] != "weight" or any(step in _EMBEDDINGS for step in steps):
            continue
        if name == "text_projection.weight":
            if part == "text_encoder_2":
                yield _spot(part, name, key)
        elif not any(step in convert.IGNORED_TEXT_KEYS for step in steps):
            yield _spot(part, f"text_model.{name}", key)


def _openclip(part: str, keys: list[str], prefix: str) -> Iterator[Spot]:
    table = keymap.openclip_table(convert.LAYERS)
    for key in keys:
        name = key.removeprefix(prefix)
        joint = _IN_PROJ.fullmatch(name)
        if joint:
            layer = joint[1].replace("transformer.resblocks", "text_model.encoder.layers")
            bias = key.removesuffix("weight") + "bias"
            for third, letter in enumerate("qkv"):
                yield Spot(part, f"{layer}.self_attn.{letter}_proj", key, bias, third)
        elif name == "text_projection" and part == "text_encoder_2":
            yield Spot(part, name, key, f"{key}.bias", transposed=True)
        elif name.endswith(".weight") and not name.startswith(_EMBEDDINGS):
            path = keymap.translate(name, table)
            if path is not None:
                yield _spot(part, f"text_model.{path}", key)


def is_ballast(name: str, version: str) -> bool:
    """Whether an entry of an original file is no weight of the model: the schedule's numbers, text odds and ends.

    It is written back as it was, since a cast would spoil it.
    """
    prefix = next((prefix for prefix in keymap.TEXT_PREFIXES[version] if name.startswith(prefix)), "")
    if not prefix:
        return "." not in name or name.startswith("denoiser.")
    parts = name[len(prefix) :].split(".")
    if version == "sdxl" and parts == ["text_projection"]:
        return False
    unused = version == "sd2" and _layer(name) >= model_config(version)["text_encoder"]["num_hidden_layers"]
    return unused or any(part in convert.IGNORED_TEXT_KEYS for part in parts)
