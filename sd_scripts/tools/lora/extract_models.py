"""Two models of one kind, layer by layer: what the tuned one adds to the original."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sd_scripts.models.modules import ModelFile, Place, open_model
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import say
from sd_scripts.tools.lora.merge import VERSIONS, listed, note_contradiction

_TABLES = ("token_embedding", "position_embedding", "positional_embedding")
BETWEEN_FORGETTING = 8  # layers read before their memory is given back


@dataclass(frozen=True)
class Loading:
    """How the weights are taken from the files.

    Attributes:
        dtype: format to round both to before they are compared; None takes them as stored.
        original, tuned: where the weights of each model are put before they are subtracted.
        device: where the differences are wanted.
    """

    dtype: torch.dtype | None
    original: torch.device
    tuned: torch.device
    device: torch.device


class Pair:
    """An original model and a tuned one. Use it as a context manager, or call `close`.

    Attributes:
        original, tuned: the models; layers go by the names and shapes of the original.
    """

    def __init__(self, original: ModelFile, tuned: ModelFile, loading: Loading) -> None:
        self.original, self.tuned, self._loading = original, tuned, loading

    @property
    def version(self) -> str:
        """ "sd1", "sd2" or "sdxl"."""
        return self.original.version

    @property
    def places(self) -> dict[str, Place]:
        """The layers of both, by kohya's names."""
        return {name: place for name, place in self.original.places.items() if name in self.tuned.places}

    def targets(self, conv: bool) -> list[str]:
        """The layers that networks.lora would train. Raises UserError if the tuned model lacks one of them."""
        names = self.original.targets(conv)
        missing = [name for name in names if name not in self.tuned.places]
        if missing:
            raise UserError(
                f"{self.tuned.path} lacks {listed(missing, 'layers')} that {self.original.path} has.",
                "model_tuned",
                "A LoRA can only be extracted from two models of one kind.",
            )
        return names

    def difference(self, name: str) -> Tensor:
        """Tuned minus original weight in float32, in the shape that training sees. See `_subtracted`."""
        return self._subtracted(name, self.original.weight(name), self.tuned.weight(name))

    def bias_difference(self, name: str) -> Tensor | None:
        """The same of the bias, where both have one. See `_subtracted`."""
        original, tuned = self.original.bias(name), self.tuned.bias(name)
        return None if original is None or tuned is None else self._subtracted(name, original, tuned)

    def nearly_equal(self, name: str) -> bool:
        """Whether weight and bias are equal but for rounding in float32."""
        pairs = [(self.original.weight(name), self.tuned.weight(name))]
        biases = (self.original.bias(name), self.tuned.bias(name))
        if biases[0] is not None and biases[1] is not None:
            pairs.append((biases[0], biases[1]))
        return all(
            one.numel() == other.numel() and _nearly_equal(one, other.reshape(one.shape)) for one, other in pairs
        )

    def embeddings_differ(self) -> bool:
        """Whether the text encoders' tables of words and positions, which are no layers here, are other ones."""
        found = [
            {shape: key for key, shape in model.stored.shapes.items() if key.removesuffix(".weight").endswith(_TABLES)}
            for model in (self.original, self.tuned)
        ]
        return any(
            not torch.equal(self.original.stored.get(found[0][shape]).float(), self.tuned.stored.get(key).float())
            for shape, key in found[1].items()
            if shape in found[0]
        )

    def _subtracted(self, name: str, original: Tensor, tuned: Tensor) -> Tensor:
        """Raises UserError if the shapes differ or a value is not finite."""
        if original.shape[0] != tuned.shape[0] or original.numel() != tuned.numel():
            raise UserError(
                f"{name} has the shape {list(original.shape)} in {self.original.path}, but {list(tuned.shape)} in "
                f"{self.tuned.path}.",
                "model_tuned",
                "The models must be of one kind.",
            )
        loading = self._loading
        # the first is a copy in any case: what the files hold must stay
        found = self._rounded(tuned).to(loading.tuned, torch.float32, copy=True).to(loading.device).contiguous()
        found.sub_(self._rounded(original).to(loading.original).to(loading.device).view(tuned.shape))
        if not isfinite(float(torch.stack(torch.aminmax(found)).abs().max())):
            self._refuse(name, original, tuned)
        return found.view(original.shape)

    def _rounded(self, weight: Tensor) -> Tensor:
        rounded = weight if self._loading.dtype is None else weight.to(self._loading.dtype)
        return rounded if rounded.dtype.itemsize > 1 else rounded.float()  # nothing computes with 8 bits

    def _refuse(self, name: str, original: Tensor, tuned: Tensor) -> None:
        broken = (
            (model.path, key)
            for model, key, weight in ((self.tuned, "tuned", tuned), (self.original, "original", original))
            if not bool(torch.isfinite(weight).all())
        )
        path, _ = next(broken, (self.tuned.path, ""))
        raise UserError(
            f"{path}: {name} holds values that are not finite (NaN or infinity).",
            hint="The model is damaged, or its training went wrong.",
        )

    def differ_by_more(self, names: Collection[str], limit: float) -> bool:
        """Whether any value of these layers differs by more than that."""
        return any(float(self.difference(name).abs().max()) > limit for name in self.forgetting(names))

    def forgetting(self, names: Collection[str]) -> Iterator[str]:
        """The names; what was read for them is given back to the system as they go."""
        for number, name in enumerate(names, 1):
            yield name
            if number % BETWEEN_FORGETTING == 0:
                self.forget()
        self.forget()

    def forget(self) -> None:
        """Give the memory behind both files back to the system."""
        self.original.forget()
        self.tuned.forget()

    def close(self) -> None:
        """Let the files go."""
        self.original.close()
        self.tuned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype == other.dtype and one.dtype.itemsize == 2:
        return torch.equal(one, other)  # the next number in 16 bits is farther off than any rounding in 32
    return torch.allclose(one.float(), other.float())


def open_pair(
    original: str, tuned: str, loading: Loading, keys: tuple[str, str], *, v2: bool = False, sdxl: bool = False
) -> Pair:
    """Open both models.

    Args:
        original, tuned: files or diffusers folders, also one of each.
        loading: how weights are taken from them.
        keys: the options that named them, for messages.
        v2, sdxl: what the command line says they are; it is only held against what they are.

    Raises:
        UserError: one cannot be read, or they are of different kinds.
    """
    for path, key in zip((original, tuned), keys):
        if not path:
            raise UserError(f"{key} is missing.", key, "Give a model file or a diffusers folder.")
    first = open_model(Path(original), keys[0])
    try:
        second = open_model(Path(tuned), keys[1])
    except UserError:
        first.close()
        raise
    if first.version != second.version:
        first.close()
        second.close()
        raise UserError(
            f"{original} is {VERSIONS[first.version]}, but {tuned} is {VERSIONS[second.version]}.",
            keys[1],
            "The models must be of one kind.",
        )
    note_contradiction("v2", v2, "sd2", first.version, first.path)
    note_contradiction("sdxl", sdxl, "sdxl", first.version, first.path)
    say(f"{tuned} minus {original}: {VERSIONS[first.version]}")
    return Pair(first, second, loading)


def nothing_differs(pair: Pair, key: str) -> UserError:
    """The error for two models that are the same."""
    return UserError(
        f"Nothing differs between {pair.original.path} and {pair.tuned.path}: there is nothing to extract.", key
    )
