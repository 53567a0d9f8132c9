"""Which pictures share a batch and in which order batches come, epoch by epoch."""

import random
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from sd_scripts.schema.buckets import Size
from sd_scripts.schema.steps import batch_count


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

    def __init__(self, members: Sequence[Iterable[int]], batch_size: int, seed: int) -> None:
        self._source = [array("i", bucket) for bucket in members]
        self._batch_size = batch_size
        self._seed = seed
        self._firsts = list(accumulate((batch_count([len(b)], batch_size) for b in self._source), initial=0))
        self._restart()

    def __len__(self) -> int:
        return self._firsts[-1]

    def _restart(self) -> None:
        self._epoch = -1
        self._buckets = self._source
        self._batches = array("i", range(len(self)))

    def _go_to(self, epoch: int) -> None:
        if epoch < self._epoch:
            self._restart()
        if epoch == self._epoch:
            return
        batches, buckets = self._batches.tolist(), [bucket.tolist() for bucket in self._buckets]
        while self._epoch < epoch:
            self._epoch += 1
            rng = random.Random(self._seed + self._epoch)
            shuffle(batches, rng)
            for bucket in buckets:
                shuffle(bucket, rng)
        self._batches, self._buckets = array("i", batches), [array("i", bucket) for bucket in buckets]

    def pictures(self, epoch: int, index: int) -> list[int]:
        """Numbers of the pictures in batch `index` of an epoch."""
        bucket = self.bucket_of(epoch, index)
        start = (self._batches[index] - self._firsts[bucket]) * self._batch_size
        return self._buckets[bucket][start : start + self._batch_size].tolist()

    def bucket_of(self, epoch: int, index: int) -> int:
        """Number of the bucket that batch `index` of an epoch comes from."""
        self._go_to(epoch)
        return bisect_right(self._firsts, self._batches[index]) - 1


def shuffle(items: list[int], rng: random.Random) -> None:
    """As `rng.shuffle(items)`: it asks for the same bits in the same order, without two calls for every item."""
    bits = rng.getrandbits
    for last in range(len(items) - 1, 0, -1):
        width = (last + 1).bit_length()
        other = bits(width)
        while other > last:
            other = bits(width)
        items[last], items[other] = items[other], items[last]


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
