"""DoRA, rsLoRA and PiSSA on small models: trained, saved, read again, merged, and applied by other programs."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from network_kit import attached, family_of, model, output, train
from safetensors.torch import load_file

from sd_scripts.families.base import Model
from sd_scripts.networks.plugin import as_plugged
from sd_scripts.schema.errors import UserError

KINDS: dict[str, list[str]] = {
    "dora": ["dora_wd=True"],
    "rs": ["rs_lora=True"],
    "pissa": ["init_lora_weights=pissa"],
    "all": ["dora_wd=True", "rs_lora=True", "init_lora_weights=pissa"],
}
SIZE = {"network_dim": 4, "network_alpha": 2.0}


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def options(kind: str, *more: str) -> dict[str, Any]:
    return {**SIZE, "network_args": [*KINDS[kind], *more]}


def trained(kind: str, version: str, path: Path, *more: str, **others: Any) -> Model:
    """A small model with the trained network in it; the network's file is written."""
    torch.manual_seed(0)
    base = model(version)
    with torch.no_grad():
        plain = output(base)
    made = attached(base, rate=5e-3, **options(kind, *more), **others)
    with torch.no_grad():
        assert torch.equal(output(base), plain), "it starts as the base model"
    losses = train(base, made, steps=2)
    assert losses[-1] < losses[0]
    made.save(path, None, made.metadata())
    made.module.eval()
    return base


def through_diffusers(base: Model, path: Path) -> None:
    parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": DDIMScheduler()}
    for place, (encoder, tokenizer) in enumerate(zip(base.text_encoders, base.tokenizers, strict=True)):
        ending = f"_{place + 1}" if place else ""
        parts |= {f"text_encoder{ending}": encoder, f"tokenizer{ending}": tokenizer}
    if base.version == "sdxl":
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.load_lora_weights(str(path))


def through_lycoris(base: Model, path: Path) -> None:
    """By LyCORIS' own loader, without anything of ours in between."""
    views = family_of(base).views(base)
    encoders = as_plugged(views.text_encoders)
    kohya = importlib.import_module("lycoris.kohya")
    network, weights = kohya.create_network_from_weights(1.0, str(path), None, encoders, views.unet)
    network.merge_to(encoders, views.unet, weights, None, None)


SELDOM = [("rs", "sd1"), ("pissa", "sd1"), ("dora", "sdxl"), ("all", "sdxl")]
EVERY = [("dora", "sd1"), ("pissa", "sdxl"), *[pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM]]


@pytest.mark.parametrize(("kind", "version"), EVERY)
def test_trained_saved_and_applied_again(kind: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    base = trained(kind, version, path, "conv_dim=2", "conv_alpha=1", "loraplus_lr_ratio=4")
    with torch.no_grad():
        wanted, plain = output(base), output(model(version))
        assert (wanted - plain).abs().max() > 1e-2
        close = {"rtol": 1e-4, "atol": 1e-4 * float((wanted - plain).abs().max())}

        again = model(version)
        made = attached(again, **options(kind, "conv_dim=2", "conv_alpha=1"), network_weights=str(path))
        made.module.eval()
        torch.testing.assert_close(output(again), wanted, **close)
        made.module.remove()
        assert torch.equal(output(again), plain)

        merged = model(version)
        attached(merged, network_dim=1, base_weights=[str(path)])
        torch.testing.assert_close(output(merged), wanted, **close)

        foreign = model(version)
        if kind in ("dora", "all"):
            through_lycoris(foreign, path)
        else:
            through_diffusers(foreign, path)
        torch.testing.assert_close(output(foreign), wanted, **close)


def test_checkpointing_computes_the_same() -> None:
    states = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        base = model("sd1")
        if checkpointing:
            family_of(base).use_gradient_checkpointing(base, text=False)
        made = attached(base, checkpointing=checkpointing, **options("all"), network_train_unet_only=True)
        train(base, made, steps=1)
        states.append(made.module.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-5)


def test_pissa_has_no_norms_to_limit_and_the_notes_say_how_it_was_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot limit its norms") as refused:
        attached(model("sd1"), **options("pissa"), scale_weight_norms=1.0)
    assert refused.value.key == "scale_weight_norms"
    made = attached(model("sd1"), **options("all"), network_train_unet_only=True)
    assert made.metadata()["ss_network_dim"] == "4"
    assert '"init_lora_weights": "pissa"' in made.metadata()["ss_network_args"]
    made.save(tmp_path / "x.safetensors", torch.float16, None)
    tensors = load_file(tmp_path / "x.safetensors")
    assert {value.shape[0] for key, value in tensors.items() if key.endswith("lora_down.weight")} == {8}


def test_blocks_have_their_own_ranks() -> None:
    dims = ",".join(["0"] * 12 + ["2"] + ["3"] * 12)
    made = attached(model("sd1"), **options("all", f"block_dims={dims}"), network_train_unet_only=True)
    ranks = {lora.lora_dim for lora in made.module.loras}
    assert ranks == {2, 3}
    for lora in made.module.loras:
        assert float(lora.alpha) / lora.lora_dim == pytest.approx(2.0 / lora.lora_dim**0.5)
