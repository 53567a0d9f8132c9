"""LyCORIS on small models: every algorithm trains under kohya's names and comes back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from network_kit import FAMILY, attached, method, model, output, pipeline, train, trained_file
from safetensors import safe_open
from safetensors.torch import load_file

from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.networks.hashes import network_hashes
from sd_scripts.networks.plugin import load_plugin
from sd_scripts.schema.errors import UserError

lycoris = pytest.importorskip("lycoris.kohya")

# algo -> preset; ia3 has one of its own.
ALGORITHMS = {
    "lora": "full",
    "locon": "full",
    "loha": "full",
    "lokr": "full",
    "ia3": "ia3",
    "dylora": "full",
    "glora": "full",
    "diag-oft": "full",
    "boft": "full",
    "tlora": "attn-only",
    "full": "attn-mlp",
}
# The four that people use most run always, the others with the slow tests.
ALWAYS = ("locon", "loha", "lokr", "ia3")
EACH_ALGORITHM = [pytest.param(algo, marks=() if algo in ALWAYS else pytest.mark.slow) for algo in ALGORITHMS]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def options(algo: str, *more: str, dim: int = 8, alpha: float = 2.0) -> dict[str, Any]:
    return {
        "network_module": "lycoris.kohya",
        "network_dim": dim,
        "network_alpha": alpha,
        "network_args": [f"algo={algo}", f"preset={ALGORITHMS.get(algo, 'full')}", *more],
    }


@pytest.mark.parametrize("algo", EACH_ALGORITHM)
def test_an_algorithm_trains_saves_and_comes_back(algo: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = model(shallow=True)
    plain = output(base)
    made = attached(base, rate=5e-3, **options(algo))
    torch.testing.assert_close(output(base), plain, rtol=1e-4, atol=1e-4)
    losses = train(base, made, steps=2)
    assert losses[-1] < losses[0]
    path = tmp_path / "x.safetensors"
    made.save(path, None, {"ss_v2": "False"})
    made.module.eval()
    wanted = output(base)
    assert (wanted - plain).abs().max() > 1e-3

    weights = load_file(path)
    names = {key.split(".")[0] for key in weights}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k" in names
    assert algo == "ia3" or "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names
    with safe_open(str(path), framework="pt") as handle:
        notes = handle.metadata()
    assert (notes["sshs_model_hash"], notes["sshs_legacy_hash"]) == network_hashes(weights, {"ss_v2": "False"})

    again = model(shallow=True)
    attached(again, **options(algo), network_weights=str(path)).module.eval()
    torch.testing.assert_close(output(again), wanted, rtol=1e-4, atol=1e-4)


def test_merging_counts_alpha_once(tmp_path: Path) -> None:
    trained, path = trained_file(tmp_path / "x.safetensors", rate=3e-2, steps=1, shallow=True, **options("loha"))
    wanted = output(trained)
    base = model(shallow=True)
    plain = output(base)
    method(**options("loha"), base_weights=[str(path)]).prepare_model(base, FAMILY, torch.float32)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(output(base), wanted, rtol=1e-4, atol=1e-5)


def test_diffusers_loads_locon_and_our_files_of_dylora(tmp_path: Path) -> None:
    few = {"locon": ["preset=full"], "dylora": ["preset=attn-only", "block_size=4"]}
    for algo, more in few.items():
        arguments = options(algo) | {"network_args": [f"algo={algo}", *more]}
        trained, path = trained_file(tmp_path / "x.safetensors", rate=3e-2, steps=1, shallow=True, **arguments)
        foreign = model(shallow=True)
        plain = output(foreign)
        pipeline(foreign).load_lora_weights(str(path))
        wanted = output(trained)
        assert (wanted - plain).abs().max() > 1e-2
        assert (output(foreign) - wanted).abs().max() < 1e-5


def test_a_preset_does_not_stick_to_the_process() -> None:
    kept = dict(vars(lycoris.LycorisNetworkKohya)), dict(lycoris.network_module_dict)
    attached(model(shallow=True), **{**options("locon"), "network_args": ["algo=locon", "preset=attn-only"]})
    assert kept == (dict(vars(lycoris.LycorisNetworkKohya)), dict(lycoris.network_module_dict))


def test_groups_and_a_frozen_part() -> None:
    made = attached(model(shallow=True), rates={"unet_lr": 1e-3, "text_encoder_lr": [0.0]}, **options("locon"))
    groups = made.parameter_groups()
    assert [(group.name, group.lr) for group in groups] == [("unet", 1e-3)]
    assert not any(p.requires_grad for lora in made.module.text_encoder_loras for p in lora.parameters())
    plus = attached(model(shallow=True), rate=1e-3, **options("locon", "loraplus_lr_ratio=4"))
    assert {group.name: group.lr for group in plus.parameter_groups()} == {
        "textencoder": 1e-3,
        "textencoder plus": 4e-3,
        "unet": 1e-3,
        "unet plus": 4e-3,
    }


def test_norms_can_be_limited() -> None:
    base = model(shallow=True)
    made = attached(base, rate=1.0, **options("locon"), scale_weight_norms=0.05)
    train(base, made, steps=1)
    figures = made.after_step()
    assert figures is not None and figures["max_key_norm"] <= 0.051


def test_refusals_are_sentences(tmp_path: Path) -> None:
    base = model(shallow=True)
    with pytest.raises(UserError, match="no algo 'lorra'"):
        attached(base, **options("lorra"))
    with pytest.raises(UserError, match="neither a known preset nor a file"):
        attached(base, **{**options("locon"), "network_args": ["preset=nothing"]})
    with pytest.raises(UserError, match="conv_dim is 'many', which is no whole number"):
        attached(base, **options("locon", "conv_dim=many"))
    with pytest.raises(UserError, match="leaves DoRA out"):
        attached(base, **options("locon", "dora_wd=True", "bypass_mode=True"))
    with pytest.raises(UserError, match="LyCORIS refused.*impossible to decompose.*10 or more"):
        attached(base, **options("boft", dim=1))
    with pytest.raises(UserError, match="cannot train the convolutions"):
        attached(base, **{**options("tlora"), "network_args": ["algo=tlora", "preset=full"]})
    with pytest.raises(UserError, match="cannot limit its norms"):
        attached(base, **options("ia3"), scale_weight_norms=1.0)


def test_files_that_do_not_fit_are_told_apart(tmp_path: Path) -> None:
    _, path = trained_file(tmp_path / "x.safetensors", steps=0, shallow=True, **options("loha", dim=2))
    with pytest.raises(UserError, match="holds loha for .* but this network needs lora_down"):
        attached(model(shallow=True), **options("locon"), network_weights=str(path))
    with pytest.raises(UserError, match="does not fit this network at .* hada_w1_a"):
        attached(model(shallow=True), **options("loha", dim=4), network_weights=str(path))
    with pytest.raises(UserError, match="holds loha for .* but this network needs dora_scale"):
        attached(model(shallow=True), **options("loha", "dora_wd=True", dim=2), network_weights=str(path))


@pytest.mark.parametrize("more", [(), ("bypass_mode=True",)])
def test_an_8_bit_base_model_trains(more: tuple[str, ...]) -> None:
    base = model(shallow=True)
    store_in_fp8(base.unet)
    made = attached(base, rate=1e-2, **options("locon", *more))
    losses = train(base, made, steps=2)
    assert losses[-1] < losses[0]


def test_a_word_for_no_means_no() -> None:
    made = method(network_module="lycoris.kohya", network_args=["algo=lokr", "decompose_both=False"])
    assert json.loads(made.metadata()["ss_network_args"])["decompose_both"] == "False"
    attached_lokr = attached(model(shallow=True), **options("lokr", "decompose_both=False", "factor=2", dim=2))
    assert not any("lokr_w1_a" in name for name in attached_lokr.module.state_dict())


def test_foreign_modules_need_permission_and_missing_packages_are_named() -> None:
    with pytest.raises(UserError, match="none of the known ones.*allow_plugins"):
        load_plugin("somebody.network")
    with pytest.raises(UserError, match="cannot be imported"):
        load_plugin("somebody.network", allow_plugins=True)
    with pytest.raises(UserError, match="no function create_network"):
        load_plugin("json", allow_plugins=True)
