"""Names of network modules between kohya's two spellings, PEFT's and diffusers'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_scripts.models.tiny import build_tiny
from sd_scripts.networks import names
from sd_scripts.networks.names import Layer, diffusers_name, kohya_key, layer_of, lora_name, peft_key, sgm_name

DATA = Path(__file__).parent / "data"
KNOWN: dict[str, list[str]] = {
    version: [row[0] for row in rows]
    for version, rows in json.loads((DATA / "lora_modules.json").read_text(encoding="utf-8")).items()
} | {"sdxl": json.loads((DATA / "lora_names_sdxl.json").read_text(encoding="utf-8"))}
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_Q = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_every_known_name_goes_there_and_back(version: str) -> None:
    sdxl = version == "sdxl"
    layers = [layer_of(name) for name in KNOWN[version]]
    assert None not in layers and len(set(layers)) == len(KNOWN[version])
    assert [layer and lora_name(layer, sdxl) for layer in layers] == KNOWN[version]
    for tensor in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "hada_w1_a", "diff_b", "a1.weight"):
        keys = [f"{name}.{tensor}" for name in KNOWN[version]]
        there = [peft_key(key) for key in keys]
        assert len(set(there)) == len(keys)
        assert [key and kohya_key(key, sdxl) for key in there] == keys
        assert [key and kohya_key(f"base_model.model.{key}", sdxl) for key in there] == keys


def test_sdxl_blocks_have_two_spellings() -> None:
    unet = [name for name in KNOWN["sdxl"] if name.startswith("lora_unet_")]
    other = [diffusers_name(name) for name in unet]
    assert not set(unet) & set(other) and len(set(other)) == len(unet)
    assert [sgm_name(name) for name in other] == unet
    assert [layer_of(name) for name in other] == [layer_of(name) for name in unet]
    assert [sgm_name(name) for name in unet] == unet
    text = [name for name in KNOWN["sdxl"] if not name.startswith("lora_unet_")]
    assert [diffusers_name(name) for name in text] == text
    assert diffusers_name("oft_unet_input_blocks_4_1_proj_in") == "oft_unet_down_blocks_1_attentions_0_proj_in"
    assert lora_name(Layer("unet", Q), True, sgm=False) == f"lora_unet_{Q.replace('.', '_')}"


@pytest.mark.parametrize(
    "version, path",
    [
        ("input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        (
            "middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        ),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
        ("label_emb_0_2", "add_embedding.linear_2"),
        ("out_2", "conv_out"),
    ],
)
def test_sdxl_places_are_the_right_ones(version: str, path: str) -> None:
    assert layer_of(f"lora_unet_{version}") == Layer("unet", path)


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_paths_are_those_of_the_models(version: str) -> None:
    model = build_tiny(version, shallow=version == "sdxl")
    paths = {name for name, layer in model.unet.named_modules() if getattr(layer, "weight", None) is not None}
    assert paths <= set(names.unet_layers("sdxl" if version == "sdxl" else "sd1").values())
    for encoder in model.text_encoders:
        paths = {name for name, layer in encoder.named_modules() if getattr(layer, "weight", None) is not None}
        known = set(names.text_layers())
        assert {path for path in paths if path not in known and f"text_model.{path}" not in known} == set()


@pytest.mark.parametrize(
    "key, expected",
    [
        (f"unet.{Q}.lora_A.weight", f"lora_unet_{Q}.lora_down.weight"),
        (f"base_model.model.{Q}.lora_B.weight", f"lora_unet_{Q}.lora_up.weight"),
        (f"unet.base_model.model.{Q}.lora_A.default.weight", f"lora_unet_{Q}.lora_down.weight"),
        (f"unet.{Q}.lora.down.weight", f"lora_unet_{Q}.lora_down.weight"),
        (f"unet.{Q.replace('attn1', 'attn1.processor')}_lora.up.weight", f"lora_unet_{Q}.lora_up.weight"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            f"lora_unet_{Q.replace('to_q', 'to_out_0')}.lora_down.weight",
        ),
        (f"unet.{Q}.lora_magnitude_vector", f"lora_unet_{Q}.dora_scale"),
        (f"unet.{Q}.lora_magnitude_vector.default.weight", f"lora_unet_{Q}.dora_scale"),
        (f"unet.{Q}.alpha", f"lora_unet_{Q}.alpha"),
        (f"unet.{Q}.lokr_w2", f"lora_unet_{Q}.lokr_w2"),
        (f"text_encoder.{TEXT_Q}.lora_linear_layer.up.weight", f"lora_te_{TEXT_Q}.lora_up.weight"),
        (
            f"text_encoder.{TEXT_Q.replace('q_proj', 'to_v_lora')}.up.weight",
            f"lora_te_{TEXT_Q[:-6]}v_proj.lora_up.weight",
        ),
        (f"text_encoder.{TEXT_Q.removeprefix('text_model.')}.lora_A.weight", f"lora_te_{TEXT_Q}.lora_down.weight"),
        (f"base_model.model.{TEXT_Q}.lora_A.weight", f"lora_te_{TEXT_Q}.lora_down.weight"),
        (f"text_encoder_2.{TEXT_Q}.lora_A.weight", f"lora_te2_{TEXT_Q}.lora_down.weight"),
    ],
)
def test_every_spelling_of_diffusers_is_read(key: str, expected: str) -> None:
    name, _, tensor = expected.partition(".lora_") if ".lora_" in expected else expected.rpartition(".")
    flat = name.replace(".", "_")
    assert kohya_key(key, sdxl=False) == flat + expected[len(name) :], tensor


@pytest.mark.parametrize(
    "key",
    [
        "unet.down_blocks.9.resnets.0.conv1.lora_A.weight",
        f"transformer.{Q}.lora_A.weight",
        f"unet.{Q}",
        f"unet.{Q}.lora.sideways.weight",
        f"unet.{Q}.lora_B.bias",
        "lora_unet_down_blocks_1.lora_down.weight",
        "",
    ],
)
def test_other_names_are_not_guessed_at(key: str) -> None:
    assert kohya_key(key, sdxl=True) is None


def test_unknown_modules_have_no_layer() -> None:
    assert layer_of("lora_unet_down_blocks_9_resnets_0_conv1") is None
    assert layer_of("lora_transformer_x") is None and peft_key("bundle_emb.string_to_param") is None
    assert lora_name(Layer("unet", "nowhere"), True) is None
    assert sgm_name("other") == diffusers_name("other") == "other"
