"""Flags that only some trainers have, each in a run that looks different without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from all_trainers import draw_all, options_of
from effects import shows
from runs import Finished, train_here
from safetensors.torch import load_file

from sd_scripts.families.sdxl import StableDiffusionXL

TEXT_CACHING = ["sdxl_train_network", "sdxl_train", "sdxl_train_control_net_lllite"]


@pytest.fixture(scope="module")
def pictures(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_all(thumbs, tmp_path_factory.mktemp("pictures"))


def run(command: str, model: Path, pictures: Path, out: Path, **more: Any) -> Finished:
    folder, options = options_of(command, pictures, max_train_steps=1, **more)
    return train_here(model, folder, out, command, **options)


@shows("use_safetensors", "learning_rate", "learning_rate_te", "no_token_padding", "save_precision", by=("full",))
def test_train_db(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    plain = run("train_db", tiny_sd1, pictures, tmp_path / "plain", save_model_as=None)
    other = run(
        "train_db",
        tiny_sd1,
        pictures,
        tmp_path / "other",
        save_model_as=None,
        use_safetensors=True,
        learning_rate=1e-5,
        learning_rate_te=2e-5,
        no_token_padding=True,
        save_precision="fp16",
    )
    assert (plain.code, other.code) == (0, 0)
    # U-Net and text encoder share a group and its rate unless told otherwise
    assert [finished.of("start")[0]["trains"] for finished in (plain, other)] == [
        {"unet": 1e-4},
        {"unet": 1e-5, "text_encoder1": 2e-5},
    ]
    assert other.losses[0] != pytest.approx(plain.losses[0], rel=1e-4), "filling reaches the U-Net"
    names = {finished.out.name: {path.name for path in (finished.out / "small" / "unet").iterdir()}
             for finished in (plain, other)}  # fmt: skip
    assert names == {
        "plain": {"config.json", "diffusion_pytorch_model.bin"},
        "other": {"config.json", "diffusion_pytorch_model.safetensors"},
    }
    saved = load_file(other.out / "small" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}


@shows("train_text_encoder", "learning_rate_te", by=("full",))
def test_fine_tune(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    options = {"train_text_encoder": True, "learning_rate_te": 2e-5}
    finished = run("fine_tune", tiny_sd1, pictures, tmp_path / "text", **options)
    assert finished.of("start")[0]["trains"] == {"unet": 1e-4, "text_encoder1": 2e-5}
    alone = run("fine_tune", tiny_sd1, pictures, tmp_path / "alone")
    before, after = (load_file(path / "small.safetensors") for path in (alone.out, finished.out))
    name = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert float((after[name] - before[name]).abs().max()) == pytest.approx(2e-5, rel=0.05), "AdamW's first step"


@shows("diffusers_xformers", by=("full",))
def test_the_old_switch_of_xformers(
    tiny_sd1: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    missing = run("fine_tune", tiny_sd1, pictures, tmp_path / "out", diffusers_xformers=True)
    assert missing.code == 2 and missing.error["key"] == "xformers"


@shows("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", by=("network", "full", "lllite"))
@pytest.mark.parametrize("command", TEXT_CACHING)
def test_captions_are_encoded_once(
    command: str, tiny_sdxl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    encoded: list[list[str]] = []
    original = StableDiffusionXL.encode_captions

    def counted(self: StableDiffusionXL, model: Any, captions: list[str], **more: Any) -> Any:
        encoded.append(captions)
        return original(self, model, captions, **more)

    monkeypatch.setattr(StableDiffusionXL, "encode_captions", counted)
    options = {"network_train_unet_only": True} if command == "sdxl_train_network" else {}
    fresh = run(command, tiny_sdxl, copy, tmp_path / "fresh", **options)
    assert len(encoded) == 1
    encoded.clear()
    cached = run(command, tiny_sdxl, copy, tmp_path / "cached", cache_text_encoder_outputs=True, **options)
    assert encoded == []
    assert list(copy.rglob("*_te_outputs.npz")) == []
    kept = run(command, tiny_sdxl, copy, tmp_path / "kept", cache_text_encoder_outputs_to_disk=True, **options)
    assert encoded == []
    assert len(list(copy.rglob("*_te_outputs.npz"))) == 4
    assert cached.losses == pytest.approx(fresh.losses, rel=1e-5)
    assert kept.losses == pytest.approx(fresh.losses, rel=1e-5)
