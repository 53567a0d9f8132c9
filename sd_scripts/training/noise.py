"""The noise schedule, and everything random that happens to latents before the model sees them.

Random numbers are drawn in the order of sd-scripts, from the global generators of torch and `random`, so that a seed
gives the same noise and the same timesteps in both programs. `generator` is for passes that must not disturb the
training's random stream (validation).
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions

PREDICTION_TYPES = ("epsilon", "v_prediction")


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B,1,1,...] with as many dimensions as `like`, on its device."""
    return values.to(like.device).reshape(-1, *([1] * (like.dim() - 1)))


def snr_of(alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio per timestep: (sqrt(a) / sqrt(1 - a))^2."""
    return (torch.sqrt(alphas_cumprod) / torch.sqrt(1.0 - alphas_cumprod)) ** 2


def _zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Shift and stretch sqrt(alphas_cumprod) so that the last step is pure noise and the first keeps its value.

    Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891). The products are
    rebuilt from the betas, as training frameworks do, so that both round alike.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    scaled = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([scaled[:1], scaled[1:] / scaled[:-1]])
    return torch.cumprod(1.0 - (1.0 - alphas), dim=0)


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise each timestep adds.

    `alphas_cumprod` [T] is what noising uses. `all_snr` [T] is what loss weights use; with zero-terminal SNR it stays
    that of the unchanged schedule, as in sd-scripts, because weights of an SNR of 0 would be infinite.
    """

    alphas_cumprod: Tensor
    all_snr: Tensor

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, steps: int = 1000, *, zero_terminal_snr: bool = False
    ) -> "Schedule":
        """The schedule of Stable Diffusion: the square roots of the betas rise linearly."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
        products = torch.cumprod(1.0 - betas, dim=0)
        return cls(_zero_terminal(products) if zero_terminal_snr else products, snr_of(products))

    @property
    def steps(self) -> int:
        """Number of timesteps, 1000 for Stable Diffusion."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule on another device."""
        return Schedule(self.alphas_cumprod.to(device), self.all_snr.to(device))

    def _scales(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        product = self.alphas_cumprod.to(device=like.device, dtype=like.dtype)[timesteps.to(like.device)]
        return _broadcast(product**0.5, like), _broadcast((1 - product) ** 0.5, like)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(a) * latents + sqrt(1 - a) * noise; shapes [B,C,H,W], [B,C,H,W], [B]."""
        signal, spread = self._scales(latents, timesteps)
        return signal * latents + spread * noise

    def velocity(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction, sqrt(a) * noise - sqrt(1 - a) * latents."""
        signal, spread = self._scales(latents, timesteps)
        return signal * noise - spread * latents


@dataclass(frozen=True, eq=False)
class NoiseSample:
    """What one step trains on. Tensors [B,C,H,W], `timesteps` [B] (int64), `huber_c` [B] or None for l1 and l2."""

    noise: Tensor
    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    huber_c: Tensor | None


class _Draws:
    """The random draws: from the global streams, or all from one generator."""

    def __init__(self, device: torch.device, generator: torch.Generator | None) -> None:
        self.device = device
        self.generator = generator

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        source = self.device if self.generator is None else self.generator.device
        drawn = torch.randn(shape, dtype=dtype, device=source, generator=self.generator)
        return drawn.to(self.device)

    def uniform(self) -> Tensor:
        source = self.device if self.generator is None else self.generator.device
        return torch.rand(1, device=source, generator=self.generator).to(self.device)

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """int64 numbers low <= x < high, drawn on the CPU so that a seed means the same on every device."""
        source = "cpu" if self.generator is None else self.generator.device
        return torch.randint(low, high, (count,), device=source, generator=self.generator).to(self.device)

    def python_uniform(self) -> float:
        return random.random() if self.generator is None else float(self.uniform())


def offset_noise(latents: Tensor, noise: Tensor, offset: float | Tensor, adaptive_scale: float | None) -> Tensor:
    """Add one random constant per image and channel to the noise, so that the model learns brightness.

    Args:
        latents: [B,C,H,W]; their mean per channel scales the offset when `adaptive_scale` is given.
        noise: [B,C,H,W].
        offset: strength; 0.05 to 0.1 is usual.
        adaptive_scale: added to `offset` times |mean|; the sum never falls below 0.
    """
    return _offset(latents, noise, offset, adaptive_scale, _Draws(latents.device, None))


def _offset(latents: Tensor, noise: Tensor, offset: float | Tensor, adaptive: float | None, draws: _Draws) -> Tensor:
    strength: float | Tensor = offset
    if adaptive is not None:
        brightness = torch.abs(latents.mean(dim=(2, 3), keepdim=True))
        strength = torch.clamp(offset + adaptive * brightness, min=0.0)
    return noise + strength * draws.normal(latents.shape[0], latents.shape[1], 1, 1, dtype=noise.dtype)


def pyramid_noise(noise: Tensor, iterations: int, discount: float) -> Tensor:
    """Add ever coarser noise (each `discount` times weaker) and scale back to unit deviation.

    The coarseness of every level is random: the side shrinks by r^i with r in 2..4. It ends early at one pixel.
    """
    return _pyramid(noise, iterations, discount, _Draws(noise.device, None))


def _pyramid(noise: Tensor, iterations: int, discount: float, draws: _Draws) -> Tensor:
    batch, channels, height, width = noise.shape
    total = noise
    for level in range(iterations):
        shrink = (draws.python_uniform() * 2 + 2) ** level
        rows, columns = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = draws.normal(batch, channels, rows, columns, dtype=noise.dtype)
        grown = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        total = total + grown * discount**level
        if rows == 1 or columns == 1:
            break
    return total / total.std()


def timestep_range(options: LossOptions, schedule: Schedule) -> tuple[int, int]:
    """The timesteps to draw from as low <= t < high; low == high means always `high`.

    Raises UserError when a bound lies outside the schedule.
    """
    low = 0 if options.min_timestep is None else options.min_timestep
    high = schedule.steps if options.max_timestep is None else options.max_timestep
    top = schedule.steps
    if not 0 <= low < top:
        raise UserError(f"min_timestep is {low}; it must lie between 0 and {top - 1}.", "min_timestep")
    if not 0 <= high <= top or (low >= high and high == top):
        raise UserError(f"max_timestep is {high}; it must lie between {low + 1} and {top}.", "max_timestep")
    return low, high


def _timesteps(options: LossOptions, schedule: Schedule, count: int, draws: _Draws) -> Tensor:
    low, high = timestep_range(options, schedule)
    if low < high:
        return draws.integers(low, high, count)
    return torch.full((count,), high, dtype=torch.int64, device=draws.device)


def huber_thresholds(timesteps: Tensor, schedule: Schedule, options: LossOptions) -> Tensor | None:
    """Where the Huber losses turn linear, per sample [B]; None for l1 and l2.

    `constant` is huber_c everywhere; `exponential` falls from 1 at timestep 0 to huber_c at the last one; `snr` falls
    with the noise level. All are multiplied by huber_scale.
    """
    if options.loss_type not in ("huber", "smooth_l1"):
        return None
    smallest = options.huber_c
    if options.huber_schedule == "constant":
        thresholds = torch.full(timesteps.shape, smallest, dtype=torch.float32, device=timesteps.device)
    elif options.huber_schedule == "exponential":
        rate = torch.log(torch.tensor(smallest, dtype=torch.float32, device=timesteps.device)) / schedule.steps
        thresholds = torch.exp(rate * timesteps)
    elif options.huber_schedule == "snr":
        product = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
        sigma = ((1.0 - product) / product) ** 0.5
        thresholds = (1 - smallest) / (1 + sigma) ** 2 + smallest
    else:
        raise UserError(
            f"huber_schedule is '{options.huber_schedule}'; it must be constant, exponential or snr.", "huber_schedule"
        )
    return thresholds * options.huber_scale


def prepare(
    latents: Tensor,
    schedule: Schedule,
    options: LossOptions,
    prediction_type: str,
    generator: torch.Generator | None = None,
    timesteps: Tensor | None = None,
) -> NoiseSample:
    """Draw noise and timesteps, and make the noisy latents and the target.

    Args:
        latents: [B,C,H,W], already multiplied by the model's latent scale.
        schedule: the noise schedule of the model.
        options: the loss section.
        prediction_type: "epsilon" (target is the noise) or "v_prediction".
        generator: draws from it alone; None draws from the global streams of torch and `random`.
        timesteps: fixed timesteps [B] instead of drawn ones (validation).

    Raises:
        UserError: timestep bounds or the Huber schedule make no sense.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction type {prediction_type!r} is not one of {PREDICTION_TYPES}")
    draws = _Draws(latents.device, generator)
    noise = draws.normal(*latents.shape, dtype=latents.dtype)
    if options.noise_offset:
        strength: float | Tensor = options.noise_offset
        if options.noise_offset_random_strength:
            strength = draws.uniform() * options.noise_offset
        noise = _offset(latents, noise, strength, options.adaptive_noise_scale, draws)
    if options.multires_noise_iterations:
        noise = _pyramid(noise, options.multires_noise_iterations, options.multires_noise_discount, draws)
    if timesteps is None:
        timesteps = _timesteps(options, schedule, latents.shape[0], draws)
    added = _perturbed(noise, options, draws) if options.ip_noise_gamma else noise
    noisy = schedule.add_noise(latents, added, timesteps)
    target = schedule.velocity(latents, noise, timesteps) if prediction_type == "v_prediction" else noise
    return NoiseSample(noise, noisy, timesteps, target, huber_thresholds(timesteps, schedule, options))


def _perturbed(noise: Tensor, options: LossOptions, draws: _Draws) -> Tensor:
    """Input perturbation: what is added differs a little from what must be predicted (arXiv 2301.11706)."""
    gamma: float | Tensor = options.ip_noise_gamma or 0.0
    if options.ip_noise_gamma_random_strength:
        gamma = draws.uniform() * gamma
    return noise + gamma * draws.normal(*noise.shape, dtype=noise.dtype)
