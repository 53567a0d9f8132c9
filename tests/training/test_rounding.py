"""Stochastic rounding: right on average, the same on every process, and exact over a saved state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import bitsandbytes
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from transformers.optimization import Adafactor

from sd_scripts.training.rounding import round_stochastically, use_stochastic_rounding

Make = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda params: AdamW(params, lr=1e-3),
    "SGD": lambda params: SGD(params, lr=1e-3),
    "Adafactor": lambda params: Adafactor(params, lr=1e-3, relative_step=False, scale_parameter=False),
    "AdamW8bit": lambda params: bitsandbytes.optim.AdamW8bit(params, lr=1e-3),
}


def test_each_value_goes_to_a_neighbour_and_the_mean_stays() -> None:
    value = 1 + 3 / 1024  # between 1 and 1 + 1/128, three eighths of the way
    rounded = round_stochastically(torch.full((200_000,), value), torch.Generator().manual_seed(1))
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.float().tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.double().mean().item() == pytest.approx(value, abs=3e-5)


def test_numbers_that_bf16_has_stay() -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    assert torch.equal(round_stochastically(exact.float(), torch.Generator().manual_seed(3)), exact)


def _train(make: Make, rounding: bool, steps: int, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    param = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    optimizer = make([param])
    if rounding:
        use_stochastic_rounding(optimizer)
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return param


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_updates_are_not_lost(name: str) -> None:
    """A step of 1e-3 from 1 is below half of bf16's 1/128: lost by rounding to nearest, kept on average here."""
    make = OPTIMIZERS[name]
    truth = _train(make, False, 20, torch.float32).double().mean().item()
    plain = _train(make, False, 20).double().mean().item()
    rounded = _train(make, True, 20).double().mean().item()
    assert truth < 0.985
    assert abs(plain - truth) > 0.01, "without it the weights stay where they were"
    assert rounded == pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "AdamW8bit"])
def test_goes_on_exactly_from_a_saved_state(name: str) -> None:
    make = OPTIMIZERS[name]
    torch.manual_seed(0)
    gradients = [torch.randn(64, 64).to(torch.bfloat16) for _ in range(6)]

    def run(param: nn.Parameter, optimizer: Optimizer, chosen: list[torch.Tensor]) -> None:
        for gradient in chosen:
            param.grad = gradient.clone()
            optimizer.step()

    whole = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    straight = make([whole])
    use_stochastic_rounding(straight)
    run(whole, straight, gradients[:3])
    saved, weights = copy.deepcopy(straight.state_dict()), whole.detach().clone()
    run(whole, straight, gradients[3:])
    again = nn.Parameter(weights)
    resumed = make([again])
    use_stochastic_rounding(resumed)
    resumed.load_state_dict(saved)
    assert again.dtype == torch.bfloat16
    run(again, resumed, gradients[3:])
    assert torch.equal(again, whole)


def test_other_parameters_are_stepped_as_ever() -> None:
    make = OPTIMIZERS["AdamW"]
    assert torch.equal(_train(make, True, 5, torch.float32), _train(make, False, 5, torch.float32))
