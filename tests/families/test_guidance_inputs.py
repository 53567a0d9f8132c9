"""What else steers a prediction: hidden states of their own for each block, and a ControlNet's residuals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.layers import cross_attention_blocks
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.model import ModelOptions

FAMILY = StableDiffusion()
# The names of the blocks in the original numbering, in the order in which the hidden states are given.
NAMES = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *[f"OUT{number:02d}" for number in range(3, 12)]]


def _load(path: Path) -> Model:
    return FAMILY.load(ModelOptions(pretrained_model_name_or_path=str(path)), torch.float32)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISY, STEPS = _random(2, 4, 8, 8), torch.tensor([10, 900])


def test_the_blocks_stand_in_the_order_of_the_original_numbering(tiny_sd1: Path) -> None:
    from sd_scripts.schema.unetnames import unet_table

    model = _load(tiny_sd1)
    paths = {id(module): name for name, module in model.unet.named_modules()}
    originals = {name: original for original, name in unet_table().items()}
    got = []
    for block in cross_attention_blocks(model.unet):
        part, number, *_ = originals[paths[id(block)]].split(".")
        got.append({"input_blocks": "IN", "output_blocks": "OUT"}.get(part, "MID") + f"{int(number):02d}")
    assert [name if name[:3] != "MID" else "MID" for name in got] == NAMES


@torch.no_grad()
def test_the_same_states_everywhere_change_nothing(tiny_sd1: Path) -> None:
    model, hidden = _load(tiny_sd1), _random(2, 77, 64, seed=1)
    plain = FAMILY.predict(model, NOISY, STEPS, Conditioning(hidden))
    layered = FAMILY.predict(model, NOISY, STEPS, Conditioning(torch.zeros(2, 77, 64), layers=(hidden,) * 16))
    torch.testing.assert_close(layered, plain)
    # Ordinary predictions go on afterwards, and a second use is a use once.
    assert torch.equal(FAMILY.predict(model, NOISY, STEPS, Conditioning(hidden)), plain)
    with pytest.raises(ValueError, match="15 hidden states for 16"):
        FAMILY.predict(model, NOISY, STEPS, Conditioning(hidden, layers=(hidden,) * 15))


@torch.no_grad()
def test_each_block_gets_its_own_states(tiny_sd1: Path) -> None:
    model = _load(tiny_sd1)
    layers = tuple(_random(2, 77, 64, seed=place) for place in range(16))
    seen: list[Tensor] = []
    for block in cross_attention_blocks(model.unet):
        block.transformer_blocks[0].attn2.to_k.register_forward_hook(
            lambda _module, inputs, _out: seen.append(inputs[0])
        )
    FAMILY.predict(model, NOISY, STEPS, Conditioning(layers[0], layers=layers))
    assert len(seen) == 16
    assert all(torch.equal(got, want) for got, want in zip(seen, layers))


@pytest.mark.parametrize("part", ["layers", "residuals"])
def test_gradients_arrive_with_and_without_checkpointing(tiny_sd1: Path, part: str) -> None:
    grads: list[list[Tensor]] = []
    for checkpointing in (False, True):
        model = _load(tiny_sd1)
        if checkpointing:
            FAMILY.use_gradient_checkpointing(model, text=False)
        layers = tuple(_random(2, 77, 64, seed=place).requires_grad_() for place in range(16))
        conditioning = Conditioning(layers[0], layers=layers)
        watched = list(layers)
        if part == "residuals":
            down, middle = _residuals(model, layers[0])
            watched = [value.detach().requires_grad_() for value in (*down, middle)]
            conditioning = Conditioning(layers[0].detach(), residuals=(tuple(watched[:-1]), watched[-1]))
        FAMILY.predict(model, NOISY, STEPS, conditioning).square().sum().backward()
        grads.append([value.grad for value in watched if value.grad is not None])
        assert len(grads[-1]) == len(watched) == (16 if part == "layers" else 13)
    for plain, again in zip(*grads):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


def _residuals(model: Model, hidden: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    torch.manual_seed(5)
    control = ControlNetModel.from_unet(model.unet)
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.5)
    with torch.no_grad():
        down, middle = control(NOISY, STEPS, hidden, _random(2, 3, 64, 64, seed=9), return_dict=False)
    return tuple(down), middle


@torch.no_grad()
def test_residuals_are_added_as_the_library_adds_them(tiny_sd1: Path) -> None:
    model, hidden = _load(tiny_sd1), _random(2, 77, 64, seed=1)
    down, middle = _residuals(model, hidden)
    assert len(down) == 12
    want = model.unet(
        NOISY, STEPS, hidden, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    got = FAMILY.predict(model, NOISY, STEPS, Conditioning(hidden, residuals=(down, middle)))
    assert torch.equal(got, want)
    assert not torch.allclose(got, FAMILY.predict(model, NOISY, STEPS, Conditioning(hidden)))


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1), (7.5, 2)])
def test_a_guide_steers_every_prediction_of_a_sample(tiny_sd1: Path, scale: float, rows: int) -> None:
    model, seen = _load(tiny_sd1), []

    def guide(conditioning: Conditioning, noisy: Tensor, timesteps: Tensor) -> Conditioning:
        seen.append((tuple(noisy.shape), tuple(timesteps.shape), conditioning.hidden.shape[0]))
        return replace(conditioning, hidden=conditioning.hidden * 0.5)

    prompt = SamplePrompt("a cat", "bad", 64, 64, 3, scale, 5, "euler")

    def picture(**options: object) -> bytes:
        model_options = ModelOptions()
        return FAMILY.sample(
            model, prompt, sampler="ddim", options=model_options, device="cpu", dtype=torch.float32, **options
        ).tobytes()

    assert picture(guide=guide) != picture()
    assert seen == [((rows, 4, 8, 8), (rows,), rows)] * 3
