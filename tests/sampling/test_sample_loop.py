"""The denoising loop with a real tiny U-Net, VAE and text encoder: repeatable, and without a trace in the training."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from sample_vectors import encode_with, tiny_text_encoder

from sd_scripts.models.tokenizer import build_tokenizer
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.sampling.sampler import Backend, PromptEncoding, decode_latents, render, sample_latents
from sd_scripts.sampling.weights import weighted_embeddings
from sd_scripts.schema.errors import UserError

# The library's own use of numpy; one warning a step would bury everything else.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def backend(unet: UNet2DConditionModel) -> Backend:
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    text_encoder, tokenizer = tiny_text_encoder(2), build_tokenizer("sd1")

    def encode(prompt: SamplePrompt, negative: str | None) -> tuple[PromptEncoding, PromptEncoding | None]:
        wanted, unwanted = weighted_embeddings(
            tokenizer, lambda ids, clip_skip: encode_with(text_encoder, ids, clip_skip), prompt.prompt, negative
        )
        return PromptEncoding(wanted), None if unwanted is None else PromptEncoding(unwanted)

    return Backend(
        predict=lambda latents, steps, context: unet(latents, steps, context.hidden).sample,
        encode=encode,
        decode=lambda latents: vae.decode(latents / 0.18215).sample,
    )


def _pixels(image) -> np.ndarray:
    return np.asarray(image)


PROMPT = SamplePrompt("a (red:1.4) cat", "bad", width=64, height=128, steps=3, seed=42)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm_2_a", "ddpm", "dpmsingle"])
def test_a_seed_gives_the_same_picture_whatever_ran_before(backend: Backend, sampler: str) -> None:
    first = render(backend, PROMPT, sampler=sampler)
    torch.manual_seed(999)
    torch.rand(17)
    again = render(backend, PROMPT, sampler=sampler)
    other = render(backend, SamplePrompt("a (red:1.4) cat", "bad", 64, 128, 3, seed=43), sampler=sampler)
    assert first.size == (64, 128)
    assert (_pixels(first) == _pixels(again)).all()
    assert (_pixels(first) != _pixels(other)).any()
    assert first.info == {"seed": "42", "sampler": sampler}


def test_without_a_seed_pictures_differ_and_can_be_made_again(backend: Backend) -> None:
    prompt = SamplePrompt("cat", width=64, height=64, steps=2)
    torch.manual_seed(0)
    one = render(backend, prompt)
    torch.manual_seed(0)
    two = render(backend, prompt)
    assert one.info["seed"] != two.info["seed"]
    repeated = render(backend, SamplePrompt("cat", width=64, height=64, steps=2, seed=int(one.info["seed"])))
    assert (_pixels(one) == _pixels(repeated)).all()


@pytest.mark.parametrize("fails", [False, True])
def test_training_draws_the_same_numbers_after_a_sample(backend: Backend, fails: bool) -> None:
    def draw() -> tuple:
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    def wasteful(latents, steps, context):
        draw()
        if fails:
            raise RuntimeError("out of memory")
        return backend.predict(latents, steps, context)

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    spoiled = Backend(wasteful, backend.encode, backend.decode)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            render(spoiled, PROMPT, sampler="euler_a")
    else:
        render(spoiled, PROMPT, sampler="euler_a")
    assert draw() == expected


def test_the_loop_is_plain_denoising_with_guidance(backend: Backend) -> None:
    """The result equals a loop written out with the library's scheduler alone."""
    from diffusers import EulerDiscreteScheduler

    torch.manual_seed(2)
    positive, negative = (PromptEncoding(torch.randn(1, 77, 8)) for _ in range(2))
    result = sample_latents(
        backend.predict, positive, negative, width=64, height=64, steps=4, scale=3.0, sampler="euler", seed=11
    )
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(4)
    torch.manual_seed(11)
    latents = torch.randn(1, 4, 8, 8) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            low, high = (backend.predict(scaled, t[None], context) for context in (negative, positive))
            latents = scheduler.step(low + 3.0 * (high - low), t, latents).prev_sample
    torch.testing.assert_close(result, latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1), (0.0, 1), (1.01, 2), (7.5, 2)])
def test_without_guidance_the_model_runs_once_a_step(backend: Backend, scale: float, rows: int) -> None:
    seen: list[int] = []

    def counting(latents, steps, context):
        assert latents.shape[0] == steps.shape[0] == len(context)
        seen.append(latents.shape[0])
        return backend.predict(latents, steps, context)

    counted = Backend(counting, backend.encode, backend.decode)
    render(counted, SamplePrompt("cat", "bad", 64, 64, 3, scale, 1))
    assert seen == [rows] * 3


def test_a_missing_negative_prompt_is_an_empty_one(backend: Backend) -> None:
    left = render(backend, SamplePrompt("cat", None, 64, 64, 2, 7.5, 1))
    right = render(backend, SamplePrompt("cat", "", 64, 64, 2, 7.5, 1))
    assert (_pixels(left) == _pixels(right)).all()


def test_no_gradients_no_autocast_and_the_wanted_dtype(backend: Backend) -> None:
    def watching(latents, steps, context):
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert latents.dtype == context.hidden.dtype == torch.bfloat16
        return backend.predict(latents.float(), steps, context.to("cpu", torch.float32)).bfloat16()

    watched = Backend(watching, backend.encode, backend.decode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = render(watched, PROMPT, dtype=torch.bfloat16)
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert image.size == (64, 128)


def test_the_prompt_s_sampler_wins_and_an_unknown_one_becomes_ddim(backend: Backend) -> None:
    def used(sampler: str | None) -> str:
        return render(backend, SamplePrompt("a", None, 64, 64, 2, 1.0, 1, sampler), sampler="heun").info["sampler"]

    assert (used(None), used("k_lms"), used("unipc")) == ("heun", "k_lms", "ddim")


def test_nan_is_an_error_with_a_way_out(backend: Backend) -> None:
    def broken(latents, _steps, _context):
        return latents * float("nan")

    with pytest.raises(UserError, match="NaN") as error:
        render(Backend(broken, backend.encode, backend.decode), PROMPT)
    assert "no_half_vae" in error.value.hint


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    image = decode_latents(lambda latents: latents, values)
    assert np.asarray(image)[..., 0].tolist() == [[0, 0], [128, 255]]


def test_progress_is_told(backend: Backend) -> None:
    told: list[tuple[int, int]] = []
    render(backend, PROMPT, on_step=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_prompts_are_stacked_and_moved_with_all_their_parts() -> None:
    sizes = torch.tensor([[1025.0, 777, 0, 0, 1025, 777]])
    one = PromptEncoding(torch.zeros(1, 77, 8), torch.zeros(1, 4), sizes)
    both = one.then(PromptEncoding(torch.ones(1, 77, 8), torch.ones(1, 4), sizes + 1)).to("cpu", torch.bfloat16)
    assert len(both) == 2
    assert both.pooled is not None and both.sizes is not None
    assert (both.hidden.dtype, both.pooled.dtype, both.sizes.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert both.hidden[:, 0, 0].tolist() == both.pooled[:, 0].tolist() == [0, 1]
    assert both.sizes[:, 0].tolist() == [1025, 1026]
