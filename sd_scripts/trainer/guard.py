"""Agreement between processes, once a step: is every number finite, and what did the person ask for?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

_ASKED = ("stop", "save", "sample")


class NotFiniteError(Exception):
    """The loss or a gradient became NaN or infinite.

    Args:
        what: "loss" or "gradient".
        step: optimizer step in which it happened, counted from 1.
        paths: pictures of the batches involved.
    """

    def __init__(self, what: str, step: int, paths: list[str]) -> None:
        self.what, self.step, self.paths = what, step, paths
        shown = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
        super().__init__(f"The {what} became NaN or infinite at step {step}; the batch was {shown}.")


@dataclass(frozen=True)
class Agreement:
    """What all processes know after a step: the mean loss, whether all is finite, and the requests."""

    loss: float
    finite: bool
    requests: frozenset[str]


def agree(accelerator: Accelerator, loss: float, finite: bool, requests: list[str]) -> Agreement:
    """Share one process's figures with all. Only the first process's requests count; one exchange of 5 numbers."""
    if accelerator.num_processes == 1:
        return Agreement(loss, finite and math.isfinite(loss), frozenset(requests))
    fine = finite and math.isfinite(loss)
    flags = [float(name in requests) for name in _ASKED]
    numbers = torch.tensor([loss if fine else 0.0, float(not fine), *flags], device=accelerator.device)
    total = accelerator.reduce(numbers, reduction="sum").tolist()
    asked = frozenset(name for name, count in zip(_ASKED, total[2:]) if count)
    return Agreement(total[0] / accelerator.num_processes, total[1] == 0, asked)


def all_paths(accelerator: Accelerator, paths: list[str]) -> list[str]:
    """The pictures of every process's batch."""
    return paths if accelerator.num_processes == 1 else [str(path) for path in gather_object(paths)]
