"""Read weight files of any supported kind: what is in them at once, the tensors when they are asked for.

Every tensor has memory of its own. Nothing keeps a file open or mapped, so that a training run does not hold its base
model twice, and no tensor that is not asked for (moving averages, say) is ever read.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.tensormap import PICKLES, checked_header, count_of, read_pickle, tensors_of, unreadable

KEY = "pretrained_model_name_or_path"


class Weights(ABC):
    """The tensors of one weight file, or of several that belong together.

    Attributes:
        shapes: tensor name -> shape.
        counts: finished epochs and steps of earlier trainings, where a .ckpt tells them.
    """

    shapes: dict[str, tuple[int, ...]]
    counts: tuple[int, int] = (0, 0)

    @abstractmethod
    def take(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read tensors, each into memory of its own on the CPU.

        Args:
            names: which; all must be there.
            dtype: of floating point tensors; None leaves them as the file has them.

        Raises:
            UserError: the file cannot be read.
        """

    def below(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read the tensors whose names begin with `prefix`, named without it. Raises UserError as `take`."""
        found = self.take([name for name in self.shapes if name.startswith(prefix)], dtype)
        return {name[len(prefix) :]: value for name, value in found.items()}


Opener = Callable[[Path, str | None], Weights]


class _Safetensors(Weights):
    def __init__(self, path: Path, key: str | None) -> None:
        self._path, self._key = path, key
        header, self._types = checked_header(path, key)
        self.shapes = header.shapes
        self._places = header.places

    def _unreadable(self, reason: object) -> UserError:
        return unreadable(self._path, reason, self._key)

    def take(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        # In the order of the file: a disk reads on at its full speed.
        ordered = sorted(names, key=lambda name: self._places[name])
        try:
            with open(self._path, "rb", buffering=0) as handle:
                return {name: _cast(self._read(handle, name), dtype) for name in ordered}
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, handle: FileIO, name: str) -> Tensor:
        if _shapes_only():
            return torch.empty(self.shapes[name], dtype=self._types[name])
        start, length = self._places[name]
        content = torch.empty(length, dtype=torch.uint8)
        view = memoryview(content.numpy())
        handle.seek(start)
        done = 0
        while done < length:
            count = handle.readinto(view[done:])
            if not count:
                raise self._unreadable("the file became shorter while it was read")
            done += count
        return content.view(self._types[name]).reshape(self.shapes[name])


class _Pickled(Weights):
    def __init__(self, tensors: Mapping[str, Tensor], counts: tuple[int, int]) -> None:
        self._tensors, self.counts = tensors, counts
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}

    def take(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        # A clone, since the tensors of a zip file are mapped and would hold the whole file.
        if _shapes_only():
            return {name: _cast(self._tensors[name].to("meta"), dtype) for name in names}
        return {name: _cast(self._tensors[name], dtype, copy=True).contiguous() for name in names}


class _Shards(Weights):
    def __init__(self, files: Sequence[Weights]) -> None:
        self._owners = {name: file for file in files for name in file.shapes}
        self.shapes = {name: file.shapes[name] for name, file in self._owners.items()}

    def take(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        wanted: dict[int, tuple[Weights, list[str]]] = {}
        for name in names:
            owner = self._owners[name]
            wanted.setdefault(id(owner), (owner, []))[1].append(name)
        return {name: value for owner, part in wanted.values() for name, value in owner.take(part, dtype).items()}


def _shapes_only() -> bool:
    """Whether tensors are made on the meta device (`with torch.device("meta")`): then no weight is read from disk."""
    return torch.empty(0).is_meta


def _cast(value: Tensor, dtype: torch.dtype | None, *, copy: bool = False) -> Tensor:
    return value.to(dtype if dtype is not None and value.is_floating_point() else value.dtype, copy=copy)


def open_weights(path: Path, key: str | None = KEY) -> Weights:
    """One weight file.

    Args:
        path: .safetensors, or .ckpt/.pt/.pth/.bin holding nothing but tensors and plain data.
        key: the option that named the file, for messages.

    Raises:
        UserError: the file is missing, damaged, something else, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise UserError(f"There is no model file {path}.", key=key, hint="Check the path.")
    if path.suffix.lower() not in PICKLES:
        return _Safetensors(path, key)
    content = read_pickle(path, key)
    return _Pickled(tensors_of(content, path, key), (count_of(content, "epoch"), count_of(content, "global_step")))


def read_weights(path: Path, key: str | None = KEY) -> dict[str, Tensor]:
    """All tensors of one weight file in the file's own types. Arguments and errors as `open_weights`."""
    return open_weights(path, key).below("")


def read_part(folder: Path, stems: tuple[str, ...], key: str | None = KEY) -> dict[str, Tensor]:
    """The weights of one part of a diffusers folder in their own types. Arguments and errors as `open_part`."""
    return open_part(folder, stems, key).below("")


def open_part(folder: Path, stems: tuple[str, ...], key: str | None = KEY, opener: Opener | None = None) -> Weights:
    """The weights of one part of a diffusers folder: whole or in shards. Arguments and errors as `part_files`."""
    files = [(opener or open_weights)(path, key) for path in part_files(folder, stems, key)]
    return files[0] if len(files) == 1 else _Shards(files)


def part_files(folder: Path, stems: tuple[str, ...], key: str | None = KEY) -> list[Path]:
    """The weight files of one part of a diffusers folder: one or its shards, full or half precision, new or old format.

    Full precision is preferred to a variant ("fp16"), safetensors to a pickle.

    Raises:
        UserError: there is no weight file, or the index of the shards cannot be read.
    """
    for suffix in (".safetensors", ".bin"):
        for variant in ("", ".fp16", ".bf16"):
            for stem in stems:
                index = folder / f"{stem}{suffix}.index{variant}.json"
                older_index = folder / f"{stem}{variant}{suffix}.index.json"
                for shards in (index, older_index):
                    if shards.is_file():
                        return _shards(shards, key)
                whole = folder / f"{stem}{variant}{suffix}"
                if whole.is_file():
                    return [whole]
    raise UserError(
        f"{folder} holds no weights ({stems[0]}.safetensors or .bin).",
        key=key,
        hint="The model folder is incomplete: download or copy it again.",
    )


def _shards(index: Path, key: str | None) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error}.", key=key, hint="Download or copy it again.") from error
