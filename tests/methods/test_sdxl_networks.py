"""Networks on SDXL: names, both text encoders' rates, LyCORIS, and a trained file in diffusers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from network_kit import XL_FAMILY, attached, model, output, train, trained_file
from safetensors.torch import load_file

from sd_scripts.families.base import Model
from sd_scripts.schema.model import ModelOptions

LYCORIS = {"network_module": "lycoris.kohya", "network_dim": 8, "network_alpha": 2.0}
# algo -> preset; what people use most runs always, the others with the slow tests. T-LoRA, which takes every layer
# apart before it starts, is tested on the smaller SD 1.
ALGORITHMS = {"locon": "full", "lokr": "full"}
SELDOM = {"lora": "full", "loha": "full", "ia3": "ia3", "dylora": "full", "glora": "full", "diag-oft": "full"}
SELDOM |= {"boft": "full", "full": "attn-mlp"}
EVERY = [*ALGORITHMS, *[pytest.param(algo, marks=pytest.mark.slow) for algo in SELDOM]]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def lycoris(algo: str, *more: str) -> dict[str, object]:
    preset = {**ALGORITHMS, **SELDOM}[algo]
    return LYCORIS | {"network_args": [f"algo={algo}", f"preset={preset}", *more]}


def deep() -> Model:
    """With all layers of the full-size model, where names and their number count."""
    return model("sdxl", shallow=False)


def _pipeline(base: Model) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        text_encoder_2=base.text_encoders[1],
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )


@pytest.mark.parametrize("convolutions", [False, True])
def test_diffusers_loads_a_trained_file_and_does_what_our_merge_does(tmp_path: Path, convolutions: bool) -> None:
    options = {"network_dim": 4, "network_alpha": 2.0, "network_args": ["conv_dim=2"] if convolutions else None}
    trained, path = trained_file(tmp_path / "x.safetensors", steps=3, version="sdxl", rate=3e-2, **options)
    with torch.no_grad():
        wanted = output(trained)
        merged = model("sdxl")
        plain = output(merged)
        attached(merged, network_dim=1, base_weights=[str(path)])
        assert (wanted - plain).abs().max() > 1e-2
        torch.testing.assert_close(output(merged), wanted, rtol=1e-4, atol=1e-5)

        foreign = model("sdxl")
        _pipeline(foreign).load_lora_weights(str(path))
        assert (output(foreign) - output(merged)).abs().max() < 1e-5

        states = [
            XL_FAMILY.text_outputs(base, ["a cat"], options=ModelOptions())[0]
            for base in (foreign, merged, model("sdxl"))
        ]
    for name, theirs in states[0].items():
        assert (theirs - states[1][name]).abs().max() < 1e-4
        assert (theirs - states[2][name]).abs().max() > 1e-3


def test_names_tell_the_encoders_apart_and_each_has_its_rate() -> None:
    base = model("sdxl")
    made = attached(base, rate=1e-3, rates={"unet_lr": 3e-4, "text_encoder_lr": [1e-4, 2e-4]}, network_dim=2)
    groups = made.parameter_groups()
    assert [(group.name, group.lr) for group in groups] == [
        ("textencoder1", 1e-4),
        ("textencoder2", 2e-4),
        ("unet", 3e-4),
    ]
    prefixes = {key.partition("_text_model_")[0] for key in made.module.state_dict() if "_text_model_" in key}
    assert prefixes == {"lora_te1", "lora_te2"}
    # One rate counts for both.
    made = attached(model("sdxl"), rates={"unet_lr": 3e-4, "text_encoder_lr": [1e-4]}, network_dim=2)
    assert [(group.name, group.lr) for group in made.parameter_groups()] == [("textencoder", 1e-4), ("unet", 3e-4)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({"network_train_unet_only": True}, {"unet"}), ({"network_train_text_encoder_only": True}, {"te1", "te2"})],
)
def test_only_one_part(options: dict[str, bool], wanted: set[str]) -> None:
    made = attached(model("sdxl"), network_dim=2, **options)
    assert {key.split("_")[1] for key in made.module.state_dict()} == wanted
    assert (made.trains_unet, made.trains_text_encoder) == ("unet" in wanted, "te1" in wanted)


def test_both_encoders_learn_also_under_checkpointing() -> None:
    changed = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        base = model("sdxl")
        if checkpointing:
            XL_FAMILY.use_gradient_checkpointing(base, text=True)
        made = attached(base, checkpointing=checkpointing, network_dim=2)
        losses = train(base, made, steps=2)
        assert losses[-1] < losses[0]
        state = made.module.state_dict()
        ups = [key for key in state if key.endswith("lora_up.weight")]
        # All but the last layer of the first encoder and what follows the second's pooled layers get gradients.
        idle = [key for key in ups if not state[key].any()]
        assert idle and all(key.startswith("lora_te1_text_model_encoder_layers_11_") for key in idle)
        changed.append(state)
    for key, value in changed[0].items():
        torch.testing.assert_close(changed[1][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algo", EVERY)
def test_lycoris_trains_saves_and_comes_back(algo: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = model("sdxl")
    with torch.no_grad():
        plain = output(base)
    made = attached(base, rate=5e-3, **lycoris(algo))
    losses = train(base, made, steps=2)
    assert losses[-1] < losses[0]
    path = tmp_path / "x.safetensors"
    made.save(path, None, None)
    made.module.eval()
    with torch.no_grad():
        wanted = output(base)
    assert (wanted - plain).abs().max() > 1e-3
    names = {key.split(".")[0] for key in load_file(path)}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k" in names
    assert algo == "ia3" or {"te1", "te2", "unet"} == {name.split("_")[1] for name in names}
    again = model("sdxl")
    attached(again, **lycoris(algo), network_weights=str(path)).module.eval()
    with torch.no_grad():
        torch.testing.assert_close(output(again), wanted, rtol=1e-4, atol=1e-4)


def test_lycoris_finds_the_modules_of_the_original() -> None:
    """Preset full is what networks.lora does with convolutions, attn-mlp what it does without."""
    own = {
        kind: {lora.lora_name for lora in attached(deep(), network_dim=1, network_args=more).module.loras}
        for kind, more in (("full", ["conv_dim=1"]), ("attn-mlp", None))
    }
    for preset, wanted in own.items():
        network = attached(deep(), **LYCORIS | {"network_args": ["algo=locon", f"preset={preset}"]}).module
        names = {lora.lora_name for lora in [*network.text_encoder_loras, *network.unet_loras]}
        unet = {name for name in names if name.startswith("lora_unet_")}
        assert unet == {name for name in wanted if name.startswith("lora_unet_")}, preset
        assert len(unet) == {"full": 788, "attn-mlp": 722}[preset]
        assert names - unet == {name for name in wanted if not name.startswith("lora_unet_")}
