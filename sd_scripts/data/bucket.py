"""Which pictures share a batch and in which order batches come, epoch by epoch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sd_scripts.schema.buckets import Size
from sd_scripts.schema.steps import batch_count


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Place of a batch before shuffling: its bucket and its number inside the bucket."""

    bucket: int
    number: int


class BatchOrder:
    """Batches of one dataset, shuffled again for every epoch.

    The order of an epoch follows from (seed, epoch) alone: epoch 0 is the order after sorting into buckets, and every
    epoch shuffles the order of the one before with the seed `seed + epoch`, first the batches, then the pictures of
    each bucket. So an interrupted run finds the same order again.

    Args:
        members: for every bucket the numbers of its pictures, each as often as it is repeated.
        batch_size: pictures in a batch; the last batch of a bucket may be smaller.
        seed: of the dataset.
    """

    def __init__(self, members: Sequence[Sequence[int]], batch_size: int, seed: int) -> None:
        self._source = [list(bucket) for bucket in members]
        self._batch_size = batch_size
        self._seed = seed
        self._length = batch_count((len(bucket) for bucket in self._source), batch_size)
        self._restart()

    def __len__(self) -> int:
        return self._length

    def _restart(self) -> None:
        self._epoch = -1
        self._buckets = [list(bucket) for bucket in self._source]
        self._keys = [
            BatchKey(index, number)
            for index, bucket in enumerate(self._source)
            for number in range(batch_count([len(bucket)], self._batch_size))
        ]

    def _go_to(self, epoch: int) -> None:
        if epoch < self._epoch:
            self._restart()
        while self._epoch < epoch:
            self._epoch += 1
            rng = random.Random(self._seed + self._epoch)
            rng.shuffle(self._keys)
            for bucket in self._buckets:
                rng.shuffle(bucket)

    def pictures(self, epoch: int, index: int) -> list[int]:
        """Numbers of the pictures in batch `index` of an epoch."""
        self._go_to(epoch)
        key = self._keys[index]
        start = key.number * self._batch_size
        return self._buckets[key.bucket][start : start + self._batch_size]

    def bucket_of(self, epoch: int, index: int) -> int:
        """Number of the bucket that batch `index` of an epoch comes from."""
        self._go_to(epoch)
        return self._keys[index].bucket


@dataclass(frozen=True)
class BucketCount:
    """A bucket's size and how many pictures it holds, repeats included."""

    size: Size
    count: int


def shuffled_batches(count: int, seed: int, epoch: int) -> list[int]:
    """Order in which the batches 0..count-1 of all datasets together are trained in an epoch (from 1).

    It is the order of the `epoch`-th pass of a shuffling PyTorch loader after `torch.manual_seed(seed)`,
    but from a generator of its own, so that no other draw can change it.
    """
    generator = torch.Generator().manual_seed(seed)
    permutation_seed = 0
    for _ in range(epoch):
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # a loader draws its workers' seed first
        permutation_seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(permutation_seed)).tolist()
    return order


def share_of_process(order: Sequence[int], index: int, processes: int) -> list[int]:
    """The batches that one of several processes trains: every n-th, with first ones again so that all have as many."""
    if not order:
        return []
    missing = -len(order) % processes
    filled = list(order) + [order[i % len(order)] for i in range(missing)]
    return filled[index::processes]
