"""How many batches, optimiser steps and epochs a run has. Plain arithmetic, shared by page and trainers."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepPlan:
    """Length of a run.

    batches: batches of all processes in one epoch; steps_per_epoch: optimiser steps in one epoch; total_steps: where
    training ends; epochs: epochs begun until then; total_batch_size: pictures that go into one optimiser step.
    """

    batches: int
    steps_per_epoch: int
    total_steps: int
    epochs: int
    total_batch_size: int


def batch_count(bucket_counts: Iterable[int], batch_size: int) -> int:
    """Batches of one epoch. A batch holds pictures of one bucket; counts include repeats."""
    return sum(math.ceil(count / batch_size) for count in bucket_counts)


def steps_per_epoch(batches: int, processes: int = 1, accumulation: int = 1) -> int:
    """Optimiser steps in one epoch: every process takes its share of the batches, the last one filled up."""
    return math.ceil(math.ceil(batches / processes) / accumulation)


def plan_steps(
    batches: int,
    *,
    batch_size: int = 1,
    max_train_steps: int = 1600,
    max_train_epochs: int | None = None,
    processes: int = 1,
    accumulation: int = 1,
) -> StepPlan:
    """Length of a run from the two limits; a limit in epochs wins over one in steps. `batches` is at least 1."""
    per_epoch = steps_per_epoch(batches, processes, accumulation)
    if per_epoch < 1:
        return StepPlan(batches, 0, 0, 0, batch_size * processes * accumulation)
    total = max_train_epochs * per_epoch if max_train_epochs is not None else max_train_steps
    return StepPlan(batches, per_epoch, total, math.ceil(total / per_epoch), batch_size * processes * accumulation)


def balance_regularisation(target: int, repeats: Sequence[int]) -> list[int]:
    """Repeats of every regularisation picture so that they add up to `target`, the training pictures times repeats.

    `repeats` are the repeats that each picture's folder asks for. First every picture gets those, in order, until the
    target is reached or passed; then rounds of one more each. Pictures that are not reached get 0 and are left out.
    """
    counts = [0] * len(repeats)
    if not repeats:
        return counts
    reached = 0
    for index, wanted in enumerate(repeats):
        if reached >= target:
            return counts
        counts[index] = wanted
        reached += wanted
    rounds, rest = divmod(max(0, target - reached), len(repeats))
    return [count + rounds + (1 if index < rest else 0) for index, count in enumerate(counts)]


def set_aside(count: int, split: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the pictures of a subset that are trained, and of those that are kept for validation.

    Args:
        count: pictures of the subset.
        split: the share that is kept for validation, 0 to 1; with 0 all are trained, in their order.
        seed: decides which ones are kept.
    """
    numbers = list(range(count))
    if split <= 0:
        return numbers, []
    random.Random(seed).shuffle(numbers)
    cut = count - round(count * split)
    return numbers[:cut], numbers[cut:]
