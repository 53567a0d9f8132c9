"""Training a ControlNet-LLLite: what learns, what is saved, and what a control picture does to a sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sd_scripts.families.base import Model
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.methods.lllite import LLLiteMethod
from sd_scripts.models.tiny import build_tiny
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.controlnet import LLLiteOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions

FAMILY = StableDiffusionXL()
CAPTIONS = ["a photo of a cat", "a dog"]
TENSORS = 1600


def model() -> Model:
    """The same small model every time."""
    made = build_tiny("sdxl")
    return Model(made.unet, list(made.text_encoders), list(made.tokenizers), made.vae, "sdxl", made.prediction_type)


def attached(
    base: Model, rate: float = 1e-3, cond: int | None = 8, checkpointing: bool = False, **options: Any
) -> LLLiteMethod:
    network = NetworkOptions(**({"network_dim": 16} | options))
    made = LLLiteMethod(network, LLLiteOptions(cond_emb_dim=cond), OptimizerOptions(learning_rate=rate))
    made.attach(base, FAMILY, gradient_checkpointing=checkpointing, weight_dtype=torch.float32)
    return made


def prediction(base: Model, made: LLLiteMethod, pictures: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    if pictures is None:
        pictures = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        conditioning = FAMILY.encode_captions(base, CAPTIONS, options=ModelOptions())
    conditioning.sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    timesteps = torch.tensor([500, 100])
    made.on_step_start(None, 0)
    batch = SimpleNamespace(conditioning_images=pictures)
    return FAMILY.predict(base, noisy, timesteps, made.before_predict(conditioning, batch, noisy, timesteps))


def trained(base: Model, steps: int = 2, **options: Any) -> LLLiteMethod:
    torch.manual_seed(0)
    made = attached(base, **options)
    made.on_epoch_start()
    optimizer = torch.optim.AdamW(made.parameter_groups()[0].params, lr=1e-2)
    for _ in range(steps):
        prediction(base, made).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


def test_only_the_network_learns_and_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        base = model()
        if checkpointing:
            FAMILY.use_gradient_checkpointing(base, text=False)
        made = trained(base, checkpointing=checkpointing)
        prediction(base, made).square().mean().backward()
        frozen = (base.unet, *base.text_encoders, base.vae)
        assert all(parameter.grad is None for part in frozen for parameter in part.parameters())
        gradients.append({name: value.grad for name, value in made.module.named_parameters()})
    assert len(gradients[0]) == TENSORS
    assert all(value is not None for value in gradients[0].values())
    apart = [n for n, value in gradients[0].items() if not torch.allclose(value, gradients[1][n], rtol=1e-3, atol=1e-5)]
    assert apart == []
    assert max(float(value.abs().max()) for value in gradients[0].values()) > 1e-4


def test_it_learns_from_the_picture() -> None:
    base = model()
    made = trained(base, steps=3)
    made.module.eval()
    with torch.no_grad():
        black, white = (prediction(base, made, torch.full((2, 3, 64, 64), value)) for value in (-1.0, 1.0))
    assert (black - white).abs().max() > 1e-5


def test_the_file_and_going_on_from_it(tmp_path: Path) -> None:
    base = model()
    made = trained(base)
    path = tmp_path / "net.safetensors"
    notes = {"modelspec.architecture": "stable-diffusion-xl-v1-base/control-net-lllite"}
    made.save(path, None, notes)
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == notes
        assert len(file.keys()) == TENSORS
    other = model()
    again = attached(other, cond=None, network_dim=None, network_weights=str(path))
    assert again.required_files() == [("network_weights", str(path))]
    for part in (made, again):
        part.module.eval()
    with torch.no_grad():
        assert torch.equal(prediction(base, made), prediction(other, again))
    again.save(tmp_path / "again.safetensors", None, notes)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    for suffix in ("pt", "ckpt"):
        made.save(tmp_path / f"net.{suffix}", torch.float16, None)
        third = attached(model(), cond=None, network_dim=None, network_weights=str(tmp_path / f"net.{suffix}"))
        kept, written = third.module.state_dict(), made.module.state_dict()
        assert all(torch.equal(value.half(), kept[name].half()) for name, value in written.items())
    for key, options in (("cond_emb_dim", {"cond": 10}), ("network_dim", {"network_dim": 12, "cond": 8})):
        with pytest.raises(UserError, match="was made with") as found:
            attached(model(), network_weights=str(path), **options)
        assert found.value.key == key


def test_sizes_where_nothing_is_said(tmp_path: Path) -> None:
    made = attached(model(), cond=None, network_dim=None)
    made.save(tmp_path / "net.safetensors", torch.float16, None)
    weights = load_file(str(tmp_path / "net.safetensors"))
    name = "lllite_unet_middle_block_1_transformer_blocks_0_attn2_to_q"
    assert weights[f"{name}.mid.0.weight"].shape == (64, 96)
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_a_rate_of_zero_and_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="learning rate is 0"):
        attached(model(), rate=0.0).parameter_groups()
    made = build_tiny("sd1")
    plain = Model(made.unet, list(made.text_encoders), list(made.tokenizers), made.vae, "sd1", "epsilon")
    with pytest.raises(UserError, match="Stable Diffusion XL only"):
        attached(plain)


def test_samples_follow_the_control_picture_and_forget_the_batch(photos: Path, tmp_path: Path) -> None:
    base = model()
    made = trained(base, steps=3)
    device = torch.device("cpu")

    def sample(path: Path | None) -> bytes:
        picture = None if path is None else str(path)
        prompt = SamplePrompt("a", width=64, height=64, steps=2, seed=1, controlnet_image=picture)
        with made.evaluation(), made.guide(prompt, device, torch.float32) as guide:
            image = FAMILY.sample(
                base, prompt, sampler="euler", options=ModelOptions(), device=device, dtype=torch.float32, guide=guide
            )
        return image.tobytes()

    with made.evaluation():
        plain = sample(None)
    prediction(base, made)
    assert sample(None) == plain
    assert made.module.training
    coffee = sample(photos / "2_photo" / "coffee.png")
    rocket = sample(photos / "2_photo" / "rocket.png")
    assert len({plain, coffee, rocket}) == 3
    assert all(module.signs is None for module in made.module.corrections())
    with pytest.raises(UserError, match="There is no control picture"):
        sample(tmp_path / "missing.png")
