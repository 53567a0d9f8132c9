"""Schedule, noise, timesteps and targets against recorded numbers, draw for draw."""

import random
from typing import Any

import pytest
import torch
from training_vectors import check_tensor, load

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.training.noise import Schedule, offset_noise, prepare, pyramid_noise, snr_of, timestep_range

VECTORS = load("noise_and_loss")
PLAIN = Schedule.scaled_linear()
ZERO = Schedule.scaled_linear(zero_terminal_snr=True)


@pytest.mark.parametrize("case", VECTORS["schedule"], ids=lambda case: f"t{case['t']}")
def test_schedule_at_a_timestep(case: dict[str, Any]) -> None:
    t = case["t"]
    assert PLAIN.alphas_cumprod[t].item() == pytest.approx(case["alphas_cumprod"], rel=1e-6)
    assert PLAIN.all_snr[t].item() == pytest.approx(case["all_snr"], rel=1e-5)
    zero = case["zero_terminal"]
    assert ZERO.alphas_cumprod[t].item() == pytest.approx(zero["alphas_cumprod"], rel=1e-5)
    assert ZERO.all_snr[t].item() == pytest.approx(zero["all_snr_unchanged_when_prepared_before"], rel=1e-5)
    if t:
        for schedule, beta in ((PLAIN, case["beta"]), (ZERO, zero["beta"])):
            ratio = schedule.alphas_cumprod[t] / schedule.alphas_cumprod[t - 1]
            assert 1 - ratio.item() == pytest.approx(beta, rel=1e-3)


def test_schedule_totals() -> None:
    wanted = VECTORS["schedule_totals"]
    assert PLAIN.alphas_cumprod.double().sum().item() == pytest.approx(wanted["alphas_cumprod_sum"], rel=1e-5)
    assert PLAIN.all_snr.double().sum().item() == pytest.approx(wanted["all_snr_sum"], rel=1e-5)
    assert ZERO.alphas_cumprod.double().sum().item() == pytest.approx(
        wanted["zero_terminal_alphas_cumprod_sum"], rel=1e-5
    )
    rescaled = snr_of(ZERO.alphas_cumprod)
    for t, snr in wanted["zero_terminal_all_snr_t"].items():
        assert rescaled[int(t)].item() == pytest.approx(snr, rel=1e-4)


@pytest.mark.parametrize("case", VECTORS["add_noise_velocity"], ids=lambda case: f"seed{case['seed']}")
def test_add_noise_and_velocity(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    latents, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps = torch.tensor(case["timesteps"])
    check_tensor(PLAIN.add_noise(latents, noise, timesteps), case["add_noise"])
    check_tensor(PLAIN.velocity(latents, noise, timesteps), case["velocity"])
    check_tensor(ZERO.add_noise(latents, noise, timesteps), case["add_noise_zero_terminal"])
    check_tensor(ZERO.velocity(latents, noise, timesteps), case["velocity_zero_terminal"])


@pytest.mark.parametrize("case", VECTORS["noise_offset"], ids=str)
def test_noise_offset(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    latents, noise = torch.randn(case["shape"]), torch.randn(case["shape"])
    found = offset_noise(latents, noise, case["noise_offset"], case["adaptive_noise_scale"])
    check_tensor(found, case["result"])
    assert torch.rand(1).item() == pytest.approx(case["next_torch_rand"], rel=1e-6)


@pytest.mark.parametrize("case", VECTORS["multires_noise"], ids=str)
def test_multires_noise(case: dict[str, Any]) -> None:
    random.seed(case["python_seed"])
    torch.manual_seed(case["seed"])
    found = pyramid_noise(torch.randn(case["shape"]), case["iterations"], case["discount"])
    check_tensor(found, case["result"])
    after = random.random()
    random.seed(case["python_seed"])
    drawn = [random.random() for _ in case["python_random_values"]]
    assert drawn == pytest.approx(case["python_random_values"])
    assert after == random.random()


@pytest.mark.parametrize(
    "case", VECTORS["prepare"], ids=lambda case: f"{case['version']}-{case['seed']}-{case['args']}"
)
def test_prepare(case: dict[str, Any]) -> None:
    random.seed(case["seed"])
    torch.manual_seed(case["seed"])
    latents = torch.randn(2, 4, 8, 8)
    if "error" in case:
        # The older program cannot draw from an empty range; the newer one takes the bound, and so do we.
        sample = prepare(latents, PLAIN, LossOptions(**case["args"]), "epsilon")
        assert sample.timesteps.tolist() == [case["args"]["max_timestep"]] * 2
        return
    sample = prepare(latents, PLAIN, LossOptions(**case["args"]), "epsilon")
    assert sample.timesteps.tolist() == case["timesteps"]["data"]
    check_tensor(sample.noise, case["noise"])
    check_tensor(sample.noisy, case["noisy_latents"])
    assert torch.equal(sample.target, sample.noise)
    assert torch.rand(1).item() == pytest.approx(case["next_torch_rand"], rel=1e-6)
    assert random.random() == pytest.approx(case["next_python_random"], rel=1e-6)


def test_velocity_target_ignores_input_perturbation() -> None:
    torch.manual_seed(3)
    latents = torch.randn(2, 4, 8, 8)
    sample = prepare(latents, ZERO, LossOptions(ip_noise_gamma=0.1), "v_prediction")
    assert torch.equal(sample.target, ZERO.velocity(latents, sample.noise, sample.timesteps))
    assert not torch.equal(sample.noisy, ZERO.add_noise(latents, sample.noise, sample.timesteps))


def test_a_generator_leaves_the_global_streams_alone() -> None:
    options = LossOptions(noise_offset=0.1, multires_noise_iterations=6, ip_noise_gamma=0.1)
    torch.manual_seed(5)
    random.seed(5)
    wanted = (torch.rand(1).item(), random.random())
    torch.manual_seed(5)
    random.seed(5)
    latents = torch.ones(2, 4, 8, 8)
    first = prepare(latents, PLAIN, options, "epsilon", torch.Generator().manual_seed(1))
    second = prepare(latents, PLAIN, options, "epsilon", torch.Generator().manual_seed(1))
    other = prepare(latents, PLAIN, options, "epsilon", torch.Generator().manual_seed(2))
    assert torch.equal(first.noisy, second.noisy) and not torch.equal(first.noisy, other.noisy)
    assert (torch.rand(1).item(), random.random()) == wanted


def test_fixed_timesteps_are_taken() -> None:
    sample = prepare(torch.zeros(2, 4, 8, 8), PLAIN, LossOptions(), "epsilon", timesteps=torch.tensor([1, 999]))
    assert sample.timesteps.tolist() == [1, 999]


@pytest.mark.parametrize(
    ("low", "high", "key"), [(-1, 5, "min_timestep"), (1000, None, "min_timestep"), (0, 1001, "max_timestep")]
)
def test_timestep_bounds_are_checked(low: int, high: int | None, key: str) -> None:
    with pytest.raises(UserError) as caught:
        timestep_range(LossOptions(min_timestep=low, max_timestep=high), PLAIN)
    assert caught.value.key == key


def test_half_precision_latents_stay_half() -> None:
    sample = prepare(torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), PLAIN, LossOptions(noise_offset=0.1), "epsilon")
    assert sample.noisy.dtype == sample.noise.dtype == torch.bfloat16
