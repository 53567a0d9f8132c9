"""What a path holds, told from headers: real files of every kind, and files that only look like models."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd_scripts.models.saving import save_single_file
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.headers import HeaderError, identify, read_safetensors_header


def test_real_models(
    tiny_sd1: Path, tiny_sd2: Path, tiny_sd2_v: Path, tiny_sd1_file: Path, tiny_sd2_file: Path
) -> None:
    found = {path: identify(str(path)) for path in (tiny_sd1, tiny_sd2, tiny_sd2_v, tiny_sd1_file, tiny_sd2_file)}
    assert not any(facts.problem for facts in found.values())
    assert [(facts.version, facts.kind, facts.prediction) for facts in found.values()] == [
        ("sd1", "diffusers", "epsilon"),
        ("sd2", "diffusers", "epsilon"),
        ("sd2", "diffusers", "v_prediction"),
        ("sd1", "checkpoint", ""),
        ("sd2", "checkpoint", ""),
    ]
    assert found[tiny_sd1_file].detail == "Stable Diffusion 1.x file"
    assert found[tiny_sd2_v].detail == "Stable Diffusion 2.x folder, v-prediction"


def test_parts_of_models(tiny_sd1: Path, tmp_path: Path) -> None:
    assert identify(str(tiny_sd1 / "vae")).kind == "vae"
    assert identify(str(tiny_sd1 / "vae" / "diffusion_pytorch_model.safetensors")).kind == "vae"
    assert identify(str(tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors")).kind == "unet"
    assert identify(str(tiny_sd1 / "text_encoder" / "model.safetensors")).kind == "text_encoder"
    lora = tmp_path / "lora.safetensors"
    weights = {"lora_unet_x.lora_down.weight": torch.zeros(4, 8), "lora_unet_x.lora_up.weight": torch.zeros(8, 4)}
    save_file(weights, str(lora), metadata={"ss_base_model_version": "sd_v1"})
    assert identify(str(lora)).kind == "lora"
    assert identify(str(lora)).detail == "a LoRA for sd_v1"


def test_what_a_file_says_about_its_prediction(tmp_path: Path) -> None:
    told = save_single_file(build_tiny("sd2"), tmp_path / "v.safetensors", None, {"modelspec.prediction_type": "v"})
    assert identify(str(told)).prediction == "v_prediction"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"abc", "torn"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 4265146304\n", "Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 100, "zip"),
        (b"GGUF" + b"\0" * 100, "GGUF"),
        (struct.pack("<Q", 20) + b"{" * 20, "damaged"),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
        (struct.pack("<Q", 1 << 62) + b"{}", "torn"),
        (struct.pack("<Q", 14) + b'{"a":{"x":1}} ', "damaged"),
    ],
)
def test_files_that_are_no_models(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert problem in identify(str(path)).problem
    with pytest.raises(HeaderError):
        read_safetensors_header(path)


def test_a_download_that_broke_off(tiny_sd1_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(tiny_sd1_file.read_bytes()[:-1000])
    assert "torn" in identify(str(path)).problem
    assert identify(str(tiny_sd1_file)).problem == ""


def test_pickles_are_looked_at_and_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(2)}}, path)
    assert (identify(str(path)).kind, identify(str(path)).problem) == ("pickle", "")
    path.write_bytes(b"<html>")
    assert "web page" in identify(str(path)).problem


def test_nothing_and_folders_that_are_no_models(tiny_sd1: Path, tmp_path: Path) -> None:
    assert identify(str(tmp_path / "none")).kind == "missing"
    assert "model_index.json" in identify(str(tmp_path)).problem
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": 768}), encoding="utf-8")
    assert identify(str(tmp_path)).problem == "the folder is incomplete: vae, text_encoder missing"
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    assert identify(str(tmp_path)).problem


@pytest.mark.parametrize(
    ("pipeline", "version"),
    [("StableDiffusionXLPipeline", "sdxl"), ("StableDiffusion3Pipeline", "sd3"), ("FluxPipeline", "flux")],
)
def test_folders_of_other_families(pipeline: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    assert identify(str(tmp_path)).version == version


def test_looking_needs_the_standard_library_only() -> None:
    code = "import sys, sd_scripts.schema.headers; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
