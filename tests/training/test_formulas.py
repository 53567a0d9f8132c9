"""The published formulas, worked out here in float64, against what the trainers compute.

Nothing of the program is used for the expected side. Where a weight follows from comparing what is predicted (the
picture, the noise or the velocity), that comparison is made with numbers instead of repeating the weight.

Notation: a = sqrt(alphas_cumprod[t]) scales the picture, s = sqrt(1 - alphas_cumprod[t]) the noise, so that
x_t = a * x_0 + s * noise and SNR = a^2 / s^2.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_scripts.schema.loss import LossOptions
from sd_scripts.training.loss import per_sample
from sd_scripts.training.noise import NoiseSample, Schedule, prepare

STEPS, FIRST_BETA, LAST_BETA = 1000, 0.00085, 0.012
TIMES = [0, 1, 20, 150, 400, 700, 950, 999]
SHAPE = (len(TIMES), 4, 6, 10)
PLAIN = Schedule.scaled_linear()


def products() -> Tensor:
    """alphas_cumprod of Stable Diffusion: betas whose square roots rise linearly (Rombach et al. 2022, code)."""
    total, found = 1.0, []
    for step in range(STEPS):
        share = step / (STEPS - 1)
        root = math.sqrt(FIRST_BETA) * (1 - share) + math.sqrt(LAST_BETA) * share
        total *= 1.0 - root * root
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def scales(times: list[int], table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a and s of timesteps, [B,1,1,1]."""
    product = (products() if table is None else table)[times].reshape(-1, 1, 1, 1)
    return product.sqrt(), (1 - product).sqrt()


def mean_square(values: Tensor) -> Tensor:
    """[B]"""
    return (values**2).mean(dim=(1, 2, 3))


def check_close(found: Tensor, expected: Tensor, rel: float = 2e-5, absolute: float = 1e-6) -> None:
    assert expected.dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=rel, atol=absolute)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """What torch draws after this seed, tensor by tensor, in float64."""
    torch.manual_seed(seed)
    return [torch.randn(shape).double() for shape in shapes]


class Case:
    """A batch at the timesteps TIMES: picture, noise, what the model said, in float64."""

    def __init__(self, kind: str, table: Tensor | None = None) -> None:
        self.kind = kind
        self.a, self.s = scales(TIMES, table)
        self.picture, self.noise, error = drawn(1, SHAPE, SHAPE, SHAPE)
        self.noisy = self.a * self.picture + self.s * self.noise
        self.velocity = self.a * self.noise - self.s * self.picture  # Salimans and Ho 2022
        self.target = self.velocity if kind == "v_prediction" else self.noise
        self.said = self.target + 0.3 * error

    @property
    def snr(self) -> Tensor:
        return (self.a**2 / self.s**2).flatten()

    @property
    def said_noise(self) -> Tensor:
        """The noise that the prediction amounts to."""
        return self.s * self.noisy + self.a * self.said if self.kind == "v_prediction" else self.said

    @property
    def said_picture(self) -> Tensor:
        return (self.noisy - self.s * self.said_noise) / self.a

    @property
    def said_velocity(self) -> Tensor:
        return self.a * self.said_noise - self.s * self.said_picture

    def loss(self, **options: Any) -> Tensor:
        """What the program says, [B]."""
        single = (value.float() for value in (self.noise, self.noisy, self.target))
        noise, noisy, target = single
        sample = NoiseSample(noise, noisy, torch.tensor(TIMES), target, None)
        return per_sample(self.said.float(), sample, LossOptions(**options), PLAIN, self.kind)


def test_schedule_and_snr() -> None:
    table = products()
    check_close(PLAIN.alphas_cumprod, table)
    check_close(PLAIN.all_snr, table / (1 - table), rel=1e-4)


def rescaled() -> Tensor:
    """Zero terminal SNR, algorithm 1 of Lin et al. 2024 ("Common Diffusion Noise Schedules ..."), on a."""
    a = products().sqrt()
    first, last = a[0].item(), a[-1].item()
    return ((a - last) * first / (first - last)) ** 2


