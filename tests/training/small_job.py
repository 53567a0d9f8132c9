"""A small training that draws from every random stream, for tests that interrupt it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training import optimizers, schedulers
from sd_scripts.training.checkpoint import LoadedState, StateParts, load_state, save_state
from sd_scripts.training.loss import LossRecorder
from sd_scripts.training.rng import seed_everything


class Job:
    """A small training with dropout, a scheduler and all kinds of random draws."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, **given: Any) -> None:
        seed_everything(seed)
        options = OptimizerOptions(**{"learning_rate": 1e-2, "lr_scheduler": "cosine", **given})
        self.module = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.3), nn.Linear(64, 8)).to(dtype)
        self.module.register_buffer("alpha", torch.tensor(0.5))
        first, second = list(self.module[0].parameters()), list(self.module[2].parameters())
        groups = [ParameterGroup("unet", first, 1e-2), ParameterGroup("textencoder", second, 5e-3)]
        if options.optimizer_type in ("Prodigy",):
            groups = [ParameterGroup("unet", first + second, 1.0)]
        self.created = optimizers.create(groups, options)
        self.scheduler = schedulers.create(self.created, options, 40).scheduler
        self.recorder = LossRecorder()
        self.parts = StateParts(self.module, self.created, self.scheduler)
        self.step, self.dtype = 0, dtype

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            inputs = torch.randn(4, 8, dtype=self.dtype) * (1 + random.random()) + float(np.random.rand())
            loss = (self.module(inputs) - inputs).float().square().mean()
            loss.backward()
            self.created.optimizer.step()
            self.scheduler.step()
            self.created.optimizer.zero_grad(set_to_none=True)
            self.recorder.add(0, self.step % 5, loss.item())
            self.step += 1
            losses.append(self.recorder.average)
        return losses

    def save(self, folder: Path, **more: Any) -> Path:
        progress = {"epoch": 1, "batch": 3, "step": self.step, "recorder": self.recorder.state_dict()}
        return save_state(folder, self.parts, progress, **more)

    def load(self, folder: Path, **more: Any) -> LoadedState:
        loaded = load_state(folder, self.parts, **more)
        if loaded.progress:
            self.recorder.load_state_dict(loaded.progress["recorder"])
            self.step = loaded.progress["step"]
        self.draw_on(folder)
        return loaded

    @staticmethod
    def draw_on(folder: Path) -> None:
        """Put the random streams where the state noted them; a trainer starts them anew for every batch instead."""
        noted = folder / "random_states_0.pkl"
        if noted.exists() and (folder / "state.json").exists():
            streams = torch.load(noted, weights_only=True)
            version, words, gauss = streams["random_state"]
            random.setstate((version, tuple(words), gauss))
            np.random.set_state(streams["numpy_random_seed"])
            torch.set_rng_state(streams["torch_manual_seed"])
