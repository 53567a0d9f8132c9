"""Pictures of subsets and of data sets in columns: 100,000 of them cost a few arrays, not a few objects each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sd_scripts.schema.buckets import Bucketer, Bucketing, Placement, Size
from sd_scripts.schema.errors import DataError

if TYPE_CHECKING:
    from sd_scripts.data.cache import CachedLatents

_AT_ONCE = 1 << 14  # sizes that are compared with all buckets together


@dataclass(slots=True)
class FoundImage:
    """A picture of a subset: its file, caption, size, and where it has one, its mask or control picture.

    bucket: training size that a metadata file prescribes; latents: cache file where the picture itself is gone.
    """

    path: str
    caption: str
    size: Size
    conditioning: str | None = None
    bucket: Size | None = None
    latents: str | None = None


@dataclass(slots=True)
class FoundImages:
    """Pictures of a subset, in columns of the same length; an item is made when it is asked for.

    prefix: stands before every name (a folder with its separator, or nothing); names: a name that ends in .npz is a
    cache file whose picture is gone; sizes: int32 [n, 2], width and height; conditioning: whole paths; buckets: as
    `sizes`, 0 where none is prescribed.
    """

    prefix: str
    names: list[str]
    captions: list[str]
    sizes: np.ndarray
    conditioning: list[str] | None = None
    buckets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> FoundImage:
        path = self.prefix + self.names[number]
        bucket = None if self.buckets is None else _size(self.buckets[number])
        return FoundImage(
            path,
            self.captions[number],
            _size(self.sizes[number]),
            None if self.conditioning is None else self.conditioning[number],
            bucket if bucket and bucket[0] else None,
            path if path.endswith(".npz") else None,
        )

    def __iter__(self) -> Iterator[FoundImage]:
        return (self[number] for number in range(len(self)))

    def take(self, numbers: Sequence[int]) -> "FoundImages":
        """The pictures with these numbers, in this order."""
        return FoundImages(
            self.prefix,
            [self.names[number] for number in numbers],
            [self.captions[number] for number in numbers],
            self.sizes[list(numbers)],
            None if self.conditioning is None else [self.conditioning[number] for number in numbers],
            None if self.buckets is None else self.buckets[list(numbers)],
        )


def _size(pair: np.ndarray) -> Size:
    width, height = pair.tolist()
    return width, height


@dataclass(slots=True)
class ImageRecord:
    """One picture of a data set: how often it is shown in an epoch, where it goes, and its latents when cached.

    subset: number of its subset; conditioning: file of its mask or control picture; cache_path: file of its latents
    when these are on disk; npz_only: the picture itself is gone and only that file is left.
    """

    path: str
    caption: str
    subset: int
    repeats: int
    placement: Placement
    conditioning: str | None = None
    cache_path: str | None = None
    npz_only: bool = False
    latents: "CachedLatents | None" = None


class Records:
    """The pictures of a data set. A record is made when it is first asked for, and kept with what is noted in it.

    Args:
        images: pictures of every subset.
        chosen: int32 [n, 3]: of every picture of the data set its subset, its number there and its repeats.
        bucketer: gives the placements.
        prescribed: whether buckets come from the pictures themselves.

    Raises:
        DataError: naming a picture that fits no bucket.
    """

    def __init__(
        self, images: Sequence[FoundImages], chosen: np.ndarray, bucketer: Bucketer, prescribed: bool = False
    ) -> None:
        self._images = images
        self._subsets, self._numbers, self.repeats = (np.ascontiguousarray(column) for column in chosen.T)
        self._bucketer = bucketer
        self._prescribed = prescribed
        self._made: list[ImageRecord | None] = [None] * len(chosen)
        self.bucket_sizes, self.bucket_of, self.mean_ar_error = self._sort_into_buckets()

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, number: int) -> ImageRecord:
        record = self._made[number]
        if record is None:
            record = self._made[number] = self._make(number)
        return record

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[number] for number in range(len(self)))

    @property
    def all_latents_in_memory(self) -> bool:
        """Whether no picture needs a file."""
        return all(record is not None and record.latents is not None for record in self._made)

    def shown(self, subsets: Sequence[bool]) -> int:
        """Pictures with repeats of those subsets that are marked."""
        return int(self.repeats[np.asarray(subsets, dtype=bool)[self._subsets]].sum()) if len(self) else 0

    def members(self) -> list[np.ndarray]:
        """For every bucket the numbers of its pictures in order, each as often as it is repeated."""
        order = np.argsort(self.bucket_of, kind="stable").astype(np.int32)
        ends = np.cumsum(np.bincount(self.bucket_of, minlength=len(self.bucket_sizes)))
        return [np.repeat(part, self.repeats[part]) for part in np.split(order, ends[:-1])] if len(self) else []

    def _make(self, number: int) -> ImageRecord:
        subset = int(self._subsets[number])
        image = self._images[subset][int(self._numbers[number])]
        return ImageRecord(
            image.path,
            image.caption,
            subset,
            int(self.repeats[number]),
            self._place(image),
            image.conditioning,
            image.latents,
            image.latents is not None,
        )

    def _place(self, image: FoundImage) -> Placement:
        try:
            if self._prescribed and image.bucket is not None:
                return self._bucketer.place_in(image.size, image.bucket)
            return self._bucketer.select(*image.size)
        except DataError as error:
            raise DataError(f"{image.path}: {error.message}", error.key, error.hint) from error

    def _column(self, name: str) -> np.ndarray:
        """Width and height of every picture of the data set, from the columns of the subsets."""
        column = np.zeros((len(self), 2), dtype=np.int32)
        for subset, images in enumerate(self._images):
            rows = self._subsets == subset
            column[rows] = getattr(images, name)[self._numbers[rows]]
        return column

    def _sort_into_buckets(self) -> tuple[list[Size], np.ndarray, float]:
        """Buckets in use, ascending; the number of every picture's bucket; the mean difference of their shapes."""
        if not len(self):
            return [], np.zeros(0, dtype=np.int32), 0.0
        sizes, which = _distinct(self._column("sizes"))
        buckets = self._column("buckets") if self._prescribed else self._buckets_for(sizes, which)[which]
        used, bucket_of = _distinct(buckets)
        shapes = sizes[:, 0] / sizes[:, 1]
        errors = np.abs((used[:, 0] / used[:, 1])[bucket_of] - shapes[which])
        return [_size(pair) for pair in used], bucket_of.astype(np.int32), sum(errors.tolist()) / len(self)

    def _buckets_for(self, sizes: np.ndarray, which: np.ndarray) -> np.ndarray:
        if not self._bucketer.follows_pictures:
            return nearest_buckets(sizes, self._bucketer.sizes)
        buckets = free_buckets(sizes, self._bucketer.bucketing)
        for number in np.flatnonzero((buckets == 0).any(axis=1)):
            self._make(int(np.flatnonzero(which == number)[0]))  # says why this picture fits no bucket
        return buckets


