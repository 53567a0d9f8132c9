"""From one layout to the other on disk, tensor by tensor: what is written is read only while it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_scripts.models import layout
from sd_scripts.models.expected import check_part
from sd_scripts.models.lazy import LazyFiles, made
from sd_scripts.models.original import KEY
from sd_scripts.models.part import Origin, Part
from sd_scripts.models.replacing import replaced_folder
from sd_scripts.models.source import ANY, find_source
from sd_scripts.models.stored import is_pickle
from sd_scripts.models.torchfile import write_torch_stream
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import kinds_in_file, write_stream

Progress = Callable[[int, int], None]
WIDER = (torch.float32, torch.bfloat16, torch.float64)
_FORGET_AFTER = 128 << 20  # bytes between two moments of giving memory back


@dataclass
class LazyModel:
    """A model on disk, part by part, by the names of diffusers' modules; nothing of it is read yet.

    Attributes:
        version: "sd1", "sd2" or "sdxl".
        prediction: "epsilon" or "v_prediction".
        single_file: it lies in an original single file.
        unet: configuration and weights; the others likewise.
        vae: of the pictures.
        texts: one or two.
        origin: what its file holds beside the weights.
        files: where it lies.
    """

    version: str
    prediction: str
    single_file: bool
    unet: Part
    vae: Part
    texts: list[Part]
    origin: Origin
    files: LazyFiles

    @property
    def linear_in_folder(self) -> bool:
        """Whether the U-Net's projections run as convolutions here, and are matrices in the published folders."""
        return self.version == "sd2" and self.single_file

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by the names of their folders."""
        return {"unet": self.unet, "vae": self.vae, **dict(zip(layout.TEXT_FOLDERS, self.texts, strict=False))}

    def original(self) -> dict[str, Tensor]:
        """All weights, and what the source had beside them, by the names of a single file."""
        texts = [text.weights for text in self.texts]
        weights = layout.original_weights(self.version, self.unet.weights, self.vae.weights, texts)
        return layout.with_ballast(weights, self.origin.ballast, self.version)

    def folder(self) -> dict[str, dict[str, Tensor]]:
        """All weights by part and name of a diffusers folder."""
        texts = [text.weights for text in self.texts]
        linear = self.linear_in_folder
        return layout.folder_weights(self.version, self.unet.weights, self.vae.weights, texts, linear=linear)

    def configs(self) -> dict[str, dict[str, Any]]:
        """The complete configuration of each part."""
        return {name: layout.complete_config(name, part.config) for name, part in self.parts.items()}


def open_lazily(path: str | Path, key: str | None = None, files: LazyFiles | None = None) -> LazyModel:
    """Open a single file or a diffusers folder of any version and check that it is whole.

    Args:
        path: of the file or folder.
        key: the option that named it, for messages.
        files: keeps account of the opened files; None for a new account.

    Raises:
        UserError: it is missing, damaged, incomplete, or something else.
    """
    files = files or LazyFiles()
    try:
        return _opened(str(path), files, key)
    except UserError as error:
        files.close()
        if error.key == KEY:
            raise UserError(error.message, key, error.hint) from error
        raise


def _opened(path: str, files: LazyFiles, key: str | None) -> LazyModel:
    source = find_source(path, ANY, True, files)
    unet, vae = source.unet(None), source.vae(None)
    texts = [source.text(number, None) for number in range(1, 3 if source.version == "sdxl" else 2)]
    for name, part in (("unet", unet), *zip(layout.TEXT_FOLDERS, texts, strict=False), ("vae", vae)):
        check_part(name, part, path, key)
    prediction = "v_prediction" if source.prediction == "v_prediction" else "epsilon"
    return LazyModel(source.version, prediction, source.single_file, unet, vae, texts, source.origin, files)


def write_file(
    model: LazyModel,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    counts: tuple[int, int] = (0, 0),
    progress: Progress | None = None,
) -> int:
    """Write a model as one file in the original layout, complete or not at all.

    Args:
        model: the model; it may lie at `path`.
        path: `.ckpt` is a file of torch, everything else safetensors.
        dtype: of the weights in the file; None keeps each as it is.
        metadata: text entries; a .ckpt has no place for them.
        counts: epochs and steps for a .ckpt; what the source counted is added.
        progress: told how many tensors of how many are written.

    Returns:
        How many tensors the file has.

    Raises:
        OSError: the disk refuses.
        UserError: a weight is too large for fp16.
    """
    weights = model.original()
    # the schedule's numbers would be spoiled by a cast; programs that find them use them
    unchanged = set(model.origin.ballast or ())
    around = {"epoch": model.origin.epoch + counts[0], "global_step": model.origin.step + counts[1]}
    account = _Account(model.files, len(weights), progress)
    _write(path, weights, dtype, unchanged, account, metadata, around)
    account.end()
    return len(weights)


def write_tensors(
    path: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    *,
    files: LazyFiles,
    unchanged: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write lazy tensors by their names to one file, complete or not at all; a .ckpt has them under `state_dict`.

    Args:
        path: of the file.
        weights: the tensors.
        dtype: of floating point tensors in the file; None keeps each as it is.
        files: where they are read from.
        unchanged: names that keep their type.
        metadata: text entries; a .ckpt has no place for them.
        progress: told how many tensors of how many are written.

    Raises:
        OSError: the disk refuses.
        UserError: a weight is too large for fp16.
    """
    account = _Account(files, len(weights), progress)
    _write(path, weights, dtype, unchanged, account, metadata, {})
    account.end()


