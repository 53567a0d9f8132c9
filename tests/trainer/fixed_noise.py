"""Learning made visible in a few steps: every picture keeps its own noise, so that the loss can fall far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from runs import Finished

from sd_scripts.training import noise

STEPS, EPOCH = 40, 8


@contextmanager
def fixed_draws(monkeypatch: pytest.MonkeyPatch, timestep: int = 500) -> Iterator[None]:
    """Every picture gets its own noise, always the same, at one timestep: what is left to learn is four pairs."""
    prepare = noise.prepare

    def one(latents: torch.Tensor, schedule: Any, options: Any, prediction: str) -> noise.NoiseSample:
        seed = int(abs(float(latents.double().sum())) * 1e4) % 2**31  # the picture's own
        generator = torch.Generator("cpu").manual_seed(seed)
        return prepare(latents, schedule, options, prediction, generator, torch.full((1,), timestep))

    def always(latents: torch.Tensor, schedule: Any, options: Any, prediction: str, *unused: Any) -> noise.NoiseSample:
        samples = [one(latents[number : number + 1], schedule, options, prediction) for number in range(len(latents))]
        names = ("noise", "noisy", "timesteps", "target")
        return noise.NoiseSample(*(torch.cat([getattr(item, name) for item in samples]) for name in names), None)

    with monkeypatch.context() as patch:
        patch.setattr(noise, "prepare", always)
        yield


def fall(finished: Finished) -> float:
    """Loss of the last epoch as a share of that of the first; each shows all four pictures twice."""
    losses = finished.losses
    assert len(losses) >= 2 * EPOCH and len(losses) % EPOCH == 0
    return sum(losses[-EPOCH:]) / sum(losses[:EPOCH])
