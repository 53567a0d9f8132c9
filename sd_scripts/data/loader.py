"""Batches of an epoch for one process, prepared by worker processes, resumable at any batch."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sd_scripts.data.batch import Batch, make_batch
from sd_scripts.data.bucket import share_of_process, shuffled_batches
from sd_scripts.data.dataset import DatasetGroup


@dataclass(frozen=True)
class Request:
    """Which batch is wanted, and when it is used."""

    index: int
    epoch: int
    step: int
    max_steps: int


class _Batches(Dataset[Batch]):
    """Makes a batch for a request, in a worker process or here."""

    def __init__(self, group: DatasetGroup) -> None:
        self._group = group

    def __getitem__(self, request: Request) -> Batch:
        return make_batch(self._group, request.index, request.epoch, request.step, request.max_steps)


class _Requests(Sampler[Request]):
    """The requests of the epoch at hand. Lives in the main process, so workers can stay alive between epochs.

    order: numbers of the batches; epoch: as their draws count it; step: optimiser steps before the first of them.
    """

    def __init__(self, accumulation: int, max_steps: int) -> None:
        self._accumulation = accumulation
        self._max_steps = max_steps
        self.order: list[int] = []
        self.epoch = 1
        self.step = 0

    def __iter__(self) -> Iterator[Request]:
        for number, index in enumerate(self.order):
            yield Request(index, self.epoch, self.step + number // self._accumulation, self._max_steps)

    def __len__(self) -> int:
        return len(self.order)


def _start_worker(_: int) -> None:
    """OpenCV and torch with one thread each: the workers themselves use the cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class BatchLoader:
    """Gives this process's share of the batches of an epoch.

    Which batches come, in which order and with which draws, follows from the group's seed and the epoch alone: not
    from the number of workers, not from the global random generators, which are left alone.

    Args:
        group: the data sets; a validation group comes in fixed order and looks the same in every epoch.
        workers: processes that prepare batches, at most the number of cores; 0 prepares them here. With latents in
            memory there is nothing to prepare and none is started.
        persistent: keep the workers between epochs.
        process_index, num_processes: place of this training process among all.
        accumulation: batches of one optimiser step.
        max_train_steps: steps of the whole run, for a token warm-up given as a share.
    """

    def __init__(
        self,
        group: DatasetGroup,
        *,
        workers: int = 0,
        persistent: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
        accumulation: int = 1,
        max_train_steps: int = 0,
    ) -> None:
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process {process_index} of {num_processes}")
        self._group = group
        self._index = process_index
        self._processes = num_processes
        self._workers = 0 if group.latents_in_memory else max(0, min(workers, os.cpu_count() or 1))
        self._persistent = persistent and self._workers > 0
        self._requests = _Requests(accumulation, max_train_steps)
        self._loader: DataLoader[Batch] | None = None
        self._epoch = 1
        self._position = 0

    def __len__(self) -> int:
        """Batches of one epoch for this process; the same for every process."""
        return math.ceil(len(self._group) / self._processes)

    @property
    def workers(self) -> int:
        """Worker processes actually used."""
        return self._workers

    def order(self, epoch: int) -> list[int]:
        """Numbers of the batches that this process gets in an epoch (from 1), in order."""
        if epoch < 1:
            raise ValueError(f"epochs count from 1, not {epoch}")
        count = len(self._group)
        order = list(range(count)) if self._group.validation else shuffled_batches(count, self._group.seed, epoch)
        return share_of_process(order, self._index, self._processes)

    def epoch(self, epoch: int, start: int = 0, global_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch.

        Args:
            epoch: from 1.
            start: batches of this epoch that this process has used already; they are not prepared again.
            global_step: optimiser steps done before the first batch that is given.
        """
        self._requests.order = self.order(epoch)[start:]
        self._requests.epoch = 1 if self._group.validation else epoch
        self._requests.step = global_step
        self._epoch, self._position = epoch, start
        for batch in self._running_loader():
            self._position += 1
            yield batch

    def _running_loader(self) -> DataLoader[Batch]:
        if self._loader is not None and self._persistent:
            return self._loader
        extra: dict[str, Any] = {}
        if self._workers:
            extra = {"persistent_workers": self._persistent, "prefetch_factor": 2, "worker_init_fn": _start_worker}
        self._loader = DataLoader(
            _Batches(self._group),
            batch_size=None,
            sampler=self._requests,
            num_workers=self._workers,
            generator=torch.Generator(),  # else making an iterator draws from the global generator
            **extra,
        )
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: epoch, batches of it given here, and what must be the same on resuming."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._group.seed,
            "batches": len(self._group),
            "processes": self._processes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Take over a position. Returns sentences on what differs from then, so that the order is not the same."""
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        now = self.state_dict()
        names = {"seed": "the seed", "batches": "the number of batches", "processes": "the number of processes"}
        return [
            f"{text} was {state[key]} when the state was saved and is {now[key]} now: pictures come in another order"
            for key, text in names.items()
            if key in state and state[key] != now[key]
        ]

    def close(self) -> None:
        """End worker processes that were kept alive."""
        self._loader = None
