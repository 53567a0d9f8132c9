"""Kohya's names: the module list of sd-scripts, in its order, on full-size shapes and on the small models."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sd_scripts.models import convert
from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_text_encoder, make_text_encoders, make_unet
from sd_scripts.models.tiny import build_tiny
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.schema.unetnames import UNET_SHAPES

WANT = json.loads((Path(__file__).parent / "data" / "lora_modules.json").read_text(encoding="utf-8"))
UNET_TARGETS = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_TARGETS = ("CLIPAttention", "CLIPMLP")


def walk(root: nn.Module, targets: tuple[str, ...], prefix: str) -> list[tuple[str, nn.Module]]:
    """Layers below modules of the given class names, as kohya's network modules walk and name them."""
    found = []
    for name, module in root.named_modules():
        if type(module).__name__ in targets:
            for child_name, child in module.named_modules():
                if type(child).__name__ in ("Linear", "Conv2d"):
                    found.append((f"{prefix}.{name}.{child_name}".replace(".", "_"), child))
    return found


def facts(name: str, layer: Any) -> list[Any]:
    """Name, kind and widths as the list of sd-scripts gives them."""
    if isinstance(layer, nn.Linear):
        return [name, "linear", layer.in_features, layer.out_features]
    size = layer.kernel_size[0]
    return [name, f"conv{size}x{size}", layer.in_channels, layer.out_channels]


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_full_size_names_kinds_shapes_and_order(version: str) -> None:
    config = model_config(version)
    config["unet"]["use_linear_projection"] = False  # as from a single file
    with torch.device("meta"):
        unet, text = make_unet(config["unet"]), make_text_encoder(config["text_encoder"])
    found = walk(text_view(text), TEXT_TARGETS, "lora_te") + walk(unet_view(unet), UNET_TARGETS, "lora_unet")
    assert [facts(name, layer) for name, layer in found] == WANT[version]


def xl_rows(unet: nn.Module, texts: Sequence[nn.Module]) -> list[list[Any]]:
    """Facts of all layers of an SDXL model, text encoders first."""
    found = []
    for number, text in enumerate(texts, start=1):
        found += walk(text_view(text), TEXT_TARGETS, f"lora_te{number}")
    found += walk(unet_view(unet), UNET_TARGETS, "lora_unet")
    return [facts(name, layer) for name, layer in found]


def test_sdxl_names_kinds_shapes_and_order() -> None:
    """The whole list is long; its fingerprint was taken of sd-scripts' own."""
    config = model_config("sdxl")
    with torch.device("meta"):
        unet, texts = make_unet(config["unet"]), make_text_encoders(config)
    rows = xl_rows(unet, texts)
    assert len(rows) == 1052
    assert Counter(row[1] for row in rows) == {"linear": 1003, "conv3x3": 38, "conv1x1": 11}
    assert Counter(row[0].split("_")[1] for row in rows) == {"te1": 72, "te2": 192, "unet": 788}
    assert rows[0] == ["lora_te1_text_model_encoder_layers_0_self_attn_k_proj", "linear", 768, 768]
    assert rows[-1] == ["lora_unet_output_blocks_8_0_skip_connection", "conv1x1", 640, 320]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "1413d3adc5a81037d411ba485fe2bdfba7594337a67f9fa1ba653519b25728c2"
    # Without convolutions only the transformers' layers are left.
    linear = [row for row in rows if "_te" in row[0] or "transformer_blocks" in row[0] or "_proj_" in row[0]]
    assert len([row for row in linear if row[1] == "linear"]) == 986
    small = build_tiny("sdxl")
    assert [row[0] for row in xl_rows(small.unet, small.text_encoders)] == [row[0] for row in rows]


def test_the_sdxl_view_carries_the_names_of_the_original_file() -> None:
    unet = build_tiny("sdxl").unet
    view = unet_view(unet)
    original = convert.unet_to_original(unet.state_dict(), UNET_SHAPES["sdxl"])
    assert view.state_dict().keys() == original.keys()
    assert {id(value) for value in view.parameters()} == {id(value) for value in unet.parameters()}


def test_sd2_from_a_folder_keeps_its_linear_projections() -> None:
    with torch.device("meta"):
        unet = make_unet(model_config("sd2")["unet"])
    kinds = {name: facts(name, layer)[1:] for name, layer in walk(unet_view(unet), UNET_TARGETS, "lora_unet")}
    assert kinds["lora_unet_down_blocks_0_attentions_0_proj_in"] == ["linear", 320, 320]


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_small_models_have_the_names_of_the_full_size_ones(version: str) -> None:
    model = build_tiny(version)
    found = walk(text_view(model.text_encoder), TEXT_TARGETS, "lora_te")
    found += walk(unet_view(model.unet), UNET_TARGETS, "lora_unet")
    assert [name for name, _ in found] == [entry[0] for entry in WANT[version]]


def test_the_leaves_are_the_models_own_layers() -> None:
    model = build_tiny("sd1")
    own = {id(module) for module in model.unet.modules()} | {id(module) for module in model.text_encoder.modules()}
    leaves = [layer for _, layer in walk(unet_view(model.unet), UNET_TARGETS, "u")]
    leaves += [layer for _, layer in walk(text_view(model.text_encoder), TEXT_TARGETS, "t")]
    assert all(id(layer) in own for layer in leaves)
    assert dict(unet_view(model.unet).named_parameters()).keys() == dict(model.unet.named_parameters()).keys()


def test_a_hook_set_through_the_view_changes_the_model() -> None:
    model = build_tiny("sd1")
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)
    with torch.no_grad():
        before = model.unet(latents, torch.tensor([10]), text).sample
        _, layer = walk(unet_view(model.unet), UNET_TARGETS, "u")[1]
        plain = layer.forward
        layer.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
        after = model.unet(latents, torch.tensor([10]), text).sample
    assert not torch.allclose(before, after)


def test_weights_load_through_the_view() -> None:
    model, other = build_tiny("sd1"), build_tiny("sd1", seed=1)
    unet_view(model.unet).load_state_dict(other.unet.state_dict(), assign=True)
    assert torch.equal(model.unet.conv_in.weight, other.unet.conv_in.weight)


def test_the_view_follows_moves_and_refuses_to_compute() -> None:
    model = build_tiny("sd1")
    view = text_view(model.text_encoder)
    model.text_encoder.to(torch.bfloat16)
    assert view.dtype == torch.bfloat16
    assert type(view).__name__ == "CLIPTextModel"
    with pytest.raises(RuntimeError, match="names"):
        view(torch.zeros(1, 77, dtype=torch.long))


def test_no_module_of_the_view_looks_like_a_time_embedding() -> None:
    names = {type(module).__name__ for module in unet_view(build_tiny("sd1").unet).modules()}
    assert "TimestepEmbedding" not in names
    assert "CrossAttention" in names
