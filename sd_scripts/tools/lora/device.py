"""Where tools compute: the device that was asked for, and all cores of the processor at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from sd_scripts.schema.errors import UserError

_T = TypeVar("_T")
_R = TypeVar("_R")


def computing_device(name: str | None, key: str = "device") -> torch.device:
    """The device of that name, the CPU without one.

    Raises:
        UserError: this computer does not have it.
    """
    if not name:
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{key} is {name!r}, which this computer does not have.", key, "cpu is always there, and the default."
        ) from error
    return device


def in_parallel(work: Callable[[_T], _R], items: Iterable[_T], device: torch.device) -> Iterator[_R]:
    """`work` on every item, results in order, as many at once as torch has threads; on other devices one by one.

    Matrices of a network are too small for torch to share one among threads well. Few items wait at any time, so that
    an iterator which loads them loads little ahead.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[_R]] = deque()
    with one_thread_each(threads), ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def one_thread_each(threads: int) -> Iterator[None]:
    """Inside, torch computes with one thread wherever it is called from; afterwards with `threads` again."""
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
