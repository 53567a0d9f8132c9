"""LoRA files for the conversion of names, and comparing them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sd_scripts.families.base import Model
from sd_scripts.models.tiny import build_tiny
from sd_scripts.networks.names import unet_layers
from sd_scripts.schema.headers import read_safetensors_header
from sd_scripts.tools import convert_lora

LAYERS = {
    "sd1": (
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.1.resnets.0.time_emb_proj",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.resnets.0.conv_shortcut",
    ),
    "sdxl": (
        "down_blocks.1.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
        "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.2.resnets.1.conv2",
    ),
}
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")


def convert(source: Path, target: Path, to: str, *more: str) -> Path:
    argv = ["--model", str(source), "--save_to", str(target), "--to", to, "--overwrite", *more]
    assert convert_lora.main(argv) == 0
    return target


def notes(path: Path) -> dict[str, str]:
    return read_safetensors_header(path).metadata


def assert_same(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value.dtype, value.shape) == (right[name].dtype, right[name].shape), name
        assert torch.equal(value, right[name]), name
    assert notes(one) == notes(other)


def base(version: str) -> Model:
    made = build_tiny(version, shallow=True)
    return Model(made.unet, made.text_encoders, made.tokenizers, made.vae, version, made.prediction_type)


def layer_at(model: Model, part: str, path: str) -> nn.Module:
    if part == "unet":
        return model.unet.get_submodule(path)
    encoder = model.text_encoders[part == "text_encoder_2"]
    return encoder.get_submodule(path if hasattr(encoder, "text_model") else path.removeprefix("text_model."))


def some_network(version: str, dora: bool) -> dict[str, Tensor]:
    """A LoRA on some layers of a small model, with ranks and alphas of several sizes."""
    random = torch.Generator().manual_seed(0)
    model = base(version)
    sgm = {path: original for original, path in unet_layers("sdxl").items()}
    places = [("unet", path) for path in LAYERS[version]]
    for number in range(len(model.text_encoders)):
        part = "text_encoder_2" if number else "text_encoder"
        places += [(part, f"text_model.encoder.layers.1.{layer}") for layer in TEXT_LAYERS]
    tensors: dict[str, Tensor] = {}
    for number, (part, path) in enumerate(places):
        weight = layer_at(model, part, path).weight
        rank, alpha = 2 + number % 2, (1.0, 2.5, 3.0)[number % 3]
        words = {"unet": "lora_unet", "text_encoder": "lora_te1" if version == "sdxl" else "lora_te"}
        spelled = sgm[path] if version == "sdxl" and part == "unet" else path
        name = f"{words.get(part, 'lora_te2')}_{spelled.replace('.', '_')}"
        down = torch.randn(rank, *weight.shape[1:], generator=random) / 4
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=random) / 4
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        if dora:
            lengths = weight.detach().flatten(1).norm(dim=1) * (1 + torch.rand(weight.shape[0], generator=random))
            tensors[f"{name}.dora_scale"] = lengths.reshape(-1, *[1] * (weight.dim() - 1))
    return tensors
