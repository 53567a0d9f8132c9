"""The loss on pictures that were set aside, always with the same noise and the same timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sd_scripts.data.batch import Batch
from sd_scripts.sampling.sampler import untouched_randomness
from sd_scripts.schema.validation import ValidationOptions
from sd_scripts.trainer.step import StepMaths

# Four timesteps spread evenly inside the schedule, its ends left out: 200, 400, 600, 800 of 1000.
_TIMESTEPS = 4


@dataclass
class Validation:
    """Measures the validation loss. `batches` starts the same pass over the same batches each time it is called.

    `length` is the number of batches of all processes together; the last process may get one of another again.
    """

    options: ValidationOptions
    maths: StepMaths
    predictor: nn.Module
    batches: Callable[[], Iterator[Batch]]
    seed: int
    length: int
    low: int = 0
    high: int = 1000

    def due(self, step: int, epoch: int | None = None) -> bool:
        """Every N steps and every N-th epoch, as asked; without either at the end of every epoch."""
        steps, epochs = self.options.validate_every_n_steps, self.options.validate_every_n_epochs
        if epoch is None:
            return bool(steps) and step % (steps or 1) == 0
        if not epochs and steps:
            return False
        return epoch % (epochs or 1) == 0

    def timesteps(self) -> list[int]:
        """The timesteps at which every picture is measured."""
        return [int(value) for value in np.linspace(self.low, self.high, _TIMESTEPS + 2, dtype=int)[1:-1]]

    @torch.no_grad()
    def measure(self, accelerator: Accelerator) -> float:
        """Mean loss over the validation batches and timesteps, the same on all processes.

        The training's random streams stand afterwards where they stood.
        """
        total, count = 0.0, 0
        with untouched_randomness(self.maths.device):
            for place, batch in enumerate(self.batches()):
                # The batch's place among those of all processes: it gets the same noise whoever measures it.
                number = place * accelerator.num_processes + accelerator.process_index
                if number >= self.length or number >= (self.options.max_validation_steps or self.length):
                    break
                for timestep in self.timesteps():
                    total += self._one(accelerator, batch, timestep, number)
                    count += 1
        if accelerator.num_processes > 1:
            both = accelerator.reduce(torch.tensor([total, float(count)], device=accelerator.device), reduction="sum")
            total, count = float(both[0]), int(both[1])
        return total / count if count else float("nan")

    def _one(self, accelerator: Accelerator, batch: Batch, timestep: int, number: int) -> float:
        # The VAE draws from the global stream; seeded here, an uncached picture has the same latents every time.
        torch.manual_seed(self.seed + number)
        generator = torch.Generator("cpu").manual_seed(self.seed + number)
        timesteps = torch.full((len(batch.captions),), timestep, dtype=torch.int64, device=self.maths.device)
        latents = self.maths.latents(batch)
        draw = partial(self.maths.draw, generator=generator, timesteps=timesteps)
        predictor = accelerator.unwrap_model(self.predictor)
        with accelerator.autocast():
            # Not by calling it: wrappers would exchange weights, and processes measure different numbers of batches.
            prediction, sample = predictor.forward(latents, batch, draw)
        return float(self.maths.losses(prediction, sample, batch).mean())