def _distinct(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different sizes, ascending, and for every row the number of its size."""
    packed, which = np.unique(sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1], return_inverse=True)
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1).astype(np.int32), which.reshape(-1)


def nearest_buckets(sizes: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """What `Bucketer.select` gives for many sizes [n, 2] where the buckets are fixed: int32 [n, 2]."""
    offered = np.array(buckets, dtype=np.int32)
    shapes = offered[:, 0] / offered[:, 1]
    chosen = np.zeros_like(sizes)
    for start in range(0, len(sizes), _AT_ONCE):
        part = sizes[start : start + _AT_ONCE]
        differences = np.abs(shapes[None, :] - (part[:, 0] / part[:, 1])[:, None])
        chosen[start : start + _AT_ONCE] = offered[differences.argmin(axis=1)]
    for bucket in buckets:
        chosen[(sizes == np.array(bucket)).all(axis=1)] = bucket
    return chosen


def free_buckets(sizes: np.ndarray, rule: Bucketing) -> np.ndarray:
    """What `Bucketer.select` gives for many sizes [n, 2] where nothing is enlarged: int32 [n, 2], 0 for too small."""
    area, step = rule.resolution[0] * rule.resolution[1], rule.step

    def whole(values: np.ndarray) -> np.ndarray:
        return (values + 0.5).astype(np.int64)

    shapes = sizes[:, 0] / sizes[:, 1]
    ideal_width = np.sqrt(area * shapes)
    ideal_height = area / ideal_width
    width, height = whole(ideal_width) // step * step, whole(ideal_height) // step * step
    other_height, other_width = whole(width / shapes) // step * step, whole(height * shapes) // step * step
    with np.errstate(divide="ignore", invalid="ignore"):
        error_by_width = np.where(other_height > 0, np.abs(width / other_height - shapes), np.inf)
        by_width = error_by_width < np.abs(other_width / height - shapes)
    shrunk = np.where(
        by_width[:, None],
        np.stack([width, whole(width / shapes)], axis=1),
        np.stack([whole(height * shapes), height], axis=1),
    )
    narrow = (width == 0) | (height == 0)
    shrunk[narrow] = np.stack([whole(ideal_width), whole(ideal_height)], axis=1)[narrow]
    small = sizes.astype(np.int64).prod(axis=1) <= area
    return (np.where(small[:, None], sizes, shrunk) // step * step).astype(np.int32)
