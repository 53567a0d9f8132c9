"""Names and numbers of the layouts' conversion against those of sd-scripts, on full-size names and small tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sd_scripts.models import convert, keymap
from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_projected_text_encoder, make_unet, make_vae
from sd_scripts.models.loading import load_sdxl
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.unetnames import UNET_SHAPES

DATA = json.loads((Path(__file__).parent / "data" / "conversion.json").read_text(encoding="utf-8"))
PREFIX = {"sdxl_te2": "conditioner.embedders.1.model.", "sd2": "cond_stage_model.model."}


def check_names(original: dict[str, Tensor], weights: dict[str, Tensor], want: dict[str, Any]) -> None:
    """Every listed name must have become the listed one; a reshaped tensor is listed with both shapes."""
    assert len(original) == len(weights) == want["total"]
    places = {id(value): name for name, value in original.items()}
    for name, target in want["names"].items():
        if isinstance(target, dict):
            assert list(weights[name].shape) == target["shape_from"]
            assert list(original[target["to"]].shape) == target["shape_to"]
        else:
            assert places[id(weights[name])] == target


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd2_linear_projection", "sdxl"])
def test_unet_names_of_full_size(family: str) -> None:
    version = family.partition("_")[0]
    config = model_config(version)["unet"]
    if version == "sd2":
        config["use_linear_projection"] = family != "sd2"
    with torch.device("meta"):
        weights = make_unet(config).state_dict()
    shape = UNET_SHAPES[version]
    fitted = convert.fit_projections(weights, linear=True) if version == "sd2" else weights
    original = convert.unet_to_original(fitted, shape)
    check_names(original, weights, DATA["unet"][family])
    back = convert.unet_from_original(original, shape)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in fitted.items()}


def test_vae_names_of_full_size() -> None:
    with torch.device("meta"):
        weights = make_vae(model_config("sdxl")["vae"]).state_dict()
    original = convert.vae_to_original(weights)
    check_names(original, weights, DATA["vae"]["all"])
    attention = {name: value for name, value in weights.items() if ".attentions." in name}
    check_names(convert.vae_to_original(attention), attention, DATA["vae"]["attention"])
    assert {n: v.shape for n, v in convert.vae_from_original(original).items()} == {
        n: v.shape for n, v in weights.items()
    }


def drawn(lines: list[str]) -> dict[str, Tensor]:
    """Tensors drawn one after the other as the list says: `name: torch.randn(3, 4)`."""
    torch.manual_seed(0)
    found = {}
    for line in lines:
        name, _, call = line.partition(": torch.randn")
        sizes = [int(number) for number in call.strip("()").split(",") if number.strip()]
        found[name] = torch.randn(*sizes) if sizes else torch.randn(())
    return found


@pytest.mark.parametrize("family", ["sdxl_te2", "sd2"])
def test_openclip_numbers(family: str) -> None:
    case = DATA["text"][family]
    source = convert.with_prefix(drawn(case["tensors"]), PREFIX[family])
    if family == "sdxl_te2":
        got = convert.projected_from_openclip(source, 32)
        # sd-scripts takes the matrix as it is; OpenCLIP multiplies by it from the right, and diffusers transposes.
        assert torch.equal(got["text_projection.weight"], source["text_projection"].T)
        back = convert.projected_to_openclip(got)
        assert float(source["logit_scale"]) == pytest.approx(case["logit_scale"])
        assert back.keys() == set(case["back_keys"]) - {"logit_scale"}
    else:
        got = convert.text_to_clip(convert.text_from_openclip(source, 23))
        back = convert.text_to_openclip(got)
        assert back.keys() == set(case["back_keys"])
    assert got.keys() == set(case["keys"]) - {"text_model.embeddings.position_ids"}
    for name, values in case["values"].items():
        torch.testing.assert_close(got[f"text_model.{name}"].flatten(), torch.tensor(values), rtol=1e-6, atol=1e-8)
    assert float(got["text_model.encoder.layers.0.mlp.fc1.weight"].sum()) == pytest.approx(case["fc1_sum"], rel=1e-5)
    assert all(torch.equal(value, source[name]) for name, value in back.items())


def test_openclip_of_full_size() -> None:
    want = DATA["text"]["sdxl_te2 full size"]["out"]
    with torch.device("meta"):
        weights = make_projected_text_encoder(model_config("sdxl")["text_encoder_2"]).state_dict()
    original = convert.projected_to_openclip(weights)
    assert len(weights) == want["diffusers_keys"]
    # The temperature is no weight of the module; it is added when a whole model is saved.
    assert len(original) + 1 == want["original_keys"]
    assert list(original["transformer.resblocks.31.attn.in_proj_weight"].shape) == want["in_proj_shape"]


def test_position_numbers_are_dropped_and_other_names_not_taken() -> None:
    names = DATA["text"]["sd1"]["in"]["keys"]
    found = convert.with_prefix({name: torch.zeros(1) for name in names}, keymap.TEXT_PREFIXES["sd1"][0])
    assert list(convert.text_to_clip(convert.text_from_clip(found))) == DATA["text"]["sd1"]["out"]["keys"]


def test_what_a_file_without_a_source_file_gets() -> None:
    want = DATA["text"]["sd2 saved without a source checkpoint"]["out"]
    prefix = keymap.TEXT_PREFIXES["sd2"][0]
    layer = {f"{prefix}transformer.resblocks.{index}.ln_1.weight": torch.full((4,), float(index)) for index in (21, 22)}
    weights = {**layer, f"{prefix}positional_embedding": torch.zeros(77, 4), f"{prefix}ln_final.weight": torch.ones(4)}
    whole = weights | convert.text_ballast(weights, "sd2")
    assert set(want["keys"]) <= {name.removeprefix(prefix) for name in whole}
    assert torch.equal(whole[f"{prefix}transformer.resblocks.23.ln_1.weight"], torch.full((4,), 22.0))
    assert torch.equal(whole[f"{prefix}text_projection"], torch.ones(4, 4))


@torch.no_grad()
def test_pooled_text_is_what_openclip_computes(tiny_sdxl_file: Path) -> None:
    """OpenCLIP multiplies the state at the end mark by the file's matrix from the right."""
    matrix = load_file(tiny_sdxl_file)[f"{PREFIX['sdxl_te2']}text_projection"]
    model = load_sdxl(ModelOptions(pretrained_model_name_or_path=str(tiny_sdxl_file)), torch.float32)
    ids = model.tokenizers[1](["a cup of coffee"], padding="max_length", return_tensors="pt").input_ids
    found = model.text_encoders[1](ids)
    state = found.last_hidden_state[0, ids[0].tolist().index(49407)]
    torch.testing.assert_close(found.text_embeds[0], state @ matrix, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.text_embeds[0], matrix @ state, rtol=1e-2)