def test_zero_terminal_snr() -> None:
    found, expected = Schedule.scaled_linear(zero_terminal_snr=True).alphas_cumprod, rescaled()
    assert found[-1].item() == 0.0
    check_close(found[:1], products()[:1])
    check_close(found, expected, rel=1e-4, absolute=1e-8)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_and_targets(kind: str, zero_terminal: bool) -> None:
    """Also at the last step of zero terminal SNR, where there is nothing but noise and v is minus the picture."""
    picture, noise = drawn(5, SHAPE, SHAPE)
    schedule = Schedule.scaled_linear(zero_terminal_snr=zero_terminal)
    torch.manual_seed(5)
    latents = torch.randn(SHAPE)
    sample = prepare(latents, schedule, LossOptions(), kind, timesteps=torch.tensor(TIMES))
    a, s = scales(TIMES, rescaled() if zero_terminal else None)
    check_close(sample.noisy, a * picture + s * noise, absolute=2e-5)
    check_close(sample.target, a * noise - s * picture if kind == "v_prediction" else noise, absolute=2e-5)
    if zero_terminal and kind == "v_prediction":
        check_close(sample.noisy[-1], noise[-1])
        check_close(sample.target[-1], -picture[-1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr(kind: str, gamma: float) -> None:
    """Hang et al. 2023: the error of the predicted picture counts min(SNR, gamma) times, whatever is predicted."""
    case = Case(kind)
    picture_error = mean_square(case.picture - case.said_picture)
    check_close(case.loss(min_snr_gamma=gamma), case.snr.clamp(max=gamma) * picture_error, rel=1e-4)
    check_close(case.loss(), mean_square(case.target - case.said))


def test_debiased_estimation() -> None:
    """Yu et al. 2023: an error of the predicted noise counts 1 / sqrt(SNR) times; the SNR is taken as at most 1000."""
    case = Case("epsilon")
    error = mean_square(case.noise - case.said_noise)
    check_close(case.loss(debiased_estimation_loss=True), error / case.snr.clamp(max=1000).sqrt(), rel=1e-4)
    assert case.snr[0] > 1000 > case.snr[2]


def test_debiased_estimation_of_velocity() -> None:
    """An error of the velocity counts 1 / (SNR + 1) times: that is the error of the predicted picture."""
    case = Case("v_prediction")
    found = case.loss(debiased_estimation_loss=True)
    below = case.snr <= 1000
    check_close(found[below], mean_square(case.picture - case.said_picture)[below], rel=1e-4)
    check_close(found[~below], mean_square(case.velocity - case.said)[~below] / 1001)


def test_velocity_loss_scaled_like_noise_loss() -> None:
    """The loss is what it would be, had the noise been predicted; the SNR is taken as at most 1000."""
    case = Case("v_prediction")
    found = case.loss(scale_v_pred_loss_like_noise_pred=True)
    below = case.snr <= 1000
    check_close(found[below], mean_square(case.noise - case.said_noise)[below], rel=1e-4)
    check_close(found[~below], mean_square(case.velocity - case.said)[~below] * 1000 / 1001)


def test_noise_loss_with_a_share_of_velocity_loss() -> None:
    """`factor` times what the loss would be, had the velocity been predicted, is added."""
    case, factor = Case("epsilon"), 0.4
    noise_error, velocity_error = (
        mean_square(case.noise - case.said_noise),
        mean_square(case.velocity - case.said_velocity),
    )
    below = case.snr <= 1000
    found = case.loss(v_pred_like_loss=factor)
    check_close(found[below], (noise_error + factor * velocity_error)[below], rel=1e-4)
    check_close(found[~below], noise_error[~below] * (1 + factor * 1001 / 1000))


def prepared(seed: int, latents: Tensor, **options: Any) -> NoiseSample:
    torch.manual_seed(seed)
    random.seed(seed)
    return prepare(latents, PLAIN, LossOptions(**options), "epsilon", timesteps=torch.tensor(TIMES))


def test_noise_offset() -> None:
    """Guttenberg 2023: noise + offset * randn(B, C, 1, 1)."""
    noise, constant = drawn(2, SHAPE, (*SHAPE[:2], 1, 1))
    latents = torch.zeros(SHAPE)
    check_close(prepared(2, latents, noise_offset=0.1).noise, noise + 0.1 * constant)


def test_noise_offset_of_random_strength() -> None:
    torch.manual_seed(3)
    noise, strength, constant = torch.randn(SHAPE), torch.rand(1), torch.randn(*SHAPE[:2], 1, 1)
    expected = noise.double() + 0.1 * strength.double() * constant.double()
    found = prepared(3, torch.zeros(SHAPE), noise_offset=0.1, noise_offset_random_strength=True).noise
    check_close(found, expected)


@pytest.mark.parametrize("scale", [0.05, -0.2])
def test_adaptive_noise_scale(scale: float) -> None:
    """The offset grows with the distance of each channel's mean from 0, and never falls below 0."""
    (latents,) = drawn(9, SHAPE)
    latents = latents + torch.linspace(-2, 2, SHAPE[1], dtype=torch.float64).reshape(1, -1, 1, 1)
    noise, constant = drawn(4, SHAPE, (*SHAPE[:2], 1, 1))
    strength = (0.1 + scale * latents.mean(dim=(2, 3), keepdim=True).abs()).clamp(min=0)
    assert bool((strength == 0).any()) == (scale < 0)
    found = prepared(4, latents.float(), noise_offset=0.1, adaptive_noise_scale=scale).noise
    check_close(found, noise + strength * constant)


def blown_up(small: Tensor, height: int, width: int) -> Tensor:
    """Bilinear enlargement of [B,C,h,w]: pixel centres are matched, and edges repeated."""

    def weights(old: int, new: int) -> Tensor:
        matrix = torch.zeros(new, old, dtype=torch.float64)
        for row in range(new):
            centre = min(max((row + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(centre)
            high = min(low + 1, old - 1)
            matrix[row, low] += 1 - (centre - low)
            matrix[row, high] += centre - low
        return matrix

    return weights(small.shape[2], height) @ small @ weights(small.shape[3], width).T


@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (4, 0.3), (6, 0.8)])
def test_pyramid_noise(iterations: int, discount: float) -> None:
    """Whitaker 2023: level i is noise of 1/r^i the size, r drawn from 2 to 4, counted discount^i times; deviation 1."""
    shape = (len(TIMES), 4, 32, 48)
    torch.manual_seed(6)
    random.seed(6)
    total = torch.randn(shape).double()
    levels = 0
    for level in range(iterations):
        ratio = (2 + 2 * random.random()) ** level
        rows, columns = max(1, int(32 / ratio)), max(1, int(48 / ratio))
        total = total + blown_up(torch.randn(*shape[:2], rows, columns).double(), 32, 48) * discount**level
        levels += 1
        if 1 in (rows, columns):
            break
    assert levels == iterations or 1 in (rows, columns)
    centred = total - total.mean()
    deviation = ((centred**2).sum() / (total.numel() - 1)).sqrt()
    found = prepared(
        6, torch.zeros(shape), multires_noise_iterations=iterations, multires_noise_discount=discount
    ).noise
    check_close(found, total / deviation, rel=1e-4, absolute=1e-5)
    assert found.std().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("random_strength", [False, True])
def test_input_perturbation(random_strength: bool) -> None:
    """Ning et al. 2023: x_t is made with noise + gamma * xi, while the noise alone is to be predicted."""
    torch.manual_seed(8)
    noise = torch.randn(SHAPE).double()
    gamma = 0.1 * torch.rand(1).double() if random_strength else 0.1
    more = torch.randn(SHAPE).double()
    (picture,) = drawn(11, SHAPE)
    sample = prepared(8, picture.float(), ip_noise_gamma=0.1, ip_noise_gamma_random_strength=random_strength)
    a, s = scales(TIMES)
    check_close(sample.noisy, a * picture + s * (noise + gamma * more), absolute=2e-5)
    check_close(sample.target, noise)


def thresholds(schedule: str, smallest: float) -> Tensor:
    """Where the loss turns from a parabola into a straight line, [B] (Khrapov et al. 2024, and its SNR form)."""
    times = torch.tensor(TIMES, dtype=torch.float64)
    a, s = scales(TIMES)
    return {
        "constant": torch.full((len(TIMES),), smallest, dtype=torch.float64),
        "exponential": smallest ** (times / STEPS),
        "snr": (1 - smallest) / (1 + (s / a).flatten()) ** 2 + smallest,
    }[schedule]


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_huber(loss_type: str, schedule: str, scale: float) -> None:
    """The pseudo-Huber loss 2c(sqrt(d^2 + c^2) - c); smooth_l1 is that without the factor c."""
    noise, error = drawn(12, SHAPE, SHAPE)
    options = LossOptions(loss_type=loss_type, huber_schedule=schedule, huber_c=0.15, huber_scale=scale)
    torch.manual_seed(12)
    sample = prepare(torch.zeros(SHAPE), PLAIN, options, "epsilon", timesteps=torch.tensor(TIMES))
    c = thresholds(schedule, 0.15).reshape(-1, 1, 1, 1) * scale
    bowl = 2 * ((error**2 + c**2).sqrt() - c)
    expected = (c * bowl if loss_type == "huber" else bowl).mean(dim=(1, 2, 3))
    check_close(per_sample((noise + error).float(), sample, options, PLAIN, "epsilon"), expected, rel=1e-4)
    assert sample.huber_c is not None
    assert sample.huber_c[0].item() == pytest.approx((0.15 if schedule == "constant" else 1.0) * scale, rel=0.06)
