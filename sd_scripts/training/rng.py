"""The random streams of a process: noting where they stand, and putting them back.

The names inside are those of accelerate's `random_states_<process>.pkl`, so either program can read the other's file.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sd_scripts.schema.errors import UserError

_NEEDED = ("random_state", "numpy_random_seed", "torch_manual_seed")


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
    """Where the streams of Python, numpy, torch and every CUDA device stand."""
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


def _tuples(value: Any) -> Any:
    """Lists to tuples, all the way down: Python's own stream accepts only those."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def restore(state: Mapping[str, Any]) -> None:
    """Put the streams where `capture` found them. CUDA streams are left alone if the number of devices differs.

    Raises UserError when something is missing or has the wrong form.
    """
    missing = [name for name in _NEEDED if name not in state]
    if missing:
        raise UserError(f"The saved random state lacks {', '.join(missing)}.", "resume")
    try:
        random.setstate(_tuples(state["random_state"]))
        np.random.set_state(state["numpy_random_seed"])
        torch.set_rng_state(state["torch_manual_seed"].cpu())
        devices = state.get("torch_cuda_manual_seed") or []
        if torch.cuda.is_available() and len(devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([device.cpu() for device in devices])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"The saved random state cannot be used: {error}.", "resume") from error
