"""The random streams of a process: starting them for a run and for each batch, and noting where they stand."""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Start all streams from `seed`, the same in every process, as sd-scripts does."""
    number = seed % 2**64
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def seed_batch(seed: int, epoch: int, position: int) -> None:
    """Start all streams anew for one batch: noise, timesteps and dropouts follow from its place in the run alone.

    So they are the same whether one process goes through the batches or several share them, and after resuming.

    Args:
        seed: of the run.
        epoch, position: the batch's place, counted over all processes.
    """
    text = f"{seed}/{epoch}/{position}"
    seed_everything(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def capture() -> dict[str, Any]:
    """Where the streams of Python, numpy, torch and every CUDA device stand, by accelerate's names.

    Written into states for accelerate; our own runs start the streams anew for every batch.
    """
    kind, key, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "random_state": random.getstate(),
        # As a list, since an array could only be read back by a loader that runs more of pickle.
        "numpy_random_seed": (kind, [int(word) for word in key], int(position), int(has_gauss), float(gauss)),
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    return state
