"""Tensors that are read when they are written.

A lazy tensor has a shape and a type, and remembers how it is made: read from a file, and then cut, turned or joined.
The code that renames and reshapes whole models works on them as on others, and nothing is read until `made`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sd_scripts.models.weights import Weights
from sd_scripts.tensormap import MappedTensors, open_tensors

Make = Callable[[], Tensor]


class Lazy(Tensor):
    """A tensor without numbers yet.

    Attributes:
        make: gives the numbers; the result may be a view of a file and is never written into.
    """

    make: Make

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, make: Make) -> Lazy:
        """A lazy tensor of that shape and type, on the CPU."""
        made = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype)
        made.make = make
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Shape and type; the numbers are not there."""
        return f"Lazy({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls,
        function: Any,
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Do to shapes what was asked for, and remember to do it to the numbers."""
        named = keywords or {}
        shapes = tree_map(_shape_of, (arguments, named))
        outcome = function(*shapes[0], **shapes[1])

        def make(place: int | None) -> Make:
            def done() -> Tensor:
                real = tree_map(made, (arguments, named))
                result = function(*real[0], **real[1])
                return result if place is None else result[place]

            return done

        if isinstance(outcome, Tensor):
            return cls(outcome.shape, outcome.dtype, make(None))
        return type(outcome)(cls(each.shape, each.dtype, make(place)) for place, each in enumerate(outcome))


def _shape_of(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def made(value: Any) -> Any:
    """The numbers of a lazy tensor; anything else as it is."""
    return value.make() if isinstance(value, Lazy) else value


class LazyWeights(Weights):
    """A weight file whose tensors are lazy.

    Attributes:
        tensors: the file.
    """

    def __init__(self, tensors: MappedTensors) -> None:
        self.tensors = tensors
        self.shapes, self.counts = tensors.shapes, tensors.counts

    def take(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Lazy tensors in the types of the file. Raises ValueError for another type, which is given when writing."""
        if dtype is not None:
            raise ValueError("lazy tensors have the types of their file")
        return {name: self._lazy(name) for name in names}

    def _lazy(self, name: str) -> Lazy:
        return Lazy(self.tensors.shapes[name], self.tensors.dtypes[name], lambda: self.tensors.get(name))


class LazyFiles:
    """Opens weight files lazily and keeps account of them.

    Attributes:
        opened: all files opened so far.
    """

    def __init__(self) -> None:
        self.opened: list[MappedTensors] = []

    def __call__(self, path: Path, key: str | None) -> Weights:
        """A weight file; an `Opener`. Raises UserError."""
        tensors = open_tensors(path, key)
        self.opened.append(tensors)
        return LazyWeights(tensors)

    def forget(self) -> None:
        """Give the memory behind all tensors back to the system."""
        for tensors in self.opened:
            tensors.forget()

    def close(self) -> None:
        """Let the files go."""
        for tensors in self.opened:
            tensors.close()
