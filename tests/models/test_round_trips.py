"""Whole models written and read again in every format: the same bits, the same names, for every version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.models.build import LoadedModel
from sd_scripts.models.loading import load_sd, load_sdxl
from sd_scripts.models.saving import save_diffusers_folder, save_single_file
from sd_scripts.models.weights import read_pickle, read_weights
from sd_scripts.schema.model import ModelOptions

VERSIONS = ("sd1", "sd2", "sdxl")


def load(path: Path, version: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    read = load_sdxl if version == "sdxl" else load_sd
    return read(ModelOptions(pretrained_model_name_or_path=str(path), v2=version == "sd2"), dtype)


def contents(path: Path) -> dict[str, Tensor]:
    """All tensors of a model file or folder, by file and name."""
    if path.is_file():
        return read_weights(path)
    files = sorted([*path.glob("*/*.safetensors"), *path.glob("*/*.bin")])
    return {f"{file.parent.name} {name}": value for file in files for name, value in read_weights(file).items()}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert value.dtype == got[name].dtype and torch.equal(value, got[name]), name


def as_file(model: LoadedModel, target: Path) -> Path:
    return save_single_file(model, target.with_suffix(".safetensors"))


def as_ckpt(model: LoadedModel, target: Path) -> Path:
    return save_single_file(model, target.with_suffix(".ckpt"))


def as_folder(model: LoadedModel, target: Path) -> Path:
    return save_diffusers_folder(model, target)


def as_old_folder(model: LoadedModel, target: Path) -> Path:
    return save_diffusers_folder(model, target, safetensors=False)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("between", [(), (as_old_folder, as_ckpt)], ids=len)
def test_a_file_comes_back_bit_equal(
    version: str,
    between: tuple[Callable[[LoadedModel, Path], Path], ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    start: Path = request.getfixturevalue(f"tiny_{version}_file")
    path = start
    for number, write in enumerate((*between, as_file)):
        path = write(load(path, version), tmp_path / str(number))
    assert_equal(contents(path), contents(start))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("between", [(), (as_file,)], ids=len)
def test_a_folder_comes_back_bit_equal(
    version: str,
    between: tuple[Callable[[LoadedModel, Path], Path], ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    start: Path = request.getfixturevalue(f"tiny_{version}")
    path = start
    for number, write in enumerate((*between, as_folder)):
        path = write(load(path, version), tmp_path / str(number))
    assert_equal(contents(path), contents(start))


@pytest.mark.parametrize("version", VERSIONS)
def test_half_precision_goes_through_unchanged(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    half = save_single_file(
        load(request.getfixturevalue(f"tiny_{version}"), version), tmp_path / "half.safetensors", torch.float16
    )
    again = as_file(load(half, version, torch.float16), tmp_path / "again")
    assert again.read_bytes() == half.read_bytes()
    # Trained in full precision and saved in half again, untouched weights come out as they were.
    assert_equal(
        contents(save_single_file(load(half, version), tmp_path / "x.safetensors", torch.float16)), contents(half)
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_what_else_a_file_holds_stays_in_it(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    weights = load_file(str(request.getfixturevalue(f"tiny_{version}_file")))
    schedule = {"betas": torch.linspace(0, 1, 1000), "alphas_cumprod": torch.linspace(1, 0, 1000)}
    if version == "sdxl":
        schedule["denoiser.sigmas"] = torch.linspace(0, 14, 1000)
        weights["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.25)
    if version == "sd2":
        last = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight"
        weights[last] = torch.full_like(weights[last], 3.0)
    averages = {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelout2bias": torch.zeros(4)}
    path = tmp_path / "odd.safetensors"
    save_file(weights | schedule | averages, str(path))
    # Averages of another training would not fit the weights; the schedule is too fine for half precision.
    saved = contents(save_single_file(load(path, version), tmp_path / "saved.safetensors", torch.float16))
    assert saved.keys() == weights.keys() | schedule.keys()
    assert all(torch.equal(saved[name], value) for name, value in schedule.items())
    assert_equal(contents(as_file(load(path, version), tmp_path / "same")), weights | schedule)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_without_the_odds_and_ends_does_not_get_them(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    odds = ("position_ids", "logit_scale")
    weights = {
        name: value
        for name, value in load_file(str(request.getfixturevalue(f"tiny_{version}_file"))).items()
        if not name.endswith(odds)
    }
    path = tmp_path / "bare.safetensors"
    save_file(weights, str(path))
    assert_equal(contents(as_file(load(path, version), tmp_path / "again")), weights)


def test_a_ckpt_counts_on_from_its_source(tiny_sd1: Path, tmp_path: Path) -> None:
    first = save_single_file(load(tiny_sd1, "sd1"), tmp_path / "a.ckpt", torch.float16, epoch=3, step=70)
    content = read_pickle(first)
    assert content.keys() == {"state_dict", "epoch", "global_step"}
    assert (content["epoch"], content["global_step"]) == (3, 70)
    assert content["state_dict"]["model.diffusion_model.out.2.bias"].dtype == torch.float16
    second = read_pickle(save_single_file(load(first, "sd1"), tmp_path / "b.ckpt", epoch=2, step=5))
    assert (second["epoch"], second["global_step"]) == (5, 75)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_ckpt_holds_every_weight_once(tiny_sd2_file: Path, tmp_path: Path) -> None:
    path = as_ckpt(load(tiny_sd2_file, "sd2"), tmp_path / "m")
    assert path.stat().st_size < tiny_sd2_file.stat().st_size * 1.05
