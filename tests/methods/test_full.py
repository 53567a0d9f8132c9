"""Full training: what trains at which rate, what is frozen, and that frozen parts are written as they were read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sd_scripts.families.base import Family, Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.methods.block_rates import block_groups, block_number
from sd_scripts.methods.full import FullMethod
from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_unet
from sd_scripts.models.view import unet_view
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.full import FullOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.values import parse_block_rates

CASES = json.loads((Path(__file__).parent / "data" / "block_rates.json").read_text(encoding="utf-8"))


def load(family: Family, path: Path, dtype: torch.dtype = torch.float32) -> Model:
    return family.load(ModelOptions(pretrained_model_name_or_path=str(path)), dtype, "cpu")


def method(rate: float = 1e-5, saving: dict[str, Any] | None = None, text: bool = False, **full: Any) -> FullMethod:
    form = SavingOptions(**{"save_model_as": None, **(saving or {})})
    return FullMethod(FullOptions(**full), OptimizerOptions(learning_rate=rate), form, trains_text=text)


def attached(made: FullMethod, family: Family, path: Path, weight_dtype: torch.dtype = torch.float32) -> Model:
    model = load(family, path)
    made.attach(model, family, gradient_checkpointing=False, weight_dtype=weight_dtype)
    return model


def groups(made: FullMethod) -> dict[str, tuple[int, float | None]]:
    return {group.name: (len(group.params), group.lr) for group in made.parameter_groups()}


def test_unet_and_text_encoder_share_a_group_unless_they_have_rates_of_their_own(tiny_sd1: Path) -> None:
    family = StableDiffusion()
    together = method(text=True)
    model = attached(together, family, tiny_sd1)
    unet, text = (len(list(part.parameters())) for part in (model.unet, model.text_encoders[0]))
    assert groups(together) == {"unet": (unet + text, 1e-5)}
    apart = method(text=True, learning_rate_te=2e-6)
    attached(apart, family, tiny_sd1)
    assert groups(apart) == {"unet": (unet, 1e-5), "text_encoder1": (text, 2e-6)}
    alone = method()
    model = attached(alone, family, tiny_sd1)
    assert groups(alone) == {"unet": (unet, 1e-5)}
    assert not any(parameter.requires_grad for parameter in model.text_encoders[0].parameters())
    assert not alone.trains_text_encoder


@pytest.mark.parametrize(
    ("full", "names"),
    [
        ({}, ["unet"]),
        ({"train_text_encoder": True}, ["unet", "text_encoder1", "text_encoder2"]),
        ({"train_text_encoder": True, "learning_rate_te1": 0.0}, ["unet", "text_encoder2"]),
        ({"train_text_encoder": True, "learning_rate_te2": 0.0}, ["unet", "text_encoder1"]),
    ],
)
def test_text_encoders_of_sdxl_train_by_their_rates(tiny_sdxl: Path, full: dict[str, Any], names: list[str]) -> None:
    made = method(**full)
    model = attached(made, StableDiffusionXL(), tiny_sdxl)
    assert list(groups(made)) == names
    for index, encoder in enumerate(model.text_encoders):
        trains = f"text_encoder{index + 1}" in names
        assert all(parameter.requires_grad == trains for parameter in encoder.parameters())


def test_a_unet_of_rate_0_rests(tiny_sdxl: Path) -> None:
    made = method(0.0, train_text_encoder=True, learning_rate_te1=1e-6, learning_rate_te2=0.0)
    attached(made, StableDiffusionXL(), tiny_sdxl)
    assert list(groups(made)) == ["text_encoder1"]
    assert not made.trains_unet
    with pytest.raises(UserError, match="Nothing would be trained"):
        attached(method(0.0), StableDiffusionXL(), tiny_sdxl)


def test_block_rates_reach_their_blocks(tiny_sdxl: Path) -> None:
    rates = [0.0 if number % 5 == 0 else number * 1e-6 for number in range(23)]
    made = method(block_lr=",".join(str(rate) for rate in rates))
    model = attached(made, StableDiffusionXL(), tiny_sdxl)
    found = groups(made)
    assert {name: rate for name, (_, rate) in found.items()} == {
        f"block{number}": pytest.approx(rate) for number, rate in enumerate(rates) if rate
    }
    assert {
        block_number(name) for name, parameter in unet_view(model.unet).named_parameters() if parameter.requires_grad
    } == {number for number, rate in enumerate(rates) if rate}


def test_parameters_fall_into_the_known_blocks() -> None:
    """Tensors and numbers of each of the 23 groups of the full-size U-Net, as sd-scripts makes them."""
    with torch.device("meta"):
        unet = make_unet(model_config("sdxl")["unet"])
    made = block_groups(unet_view(unet), CASES["rates"])
    assert [len(group.params) for group in made] == CASES["tensors"]
    assert [sum(param.numel() for param in group.params) for group in made] == CASES["numbers"]
    assert [group.lr for group in made] == CASES["rates"]
    assert {name: block_number(name) for name in CASES["blocks"]} == CASES["blocks"]


@pytest.mark.parametrize("text", ["1,2,3", "a," + ",".join(["1"] * 22), "-1," + ",".join(["1"] * 22)])
def test_bad_block_rates(text: str) -> None:
    with pytest.raises(UserError, match="block_lr"):
        parse_block_rates(text)


def test_the_text_encoder_stops_learning_after_its_steps(tiny_sd1: Path) -> None:
    made = method(text=True, stop_text_encoder_training=3)
    model = attached(made, StableDiffusion(), tiny_sd1)
    made.on_epoch_start()
    for step, trains in ((0, True), (2, True), (3, False), (4, False)):
        made.on_step_start(None, step)
        assert made.trains_text_encoder == trains
        assert next(model.text_encoders[0].parameters()).requires_grad == trains
    made.on_epoch_start()
    assert not model.text_encoders[0].training
    assert model.unet.training


def test_minus_one_leaves_the_text_encoder_out(tiny_sd1: Path) -> None:
    made = method(text=True, stop_text_encoder_training=-1)
    attached(made, StableDiffusion(), tiny_sd1)
    assert list(groups(made)) == ["unet"]
    assert not made.trains_text_encoder


@pytest.mark.parametrize(
    ("single", "options", "safe", "expected"),
    [
        (False, {}, False, "diffusers"),
        (False, {}, True, "diffusers_safetensors"),
        (True, {}, False, "ckpt"),
        (True, {}, True, "safetensors"),
        (True, {"save_model_as": "diffusers"}, True, "diffusers"),
        (False, {"save_model_as": "safetensors"}, False, "safetensors"),
    ],
)
def test_the_result_has_the_form_of_the_source_unless_asked_for_another(
    tiny_sd1: Path, tiny_sd1_file: Path, single: bool, options: dict[str, Any], safe: bool, expected: str
) -> None:
    made = method(saving=options, use_safetensors=safe)
    attached(made, StableDiffusion(), tiny_sd1_file if single else tiny_sd1)
    assert made.file_format == expected


def test_frozen_parts_compute_low_and_are_written_as_read(tiny_sd1: Path, tmp_path: Path) -> None:
    made = method(saving={"save_model_as": "safetensors"})
    family = StableDiffusion()
    before = load(family, tiny_sd1)
    model = attached(made, family, tiny_sd1, torch.bfloat16)
    assert model.text_encoders[0].dtype == torch.bfloat16
    assert model.unet.dtype == torch.float32
    made.save(tmp_path / "whole.safetensors", None, None)
    assert model.text_encoders[0].dtype == torch.bfloat16, "afterwards it computes as before"
    again = load(family, tmp_path / "whole.safetensors")
    for one, two in ((before.text_encoders[0], again.text_encoders[0]), (before.vae, again.vae)):
        state = two.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in load_file(
        tmp_path / "whole.safetensors"
    )


def test_no_token_padding_goes_with_short_captions_only() -> None:
    with pytest.raises(UserError, match="no_token_padding"):
        FullMethod(
            FullOptions(no_token_padding=True),
            OptimizerOptions(),
            SavingOptions(),
            trains_text=True,
            max_token_length=150,
        )


def test_captions_without_filling(tiny_sd1: Path) -> None:
    family, options = StableDiffusion(), ModelOptions()
    made = method(text=True, no_token_padding=True)
    model = attached(made, family, tiny_sd1)
    captions = ["a dog", "a dog in the garden"]
    short = family.encode_captions(model, captions, options=options).hidden
    assert short.shape[1] == 7  # begin mark, five words, end mark
    model.extras["token_padding"] = True
    filled = family.encode_captions(model, captions, options=options).hidden
    assert torch.allclose(filled[:, :4], short[:, :4], atol=1e-5)
