"""Training a network on a small real model: what learns, what stays, what is in the file and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_kit import FAMILY, attached, method, model, output, train, trained_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.schema.errors import UserError

LORA = {"network_module": "networks.lora", "network_dim": 4, "network_alpha": 2.0}


def gradients(made: Any) -> dict[str, bool]:
    return {name: parameter.grad is not None for name, parameter in made.module.named_parameters()}


@pytest.mark.parametrize(
    ("options", "unet", "text_encoder"),
    [
        ({}, True, True),
        ({"network_train_unet_only": True}, True, False),
        ({"network_train_text_encoder_only": True}, False, True),
    ],
)
def test_what_is_chosen_learns_and_nothing_else(options: dict[str, bool], unet: bool, text_encoder: bool) -> None:
    base = model()
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    made = attached(base, rate=3e-2, **LORA, **options)
    assert (made.trains_unet, made.trains_text_encoder) == (unet, text_encoder)
    losses = train(base, made, steps=4)
    assert losses[-1] < losses[0] * 0.97
    names = list(made.module.state_dict())
    assert any(name.startswith("lora_unet_") for name in names) == unet
    assert any(name.startswith("lora_te_") for name in names) == text_encoder
    assert all(not parameter.requires_grad for parameter in base.unet.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


def test_a_new_network_changes_nothing() -> None:
    base = model()
    before = output(base)
    attached(base, **LORA, network_args=["conv_dim=2"])
    torch.testing.assert_close(output(base), before, rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        base = model()
        if checkpointing:
            base.unet.enable_gradient_checkpointing()
            base.text_encoders[0].gradient_checkpointing_enable()
        torch.manual_seed(0)
        made = attached(base, checkpointing=checkpointing, **LORA, network_dropout=0.2)
        made.parameter_groups()
        for lora in made.module.loras:
            torch.nn.init.normal_(lora.lora_up.weight, std=0.1)
        made.on_epoch_start()
        torch.manual_seed(1)
        output(base).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in made.module.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_a_rate_of_zero_keeps_the_part_but_does_not_train_it(tmp_path: Path) -> None:
    base = model()
    made = attached(base, rates={"text_encoder_lr": [0.0]}, **LORA)
    assert made.trains_unet and not made.trains_text_encoder
    assert [group.name for group in made.parameter_groups()] == ["unet"]
    train(base, made)
    ups = {name: value for name, value in made.module.state_dict().items() if name.endswith("lora_up.weight")}
    assert all(value.any() == name.startswith("lora_unet_") for name, value in ups.items())
    with pytest.raises(UserError, match="nothing would be trained"):
        attached(model(), rate=0.0, **LORA).parameter_groups()


def test_a_file_has_kohya_s_tensors_in_the_asked_precision_and_both_hashes(tmp_path: Path) -> None:
    _, path = trained_file(tmp_path / "x.safetensors", dtype=torch.float16, **LORA)
    with safe_open(str(path), framework="pt") as handle:
        notes = handle.metadata()
    assert set(notes) == {"ss_v2", "sshs_model_hash", "sshs_legacy_hash"}
    weights = load_file(path)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert weights[f"{name}.lora_down.weight"].shape == (4, 32)
    assert weights[f"{name}.lora_up.weight"].shape == (32, 4)
    assert weights[f"{name}.alpha"].shape == () and float(weights[f"{name}.alpha"]) == 2.0
    assert len(weights) == 3 * (72 + 192)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_going_on_from_a_file(tmp_path: Path, suffix: str) -> None:
    base, path = trained_file(tmp_path / f"x{suffix}", **LORA)
    wanted = output(base)
    again = model()
    attached(again, **LORA, network_weights=str(path)).module.eval()
    torch.testing.assert_close(output(again), wanted, rtol=1e-5, atol=1e-6)


def test_ranks_and_alphas_from_a_file(tmp_path: Path) -> None:
    arguments = ["conv_dim=2", "conv_alpha=3"]
    base, path = trained_file(tmp_path / "x.safetensors", **LORA, network_args=arguments)
    again = model()
    made = attached(again, network_dim=32, network_weights=str(path), dim_from_weights=True)
    sizes = {(lora.lora_dim, float(lora.alpha)) for lora in made.module.loras}
    assert sizes == {(4, 2.0), (2, 3.0)}
    torch.testing.assert_close(output(again), output(base), rtol=1e-5, atol=1e-6)
    assert train(again, made)


def test_a_file_of_another_rank_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, path = trained_file(tmp_path / "x.safetensors", steps=0, **LORA)
    with pytest.raises(UserError, match="has rank 4.*network has 8.*dim_from_weights"):
        attached(model(), network_dim=8, network_weights=str(path))
    with pytest.raises(UserError, match="needs network_weights"):
        method(dim_from_weights=True)
    with pytest.raises(UserError, match="does not exist"):
        attached(model(), network_weights=str(tmp_path / "none.safetensors"))
    other = tmp_path / "other.safetensors"
    save_file({"something": torch.zeros(2)}, str(other))
    with pytest.raises(UserError, match="no weight that fits"):
        attached(model(), network_weights=str(other))
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        attached(model(), network_weights=str(tmp_path / "torn.safetensors"))


@pytest.mark.parametrize("tensor", ["hada_w1_a", "lokr_w1", "lora_mid.weight"])
def test_what_plain_lora_would_apply_wrongly_is_refused(tmp_path: Path, tensor: str) -> None:
    path = foreign_file(tmp_path / "foreign.safetensors")
    save_file({**load_file(path), f"lora_unet_conv_in.{tensor}": torch.zeros(2)}, str(path))
    for options in ({"network_weights": str(path)}, {"base_weights": [str(path)]}):
        with pytest.raises(UserError, match="no plain LoRA.*lycoris.kohya"):
            attached(model(), **options)


def foreign_file(path: Path) -> Path:
    """A file as others write them: half precision, integer alpha, linear weights for a 1x1 convolution, no te."""
    torch.manual_seed(5)
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    projection = "lora_unet_mid_block_attentions_0_proj_in"
    convolution = "lora_unet_mid_block_resnets_0_conv1"
    save_file(
        {
            f"{query}.lora_down.weight": torch.randn(2, 96).half(),
            f"{query}.lora_up.weight": torch.randn(96, 2).half(),
            f"{query}.alpha": torch.tensor(1),
            f"{projection}.lora_down.weight": torch.randn(3, 96).bfloat16(),
            f"{projection}.lora_up.weight": torch.randn(96, 3).bfloat16(),
            f"{convolution}.lora_down.weight": torch.randn(2, 96, 3, 3).half(),
            f"{convolution}.lora_up.weight": torch.randn(96, 2, 1, 1).half(),
            f"{convolution}.alpha": torch.tensor(2.0),
        },
        str(path),
    )
    return path


def test_a_foreign_file_loads_and_means_what_it_says(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "foreign.safetensors")
    weights = {name: value.float() for name, value in load_file(path).items()}
    by_hand = model()
    middle = by_hand.unet.mid_block
    layers = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (
            middle.attentions[0].transformer_blocks[0].attn1.to_q,
            1 / 2,
        ),
        "lora_unet_mid_block_attentions_0_proj_in": (middle.attentions[0].proj_in, 1.0),
        "lora_unet_mid_block_resnets_0_conv1": (middle.resnets[0].conv1, 1.0),
    }
    for name, (layer, scale) in layers.items():
        product = weights[f"{name}.lora_up.weight"].flatten(1) @ weights[f"{name}.lora_down.weight"].flatten(1)
        layer.weight.data += product.view(layer.weight.shape) * scale
    wanted = output(by_hand)
    base = model()
    assert (output(base) - wanted).abs().max() > 1e-3
    attached(base, network_weights=str(path), dim_from_weights=True).module.eval()
    torch.testing.assert_close(output(base), wanted, rtol=1e-5, atol=1e-5)


def test_base_networks_are_merged_with_their_strengths(tmp_path: Path) -> None:
    trained, path = trained_file(tmp_path / "x.safetensors", **LORA)
    trained.unet.requires_grad_(False)
    full = output(trained)
    base = model()
    plain = output(base)
    attached(base, **LORA, base_weights=[str(path)])
    torch.testing.assert_close(output(base), full, rtol=1e-4, atol=1e-5)
    twice = model()
    attached(twice, **LORA, base_weights=[str(path), str(path)], base_weights_multiplier=[1.0, -1.0])
    torch.testing.assert_close(output(twice), plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="2 numbers for 1"):
        attached(model(), **LORA, base_weights=[str(path)], base_weights_multiplier=[1.0, 1.0])


def test_norms_are_limited_after_every_step() -> None:
    base = model()
    made = attached(base, rate=1.0, **LORA, scale_weight_norms=0.05)
    train(base, made, steps=1)
    figures = made.after_step()
    assert figures is not None and figures["max_key_norm"] <= 0.0501
    norms = [lora.delta(1.0).norm().item() for lora in made.module.loras]
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_an_8_bit_base_model_trains(tmp_path: Path) -> None:
    base = model()
    store_in_fp8(base.unet)
    made = attached(base, rate=3e-2, **LORA, network_args=["conv_dim=2"])
    losses = train(base, made, steps=3)
    assert losses[-1] < losses[0]
    assert base.unet.mid_block.resnets[0].conv1.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("half", [torch.bfloat16])
def test_half_precision_model_with_float32_network_under_autocast(half: torch.dtype) -> None:
    base = model()
    base.unet.to(half)
    base.text_encoders[0].to(half)
    made = method(3e-2, None, **LORA)
    made.attach(base, FAMILY, gradient_checkpointing=False, weight_dtype=half)
    with torch.autocast("cpu", half):
        losses = train(base, made, steps=3)
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in made.module.parameters()} == {torch.float32}


def test_samples_are_made_at_full_strength_without_dropout() -> None:
    base = model()
    made = attached(base, **LORA, network_dropout=0.5)
    made.parameter_groups()
    for lora in made.module.loras:
        torch.nn.init.normal_(lora.lora_up.weight, std=0.1)
    made.on_epoch_start()
    made.on_step_start(torch.tensor([0.0, 0.5]), 0)
    with made.evaluation():
        first, second = output(base), output(base)
    assert torch.equal(first, second)
    assert made.module.training
    made.module.eval()
    assert torch.equal(output(base), first)


def test_each_sample_of_a_batch_has_its_own_strength() -> None:
    base = model()
    plain = output(base)
    made = attached(base, **LORA)
    for lora in made.module.loras:
        torch.nn.init.normal_(lora.lora_up.weight, std=0.1)
    made.on_step_start(torch.tensor([0.0, 1.0]), 0)
    both = output(base)
    torch.testing.assert_close(both[0], plain[0], rtol=1e-4, atol=1e-5)
    assert (both[1] - plain[1]).abs().max() > 1e-3


def test_metadata_of_the_method() -> None:
    made = method(network_dim=8, network_alpha=4.0, network_args=["conv_dim=4", "conv_alpha=1"])
    notes = made.metadata()
    assert notes["ss_network_module"] == "networks.lora"
    assert (notes["ss_network_dim"], notes["ss_network_alpha"], notes["ss_network_dropout"]) == ("8", "4.0", "None")
    assert json.loads(notes["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "1", "dropout": None}
    assert "ss_network_args" not in method(network_dim=8).metadata()
    assert method(network_module="sd_scripts.networks.lora").metadata()["ss_network_module"] == "networks.lora"


def test_the_training_state_comes_back() -> None:
    made = attached(model(), **LORA)
    state = {key: value + 0.5 for key, value in made.module.state_dict().items()}
    made.module.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in made.module.state_dict().items())
