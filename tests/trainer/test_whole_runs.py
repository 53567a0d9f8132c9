"""Runs as people make them: other models and file forms, several data sets, LyCORIS, a compiled model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from effects import SMALL, Probe, metadata, result
from runs import SCRIPT, arguments, events_of, launch_environment
from safetensors.torch import load_file


def test_v_prediction_of_sd2(probe: Probe) -> None:
    run = probe.trained("sd2_v", v2=True, v_parameterization=True, max_train_steps=2, network_train_unet_only=None)
    assert run.of("warn") == []
    notes = metadata(result(run))
    assert (notes["ss_v2"], notes["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert notes["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert notes["modelspec.prediction_type"] == "v"
    known = probe.trained("sd2_v", max_train_steps=2, network_train_unet_only=None)
    assert known.losses == run.losses, "the model itself says what it predicts"


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_single_file_trains_as_its_folder(
    probe: Probe, tiny_sd1_file: Path, tiny_sd2_file: Path, version: str
) -> None:
    file = {"sd1": tiny_sd1_file, "sd2": tiny_sd2_file}[version]
    assert probe.trained(file).losses == pytest.approx(probe.base(version).losses, rel=1e-4)


def test_a_pickled_single_file_and_a_vae_file(probe: Probe, tiny_sd1_file: Path, tmp_path: Path) -> None:
    weights = load_file(str(tiny_sd1_file))
    torch.save({"state_dict": weights}, tmp_path / "old.ckpt")
    assert probe.trained(tmp_path / "old.ckpt").losses == probe.trained(tiny_sd1_file).losses
    vae = {
        name.removeprefix("first_stage_model."): value
        for name, value in weights.items()
        if name.startswith("first_stage_model.")
    }
    torch.save({"state_dict": vae}, tmp_path / "vae.pt")
    assert probe.trained(vae=tmp_path / "vae.pt").losses == pytest.approx(probe.base().losses, rel=1e-4)


def test_several_data_sets_with_strengths_of_their_own(probe: Probe, thumbs: Path, tmp_path: Path) -> None:
    for name in ("own", "regular"):
        shutil.copytree(thumbs / "2_photo", tmp_path / name)
    folder, own, regular = (
        json.dumps(str(path)) for path in (thumbs / "2_photo", tmp_path / "own", tmp_path / "regular")
    )
    file = tmp_path / "data sets.toml"
    file.write_text(
        f"""
[general]
caption_extension = ".txt"
shuffle_caption = true

[[datasets]]
resolution = 64
batch_size = 2
  [[datasets.subsets]]
  image_dir = {folder}
  num_repeats = 1

[[datasets]]
resolution = [64, 128]
enable_bucket = false
batch_size = 1
network_multiplier = 0.5
  [[datasets.subsets]]
  image_dir = {regular}
  is_reg = true
  [[datasets.subsets]]
  image_dir = {own}
  num_repeats = 2
"""
    )
    run = probe.trained(train_data_dir=None, dataset_config=file, max_train_epochs=1)
    start = run.of("start")[0]
    # 4 once; 4 twice and as many regularisation pictures: 2 batches of two and 16 of one
    assert start["total_steps"] == 18
    assert sum(bucket["count"] for bucket in start["buckets"]) == start["repeats_images"]
    assert sorted({tuple(bucket["size"]) for bucket in start["buckets"]}) == [(64, 64), (64, 128)]
    sets = json.loads(metadata(result(run))["ss_datasets"])
    assert [entry["batch_size_per_device"] for entry in sets] == [2, 1]


def in_own_process(model: Path, data: Path, out: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return forked.run(SCRIPT, arguments(model, data, out, **options), out.parent, environment=launch_environment())


LYCORIS = {"network_train_unet_only": None, "network_module": "lycoris.kohya", "network_alpha": 2, "max_train_steps": 3}


@pytest.mark.slow
def test_lycoris_trains_from_the_command_line(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["algo=loha", "preset=attn-mlp", "conv_dim=2", "conv_alpha=1"]
    ended = in_own_process(tiny_sd1, thumbs, out, **{**SMALL, **LYCORIS, "network_args": args, "save_state": True})
    assert ended.returncode == 0, ended.stderr
    losses = [event["loss"] for event in events_of(out) if event["kind"] == "step"]
    assert len(losses) == 3
    held = load_file(str(out / "small.safetensors"))
    assert any("hada_w1_a" in name for name in held)
    assert {name.split("_")[1] for name in held} == {"te", "unet"}
    notes = metadata(out / "small.safetensors")
    assert notes["ss_network_module"] == "lycoris.kohya"
    assert json.loads(notes["ss_network_args"])["algo"] == "loha"
    more = {**SMALL, **LYCORIS, "network_args": args, "max_train_steps": 4, "resume": out / "small-state"}
    rest = in_own_process(tiny_sd1, thumbs, tmp_path / "rest", **more)
    assert rest.returncode == 0, rest.stderr
    assert [event["step"] for event in events_of(tmp_path / "rest") if event["kind"] == "step"] == [4]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(probe: Probe) -> None:
    compiled = probe.trained(torch_compile=True, dynamo_backend="aot_eager", max_train_steps=3)
    assert compiled.losses == pytest.approx(probe.base(max_train_steps=3).losses, rel=1e-3)


@pytest.mark.slow
def test_many_optimizers_train(probe: Probe) -> None:
    """One of each kind of rule; the training tests try all."""
    cases: dict[str, dict[str, Any]] = {
        "AdamW8bit": {},
        "PagedAdamW32bit": {},
        "DAdaptAdam": {"learning_rate": 1.0, "optimizer_args": ["decouple=True"]},
        "Prodigy": {"learning_rate": 1.0},
        "AdaFactor": {"optimizer_args": ["relative_step=True"]},
        "RAdamScheduleFree": {},
        "torch.optim.Adagrad": {},
    }
    for name, options in cases.items():
        run = probe.trained(optimizer_type=name, max_train_steps=2, **options)
        assert name.rpartition(".")[2].lower() in metadata(result(run))["ss_optimizer"].lower().replace("_", ""), name
