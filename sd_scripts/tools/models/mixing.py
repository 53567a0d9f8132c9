"""The weighted sum of whole models, tensor by tensor: each is read, summed up and written before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.models.converting import open_lazily, write_tensors
from sd_scripts.models.keymap import UNET_PREFIX
from sd_scripts.models.lazy import Lazy, LazyFiles, made
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import VERSION_NAMES, identify, single_file_version
from sd_scripts.tools.lora.device import one_thread_each
from sd_scripts.tools.lora.notes import spec_notes

LEFT_OUT = ("model_ema.",)  # a second copy of the U-Net that only further training by its maker would need
_NOTED = ("sd1", "sd2", "sdxl")
_ALONE = ("lora", "embedding")
_CHUNK = 1 << 20  # numbers that are summed up at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Ingredient:
    """A model that is mixed.

    Attributes:
        path: the file or folder.
        weights: lazy tensors by the names of a single file.
        version: "sd1", "sd2", "sdxl", or what else it is.
        prediction: "epsilon", "v_prediction", or "" where nothing says it.
    """

    path: Path
    weights: Mapping[str, Tensor]
    version: str
    prediction: str


@contextmanager
def open_all(paths: Sequence[Path]) -> Iterator[tuple[list[Ingredient], LazyFiles]]:
    """The models and the files that they lie in. Raises UserError for models that do not belong together."""
    files = LazyFiles()
    try:
        models = [_opened(path, files) for path in paths]
        _check_kinds(models)
        yield models, files
    finally:
        files.close()


def _opened(path: Path, files: LazyFiles) -> Ingredient:
    if path.is_dir():
        model = open_lazily(path, "models", files)
        return Ingredient(path, model.original(), model.version, model.prediction)
    facts = identify(str(path))
    if facts.kind in _ALONE:
        raise UserError(
            f"{path} is {facts.detail}, not a model.", "models", "LoRAs are merged with networks/merge_lora.py."
        )
    opened = files(path, "models")
    weights = opened.take(opened.shapes)
    prediction = facts.prediction or ("v_prediction" if "v_pred" in weights else "")
    return Ingredient(path, weights, single_file_version(opened.shapes), prediction)


def _check_kinds(models: Sequence[Ingredient]) -> None:
    first = models[0]
    for other in models[1:]:
        if other.version != first.version:
            one, two = (VERSION_NAMES[model.version] for model in (first, other))
            raise UserError(
                f"{first.path} is {one}, {other.path} is {two}.", "models", "Only models of one kind can be mixed."
            )
        if first.prediction and other.prediction and other.prediction != first.prediction:
            raise UserError(
                f"{first.path} predicts {_what(first)}, {other.path} predicts {_what(other)}.",
                "models",
                "Only models that predict the same can be mixed.",
            )


def _what(model: Ingredient) -> str:
    return "v" if model.prediction == "v_prediction" else "noise"


class Mixture:
    """Weighted sums of models.

    What a model lacks is made of the others, their ratios scaled up to the same sum. Whole numbers (positions) are
    those of the first model that has them.

    Attributes:
        skipped: weights that not every model has, or that are left out.
    """

    def __init__(
        self,
        opened: tuple[Sequence[Ingredient], LazyFiles],
        ratios: Sequence[float],
        unet_only: bool,
        device: torch.device,
        precision: torch.dtype,
        saving: torch.dtype,
    ) -> None:
        """Look through all names and shapes. Raises UserError where a weight has different shapes."""
        self._models, self._files = opened
        self._ratios, self._unet_only = ratios, unet_only
        self._device, self._precision, self._saving = device, precision, saving
        self.skipped: list[str] = []
        self._weights: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for model in self._models for name in model.weights):
            having = [
                (model.weights[name], ratio) for model, ratio in zip(self._models, ratios) if name in model.weights
            ]
            if len(having) < len(ratios) or name.startswith(LEFT_OUT):
                self.skipped.append(name)
            if not name.startswith(LEFT_OUT):
                self._add(name, having)
        largest = max((value.numel() for value in self._weights.values()), default=0)
        self._room = torch.empty(largest, dtype=saving)
        self._chunk = torch.empty(min(largest, _CHUNK), dtype=precision, device=device)

    def _add(self, name: str, having: list[tuple[Tensor, float]]) -> None:
        shapes = sorted({tuple(value.shape) for value, _ in having})
        if len(shapes) > 1:
            raise UserError(
                f"{name} has the shapes {' and '.join(str(list(shape)) for shape in shapes)}.",
                "models",
                "Only models of one kind can be mixed.",
            )
        first = having[0][0]
        if not first.is_floating_point():
            self._weights[name] = first
        elif not self._unet_only or name.startswith(UNET_PREFIX):
            self._weights[name] = Lazy(first.shape, self._saving, lambda: self._sum(name, having))
        elif name in self._models[0].weights:
            self._weights[name] = first

    def _sum(self, name: str, having: Sequence[tuple[Tensor, float]]) -> Tensor:
        """The weighted sum, in memory that is used again for the next: new pages cost more than the sums."""
        share = sum(ratio for _, ratio in having)
        scale = sum(self._ratios) / share if share else 1.0
        flat = [(made(value).reshape(-1), ratio * scale) for value, ratio in having]
        shape = having[0][0].shape
        result = self._room[: shape.numel()]
        for start in range(0, len(result), _CHUNK):
            first, weight = flat[0]
            mixed = self._chunk[: len(first[start : start + _CHUNK])].copy_(first[start : start + _CHUNK]).mul_(weight)
            for value, weight in flat[1:]:
                mixed.add_(value[start : start + _CHUNK].to(self._device, self._precision), alpha=weight)
            self._require_room(name, mixed)
            result[start : start + _CHUNK].copy_(mixed)
        return result.reshape(shape)

    def _require_room(self, name: str, mixed: Tensor) -> None:
        """Raises UserError for sums that are not finite, or too large for the format they are saved in."""
        low, high = torch.aminmax(mixed)
        if max(-float(low), float(high)) <= torch.finfo(self._saving).max:
            return
        for model in self._models:
            if name in model.weights and not bool(torch.isfinite(made(model.weights[name]).float()).all()):
                raise UserError(f"{model.path}: {name} holds values that are not finite (NaN or infinity).", "models")
        raise UserError(
            f"The sum of {name} is larger than the number format of the result holds.",
            "saving_precision",
            "Choose bf16 or float.",
        )

    def metadata(self, target: Path) -> dict[str, str]:
        """The notes of the result: what it is, and what it was mixed from."""
        version = self._models[0].version
        if version not in _NOTED:
            return {}
        prediction = next(filter(None, (model.prediction for model in self._models)), "")
        kind = {"v2": version == "sd2", "v_param": prediction == "v_prediction", "is_sdxl": version == "sdxl"}
        return spec_notes(target, kind, [model.path for model in self._models], adapter=None)

    def write(self, target: Path, progress: Callable[[int, int], None]) -> int:
        """Write the result, complete or not at all; returns how many weights it has. Raises OSError."""
        metadata = self.metadata(target)
        # sums of numbers in the cache are not worth the waking of other threads
        with one_thread_each(torch.get_num_threads()):
            write_tensors(target, self._weights, self._saving, files=self._files, metadata=metadata, progress=progress)
        return len(self._weights)
