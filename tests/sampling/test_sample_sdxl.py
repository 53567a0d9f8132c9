"""SDXL's sample pictures are those of the diffusers pipeline; prompts follow the weights in both text encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sd_scripts.families.base import Model
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.sampling.prompts import SamplePrompt, parse_prompts
from sd_scripts.sampling.sampler import PromptEncoding
from sd_scripts.sampling.schedulers import make_scheduler
from sd_scripts.schema.model import ModelOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FAMILY = StableDiffusionXL()
OPTIONS = ModelOptions()


@pytest.fixture(scope="module")
def model(tiny_sdxl: Path) -> Model:
    return FAMILY.load(ModelOptions(pretrained_model_name_or_path=str(tiny_sdxl)), torch.float32)


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    made = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def _sample(model: Model, prompt: SamplePrompt, sampler: str, options: ModelOptions = OPTIONS) -> np.ndarray:
    image = FAMILY.sample(model, prompt, sampler=sampler, options=options, device="cpu", dtype=torch.float32)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("sampler", "scale"), [("ddim", 7.5), ("euler", 5.0), ("euler_a", 3.0), ("euler", 1.0)])
def test_equals_the_diffusers_pipeline(
    model: Model, pipeline: StableDiffusionXLPipeline, sampler: str, scale: float
) -> None:
    (prompt,) = parse_prompts([f"a photo of a cat --n blurry --w 64 --h 72 --s 4 --l {scale} --d 7"])
    pipeline.scheduler = make_scheduler(sampler, model.prediction_type)
    expected = pipeline(
        prompt=prompt.prompt,
        negative_prompt=prompt.negative,
        width=prompt.width,
        height=prompt.height,
        num_inference_steps=prompt.steps,
        guidance_scale=prompt.scale,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    actual = _sample(model, prompt, sampler)
    assert actual.shape == (72, 64, 3)
    assert actual.std() > 1
    # The last bit of a pixel may fall the other way.
    assert np.abs(actual - np.asarray(expected).astype(int)).max() <= 1


@torch.no_grad()
def _encodings(model: Model, *texts: str) -> list[PromptEncoding]:
    return FAMILY.encode_prompts(model, list(texts), SamplePrompt("", width=640, height=832), None)


def test_a_prompt_is_told_the_size_of_its_picture(model: Model) -> None:
    (encoding,) = _encodings(model, "a cat")
    assert encoding.sizes is not None
    assert encoding.sizes.tolist() == [[832, 640, 0, 0, 832, 640]]


def test_prompts_are_encoded_as_captions_are(model: Model) -> None:
    """Also behind the text: the second encoder's rows are filled with id 0."""
    (encoding,) = _encodings(model, "a cat")
    with torch.no_grad():
        caption = FAMILY.encode_captions(model, ["a cat"], options=OPTIONS)
    torch.testing.assert_close(encoding.hidden, caption.hidden)
    assert encoding.pooled is not None and caption.pooled is not None
    torch.testing.assert_close(encoding.pooled, caption.pooled)


def test_weights_scale_the_states_of_both_encoders_but_not_the_pooled_output(model: Model) -> None:
    plain, weighted = (_encodings(model, text)[0] for text in ("a red cat", "a (red:1.5) cat"))
    for columns in (slice(0, 32), slice(32, 96)):
        ratio = weighted.hidden[0, :, columns] / plain.hidden[0, :, columns]
        # Token 2 is the weighted one; all share the factor that brings the mean back.
        torch.testing.assert_close(ratio[2], ratio[0] * 1.5, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(weighted.hidden[..., columns].mean(), plain.hidden[..., columns].mean())
    assert plain.pooled is not None and weighted.pooled is not None
    assert torch.equal(plain.pooled, weighted.pooled)


def test_long_prompts_fill_chunks_and_the_first_one_is_pooled(model: Model) -> None:
    long = " ".join(["dog"] * 80)
    positive, negative = _encodings(model, long, "bad")
    assert positive.hidden.shape == negative.hidden.shape == (1, 154, 96)
    (first,) = _encodings(model, " ".join(["dog"] * 75))
    assert positive.pooled is not None and first.pooled is not None
    torch.testing.assert_close(positive.pooled, first.pooled)
    torch.testing.assert_close(positive.hidden[:, :77], first.hidden)


def test_clip_skip_makes_no_difference(model: Model) -> None:
    prompt = SamplePrompt("a cat", None, 64, 64, 2, 1.0, 3)
    plain = _sample(model, prompt, "ddim")
    assert (plain == _sample(model, prompt, "ddim", ModelOptions(clip_skip=2))).all()
    assert (plain != _sample(model, SamplePrompt("a dog", None, 64, 64, 2, 1.0, 3), "ddim")).any()


def test_sixteen_bits_and_the_models_modes(tiny_sdxl: Path) -> None:
    options = ModelOptions(pretrained_model_name_or_path=str(tiny_sdxl), no_half_vae=True)
    model = FAMILY.load(options, torch.bfloat16)
    model.unet.train()
    prompt = SamplePrompt("a cat", "bad", 64, 64, 2, 5.0, 3)
    image = FAMILY.sample(model, prompt, sampler="euler", options=options, device="cpu", dtype=torch.bfloat16)
    assert np.asarray(image).std() > 1
    assert model.unet.training and not model.vae.training