def write_folder(
    model: LazyModel,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    safetensors: bool = True,
    finish: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a model as a diffusers folder, complete or not at all; what stood there is replaced.

    Args:
        model: the model; it may lie at `folder`.
        folder: where.
        dtype: of the weights; None keeps each as it is.
        safetensors: write .safetensors files; else PyTorch's .bin.
        finish: does the last things to the new folder before it takes its place.
        progress: told how many tensors of how many are written.

    Returns:
        How many tensors the folder has.

    Raises:
        OSError: the disk refuses.
        UserError: a weight is too large for fp16.
    """
    parts = model.folder()
    account = _Account(model.files, sum(map(len, parts.values())), progress)
    with replaced_folder(folder) as aside:
        layout.write_configs(aside, model.version, model.prediction, model.configs(), linear=model.linear_in_folder)
        layout.write_tokenizers(aside, model.version)
        for name, weights in parts.items():
            path = aside / name / layout.weight_file(name, safetensors=safetensors)
            _write(path, weights, dtype, (), account, {"format": "pt"}, None)
        account.end()
        if finish is not None:
            finish(aside)
    return account.of


class _Account:
    """Counts what is written, and gives memory back now and then."""

    def __init__(self, files: LazyFiles, of: int, progress: Progress | None) -> None:
        self.of = of
        self._files, self._progress = files, progress
        self._done = self._bytes = 0

    def next(self, tensor: Tensor) -> None:
        """One more is about to be made."""
        if self._bytes > _FORGET_AFTER:
            self._files.forget()
            self._bytes = 0
        self._bytes += tensor.nbytes
        if self._progress is not None:
            self._progress(self._done, self.of)
        self._done += 1

    def end(self) -> None:
        """All are written."""
        self._files.forget()
        if self._progress is not None:
            self._progress(self.of, self.of)


def require_room(name: str, value: Tensor) -> None:
    """Raises UserError for a weight that 16-bit floats cannot hold; what is not finite already stays so."""
    low, high = torch.aminmax(value) if value.numel() else (0.0, 0.0)
    largest = max(-float(low), float(high))
    if torch.finfo(torch.float16).max < largest < math.inf:
        raise UserError(
            f"{name} reaches {largest:g}, more than the number format fp16 holds.", hint="Choose bf16 or float."
        )


def _write(
    path: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    unchanged: Collection[str],
    account: _Account,
    metadata: Mapping[str, str] | None,
    around: Mapping[str, object] | None,
) -> None:
    kinds = kinds_in_file(weights, dtype, unchanged)
    entries = {name: (kinds[name], tuple(value.shape)) for name, value in weights.items()}

    def make(name: str) -> Tensor:
        account.next(weights[name])
        value: Tensor = made(weights[name])
        if kinds[name] == torch.float16 and value.dtype in WIDER:
            require_room(name, value)
        return value.detach().to("cpu", kinds[name])

    if is_pickle(path):
        write_torch_stream(path, entries, make, around)
    else:
        write_stream(path, entries, make, metadata)
