"""A sample picture is the picture the diffusers pipeline makes from the same model, prompt and seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sd_scripts.families.base import Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.models.tiny import save_tiny
from sd_scripts.sampling.prompts import SamplePrompt, parse_prompts
from sd_scripts.sampling.schedulers import make_scheduler
from sd_scripts.schema.model import ModelOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prediction = "v_prediction" if request.param == "sd2" else "epsilon"
    return save_tiny(tmp_path_factory.mktemp("models") / request.param, request.param, prediction_type=prediction)


@pytest.fixture(scope="module")
def options(folder: Path) -> ModelOptions:
    is_sd2 = folder.name == "sd2"
    return ModelOptions(pretrained_model_name_or_path=str(folder), v2=is_sd2, v_parameterization=is_sd2)


@pytest.fixture(scope="module")
def model(options: ModelOptions) -> Model:
    return StableDiffusion().load(options, torch.float32, "cpu")


def _sample(model: Model, options: ModelOptions, prompt: SamplePrompt, sampler: str) -> np.ndarray:
    image = StableDiffusion().sample(model, prompt, sampler=sampler, options=options, device="cpu", dtype=torch.float32)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("sampler", "scale"), [("ddim", 7.5), ("euler_a", 3.0), ("dpm_2", 1.0), ("dpmsolver++", 5.0)])
def test_equals_the_diffusers_pipeline(
    folder: Path, model: Model, options: ModelOptions, sampler: str, scale: float
) -> None:
    (prompt,) = parse_prompts([f"a photo of a cat --n blurry --w 64 --h 72 --s 4 --l {scale} --d 7"])
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(sampler, model.prediction_type)
    # Sample prompts are filled up with the end mark in both versions.
    pipeline.tokenizer.pad_token = pipeline.tokenizer.eos_token
    expected = pipeline(
        prompt=prompt.prompt,
        negative_prompt=prompt.negative,
        width=prompt.width,
        height=prompt.height,
        num_inference_steps=prompt.steps,
        guidance_scale=prompt.scale,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    actual = _sample(model, options, prompt, sampler)
    assert actual.shape == (72, 64, 3)
    assert actual.std() > 1
    # The last bit of a pixel may fall the other way.
    assert np.abs(actual - np.asarray(expected).astype(int)).max() <= 1


def test_the_model_is_left_as_it_was(model: Model, options: ModelOptions) -> None:
    model.unet.train()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    first = next(model.unet.parameters())
    first.requires_grad_(True)
    _sample(model, options, SamplePrompt("a", width=64, height=64, steps=2, seed=1), "ddim")
    assert model.unet.training
    assert first.requires_grad
    assert first.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())


def test_a_long_and_a_weighted_prompt_change_the_picture(model: Model, options: ModelOptions) -> None:
    def picture(text: str) -> np.ndarray:
        return _sample(model, options, SamplePrompt(text, None, 64, 64, 3, 7.5, 5), "euler")

    head = " ".join(["dog"] * 75)
    assert (picture(f"{head} cat") != picture(f"{head} bird")).any()
    assert (picture("a (cat:1.9)") != picture("a cat")).any()
    assert (picture("(a cat:1.0)") == picture("a cat")).all()
