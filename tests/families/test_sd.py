"""The sd family on small models: pictures, captions, prediction, samples, memory options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.models.build import make_text_encoder
from sd_scripts.models.fp8 import FP8
from sd_scripts.models.tokenizer import build_tokenizer
from sd_scripts.sampling.prompts import parse_prompts
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.training import TrainingOptions

FAMILY = StableDiffusion()
VECTORS = Path(__file__).parent.parent / "models" / "data" / "tokens.json"
WEIGHTED = json.loads(VECTORS.read_text(encoding="utf-8"))["weighted"]


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    return FAMILY.load(ModelOptions(pretrained_model_name_or_path=str(path), **options), dtype, "cpu")


def pixels(photos: Path, size: int = 64) -> Tensor:
    """Two photographs as [2, 3, size, size] in -1..1."""
    names = ("2_photo/astronaut.png", "2_photo/chelsea.png")
    arrays = [np.asarray(Image.open(photos / name).resize((size, size))) for name in names]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def test_load_gives_a_model_of_the_contract(tiny_sd1: Path, tiny_sd2_v: Path) -> None:
    model = load(tiny_sd1)
    assert (model.version, model.prediction_type, len(model.text_encoders)) == ("sd1", "epsilon", 1)
    assert FAMILY.kind(model) == {"v2": False, "v_param": False, "is_sdxl": False}
    assert FAMILY.kind(load(tiny_sd2_v)) == {"v2": True, "v_param": True, "is_sdxl": False}
    assert model.source == str(tiny_sd1)


def test_pictures_become_unscaled_latents_that_a_seed_fixes(tiny_sd1: Path, photos: Path) -> None:
    model, pictures = load(tiny_sd1), pixels(photos)
    torch.manual_seed(3)
    latents = FAMILY.encode_images(model, pictures)
    assert latents.shape == (2, 4, 8, 8)
    assert latents.dtype == torch.float32
    torch.manual_seed(3)
    with torch.no_grad():
        spread = model.vae.encode(pictures).latent_dist
    want = spread.mean + spread.std * torch.randn(spread.mean.shape)
    torch.testing.assert_close(latents, want, rtol=1e-5, atol=1e-6)


def test_a_vae_that_overflows_is_reported_with_the_way_out(tiny_sd1: Path, photos: Path) -> None:
    model = load(tiny_sd1, torch.float16)
    with torch.no_grad():
        model.vae.encoder.conv_in.weight.mul_(60000)
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        FAMILY.encode_images(model, pixels(photos))
    assert caught.value.key == "no_half_vae"


@pytest.mark.parametrize("length", [None, 150, 225])
def test_captions_have_the_length_that_was_asked_for(tiny_sd1: Path, length: int | None) -> None:
    options = ModelOptions(max_token_length=length, clip_skip=2)
    conditioning = FAMILY.encode_captions(load(tiny_sd1), ["a cat", "red, " * 100], options=options)
    assert conditioning.hidden.shape == (2, {None: 77, 150: 152, 225: 227}[length], 64)
    assert conditioning.pooled is None


def _recipe_model(version: str, layers: int) -> Model:
    config = {"vocab_size": 49408, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config |= {"num_hidden_layers": layers, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    encoder = make_text_encoder(config | {"layer_norm_eps": 1e-5, "eos_token_id": 49407, "bos_token_id": 49406})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(encoder.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
    nothing = torch.nn.Identity()
    return Model(nothing, [encoder.eval()], [build_tokenizer(version)], nothing, version, "epsilon")


@pytest.fixture(scope="module")
def recipe_models() -> dict[str, Model]:
    return {version: _recipe_model(version, 12) for version in ("sd1", "sd2")}


@pytest.mark.parametrize("case", WEIGHTED, ids=lambda case: f"{case['version']} {case['text'][:16]}")
def test_weighted_captions_are_those_of_sd_scripts(case: dict[str, Any], recipe_models: dict[str, Model]) -> None:
    assert case["layers"] == 12
    options = ModelOptions(
        weighted_captions=True,
        max_token_length=None if case["chunks"] == 1 else case["chunks"] * 75,
        clip_skip=case["clip_skip"],
    )
    with torch.no_grad():
        hidden = FAMILY.encode_captions(recipe_models[case["version"]], [case["text"]], options=options).hidden
    want = case["hidden"]
    assert list(hidden.shape) == want["shape"]
    flat = hidden.double().flatten()
    torch.testing.assert_close(flat[:8], torch.tensor(want["first8"]).double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat[-8:], torch.tensor(want["last8"]).double(), rtol=1e-4, atol=1e-5)
    assert (flat**2).sum().item() == pytest.approx(want["sumsq"], rel=1e-4)


def test_predict_carries_gradients_to_the_captions(tiny_sd2: Path) -> None:
    model = load(tiny_sd2, v2=True)
    conditioning = FAMILY.encode_captions(model, ["a cat", "a dog"], options=ModelOptions())
    out = FAMILY.predict(model, torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), conditioning)
    assert out.shape == (2, 4, 8, 8)
    out.square().sum().backward()
    grad = model.text_encoders[0].encoder.layers[0].self_attn.q_proj.weight.grad
    assert grad is not None and grad.abs().sum() > 0


def test_the_views_carry_kohyas_names(tiny_sd1: Path) -> None:
    views = FAMILY.views(load(tiny_sd1))
    names = dict(views.text_encoders[0].named_modules())
    assert type(names["text_model.encoder.layers.0.self_attn"]).__name__ == "CLIPAttention"
    assert type(views.unet.mid_block.attentions[0].transformer_blocks[0].attn2).__name__ == "CrossAttention"


def test_the_noise_schedule() -> None:
    plain = FAMILY.noise_schedule(LossOptions())
    assert plain.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert plain.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)
    assert FAMILY.noise_schedule(LossOptions(zero_terminal_snr=True)).alphas_cumprod[-1].item() == 0.0


def _sample(model: Model, dtype: torch.dtype = torch.float32, sampler: str = "euler") -> np.ndarray:
    prompt = parse_prompts(["a (red:1.3) cat --n blurry --w 64 --h 128 --s 3 --l 5 --d 7"])[0]
    image = FAMILY.sample(model, prompt, sampler=sampler, options=ModelOptions(), device="cpu", dtype=dtype)
    assert image.size == (64, 128)
    return np.asarray(image)


def test_a_sample_depends_on_its_seed_and_leaves_everything_as_it_was(tiny_sd1: Path) -> None:
    model = load(tiny_sd1)
    model.unet.train()
    model.unet.mid_block.eval()
    torch.manual_seed(1)
    want = torch.rand(4)
    torch.manual_seed(1)
    first = _sample(model)
    assert torch.equal(torch.rand(4), want)
    assert model.unet.training and not model.unet.mid_block.training and not model.vae.training
    assert np.array_equal(first, _sample(model))
    assert first.std() > 1
    assert not np.array_equal(first, _sample(model, sampler="ddim"))


def test_a_sample_runs_on_16_bit_weights_with_a_float32_network(tiny_sd1: Path) -> None:
    model = load(tiny_sd1, torch.bfloat16, no_half_vae=True)
    layer = model.unet.mid_block.attentions[0].proj_in
    extra, plain = torch.nn.Conv2d(96, 96, 1), layer.forward
    layer.forward = lambda x: plain(x) + extra(x)
    assert _sample(model, torch.bfloat16).shape[2] == 3


def test_memory_options(tiny_sd1: Path) -> None:
    model = load(tiny_sd1)
    FAMILY.apply_memory_options(model, TrainingOptions(fp8_base=True, mem_eff_attn=True))
    assert model.unet.conv_in.weight.dtype == FP8
    assert model.text_encoders[0].encoder.layers[0].mlp.fc1.weight.dtype == FP8
    assert model.vae.encoder.conv_in.weight.dtype == torch.float32
    assert model.extras["attention"] == "mem_eff_attn"
    conditioning = FAMILY.encode_captions(model, ["a cat"], options=ModelOptions())
    assert torch.isfinite(FAMILY.predict(model, torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)).all()
    model = load(tiny_sd1)
    FAMILY.apply_memory_options(model, TrainingOptions(fp8_base_unet=True, fp8_base=True))
    assert model.unet.conv_in.weight.dtype == FP8
    assert model.text_encoders[0].encoder.layers[0].mlp.fc1.weight.dtype == torch.float32


def test_conditioning_moves() -> None:
    moved = Conditioning(torch.zeros(1, 77, 8), torch.zeros(1, 4)).to("cpu", torch.float16)
    assert moved.hidden.dtype == torch.float16
    assert moved.pooled is not None and moved.pooled.dtype == torch.float16


def test_checkpointing_by_the_family(tiny_sd1: Path) -> None:
    model = load(tiny_sd1)
    FAMILY.use_gradient_checkpointing(model, text=False)
    assert model.unet.training and not model.text_encoders[0].training
    FAMILY.use_gradient_checkpointing(model, text=True)
    assert model.text_encoders[0].training and model.text_encoders[0].is_gradient_checkpointing
