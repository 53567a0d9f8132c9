"""Pictures sorted by shape into groups that become one shape each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd_scripts.data.image import picture_size
from sd_scripts.tools.pictures import for_each, on_white, read, save


@dataclass(frozen=True)
class Shaped:
    """A picture and its width divided by its height."""

    path: Path
    ratio: float


@dataclass(frozen=True)
class Group:
    """Pictures that get one shape."""

    pictures: tuple[Shaped, ...]

    @property
    def ratio(self) -> float:
        """The shape in the middle: as far, as a factor, from the wider ones as from the higher ones."""
        return math.exp(sum(math.log(picture.ratio) for picture in self.pictures) / len(self.pictures))

    @property
    def change(self) -> float:
        """Sum over the pictures of the share that is cut off, which is also the share that padding adds."""
        return sum(1 - min(picture.ratio / self.ratio, self.ratio / picture.ratio) for picture in self.pictures)


def shapes(pictures: Sequence[Path]) -> list[Shaped]:
    """The pictures from the highest to the widest, by their headers. Raises DataError naming one that is none."""
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(picture_size, pictures))
    shaped = [Shaped(path, width / height) for path, (width, height) in zip(pictures, sizes)]
    return sorted(shaped, key=lambda picture: (picture.ratio, picture.path))


def groups_of(shaped: Sequence[Shaped], size: int) -> list[Group]:
    """Neighbours in the order of shapes together; the last group may be smaller."""
    return [Group(tuple(shaped[start : start + size])) for start in range(0, len(shaped), size)]


def to_shape(pixels: np.ndarray, ratio: float, pad: bool) -> np.ndarray:
    """The middle of a picture in another shape, or the whole picture with black beside it."""
    height, width = pixels.shape[:2]
    too_wide = width / height > ratio
    if pad:
        size = (width, max(1, round(width / ratio))) if too_wide else (max(1, round(height * ratio)), height)
        size = (max(size[0], width), max(size[1], height))
        made = np.zeros((size[1], size[0], pixels.shape[2]), np.uint8)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        made[top : top + height, left : left + width] = pixels
        return made
    size = (max(1, round(height * ratio)), height) if too_wide else (width, max(1, round(width / ratio)))
    left, top = max(0, width - size[0]) // 2, max(0, height - size[1]) // 2
    return pixels[top : top + size[1], left : left + size[0]]


def write_groups(groups: Sequence[Group], targets: Sequence[Sequence[Path]], pad: bool) -> None:
    """Write every picture in its group's shape to its target. Raises UserError."""
    jobs = [
        (picture.path, target, group.ratio)
        for group, names in zip(groups, targets)
        for picture, target in zip(group.pictures, names)
    ]

    def make(job: tuple[Path, Path, float]) -> None:
        source, target, ratio = job
        save(to_shape(on_white(read(source)), ratio, pad), target)

    for_each(jobs, make, "pictures written")
