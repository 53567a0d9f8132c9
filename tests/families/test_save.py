"""Whole models written by their family come back bit for bit, whatever they were read from and written as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sd_scripts.families.base import Model
from sd_scripts.families.common import LatentDiffusion
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.schema.model import ModelOptions

FORMATS = {"safetensors": "x.safetensors", "ckpt": "x.ckpt", "diffusers": "x", "diffusers_safetensors": "y"}


def _load(family: LatentDiffusion, path: Path, version: str) -> Model:
    options = ModelOptions(pretrained_model_name_or_path=str(path), v2=version == "sd2")
    return family.load(options, torch.float32)


def _weights(model: Model) -> dict[str, torch.Tensor]:
    parts = {"unet": model.unet, "vae": model.vae}
    parts |= {f"text{number}": encoder for number, encoder in enumerate(model.text_encoders)}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("version", "source"), [("sd1", "tiny_sd1"), ("sdxl", "tiny_sdxl"), ("sdxl", "tiny_sdxl_file")]
)
def test_what_is_saved_is_read_back(
    request: pytest.FixtureRequest, tmp_path: Path, version: str, source: str, file_format: str
) -> None:
    family = StableDiffusionXL() if version == "sdxl" else StableDiffusion()
    model = _load(family, request.getfixturevalue(source), version)
    with torch.no_grad():
        for part in (model.unet, *model.text_encoders):
            next(part.parameters()).add_(0.125)
    path = tmp_path / FORMATS[file_format]
    family.save(model, path, file_format=file_format, dtype=None, metadata={"modelspec.title": "x"}, epoch=2, step=30)
    assert path.is_dir() == (file_format in ("diffusers", "diffusers_safetensors"))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    again = _load(family, path, version)
    old, new = _weights(model), _weights(again)
    assert old.keys() == new.keys()
    assert [name for name, value in old.items() if not torch.equal(value, new[name])] == []
    assert (again.version, again.prediction_type) == (version, "epsilon")
    if file_format == "ckpt":
        assert (again.extras["origin"].epoch, again.extras["origin"].step) == (2, 30)


def test_a_compiled_unet_is_saved_under_its_own_names(tiny_sd1: Path, tmp_path: Path) -> None:
    family = StableDiffusion()
    model = _load(family, tiny_sd1, "sd1")
    plain = _weights(model)
    model.unet = torch.compile(model.unet)
    path = tmp_path / "x.safetensors"
    family.save(model, path, file_format="safetensors", dtype=torch.bfloat16, metadata=None)
    again = _weights(_load(family, path, "sd1"))
    assert again.keys() == plain.keys()
    assert all(torch.equal(value, plain[name].bfloat16().float()) for name, value in again.items())
