"""What the trainer would see of the pictures, worked out from names, metadata and file headers alone.

The same functions that the trainer uses decide about folders, buckets and captions. Sizes are remembered by path, time
of change and length, so that a second look at 10,000 pictures costs a fraction of a second.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from kohya_gui.dataset_sources import Allowed, Found, Part, Source, find, refuse_links
from kohya_gui.problem import Problem
from sd_scripts.schema.buckets import Bucketer, Bucketing, Placement, Size, same_shape
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.filememory import FEWEST, cache_folder
from sd_scripts.schema.folders import list_folder
from sd_scripts.schema.imagesize import read_header, remembered_sizes
from sd_scripts.schema.metadata_file import caption_of_entry, files_by_stem, locate, read_metadata, size_in
from sd_scripts.schema.steps import balance_regularisation, batch_count, set_aside

__all__ = ["DatasetView", "FolderView", "PictureView", "Problem", "picture_sizes", "sizes_in", "view"]

_FRESH = 400  # with more new files than this, threads are worth their start
_SHORT = 16  # a caption file of so few bytes may hold nothing but blanks


@dataclass(frozen=True)
class PictureView:
    """One picture. Sizes in pixels as shown (turned by EXIF); None where the file cannot be read.

    `caption_path` is the file of its words; `text` are words that a metadata file gives it. `aside` marks a picture
    that is kept for validation. `problems` are some of "no caption", "too small", "unreadable", "odd bucket", "no
    control picture".
    """

    path: str
    size: Size | None
    caption_path: str | None
    placement: Placement | None
    problems: tuple[str, ...] = ()
    text: str | None = None
    control: str | None = None
    aside: bool = False

    @property
    def name(self) -> str:
        """File name."""
        return os.path.basename(self.path)

    @property
    def bucket(self) -> Size | None:
        """Width and height it is trained at."""
        return self.placement.bucket if self.placement else None

    @property
    def crop(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom of what is trained, as shares (0..1) of the picture."""
        if self.placement is None:
            return None
        (left, top), (width, height) = self.placement.pixel_crop, self.placement.resized
        right, bottom = left + self.placement.bucket[0], top + self.placement.bucket[1]
        return left / width, top / height, min(right / width, 1.0), min(bottom / height, 1.0)


@dataclass(frozen=True)
class FolderView:
    """One folder or metadata file of pictures with what its name says; `key` is the option that named it.

    `empty` are pictures whose caption file holds nothing; `control_dir` is the folder of their masks or control
    pictures, `strangers` are files in it that belong to no picture.
    """

    path: str
    repeats: int
    class_tokens: str
    regularisation: bool
    flat: bool
    pictures: list[PictureView]
    text_files: dict[str, int]
    caption_extension: str
    key: str = "train_data_dir"
    metadata: bool = False
    rules: CaptionRules = CaptionRules()
    empty: tuple[str, ...] = ()
    control_dir: str = ""
    strangers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder name."""
        return os.path.basename(self.path)

    @property
    def captions(self) -> int:
        """Pictures with words of their own."""
        return sum(bool(picture.caption_path or picture.text) for picture in self.pictures) - len(self.empty)

    @property
    def smallest_side(self) -> int | None:
        """Shortest side of any picture."""
        return min((min(picture.size) for picture in self.pictures if picture.size), default=None)


@dataclass
class DatasetView:
    """All folders with what follows: pictures, showings in an epoch, buckets, batches; and what is wrong.

    `images` are the pictures that are trained, `regular` the regularisation pictures that are shown, `aside` those
    kept for validation. `batch_size` is the largest one. `unknown` says that foreign code supplies the pictures.
    """

    folders: list[FolderView] = field(default_factory=list)
    images: int = 0
    regular: int = 0
    aside: int = 0
    shown: int = 0
    buckets: dict[Size, int] = field(default_factory=dict)
    batches: int = 0
    batch_size: int = 1
    problems: list[Problem] = field(default_factory=list)
    unknown: bool = False

    @property
    def lonely(self) -> list[Size]:
        """Buckets that hold one showing only."""
        return [size for size, count in self.buckets.items() if count == 1] if len(self.buckets) > 1 else []


@lru_cache(maxsize=200_000)
def _size_of(path: str, changed: int, length: int) -> Size | None:
    """Size of a picture as shown; `changed` and `length` only make the answer forgotten when the file changes."""
    try:
        if path.endswith(".npz"):
            # of a picture that is gone only its encoded form is left
            import numpy as np  # seldom needed, and slow to import

            with np.load(path, allow_pickle=False) as arrays:
                width, height = (int(side) for side in arrays["original_size"])
            return width, height
        header = read_header(path)
        if header is not None:
            return header.size
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, KeyError, SyntaxError, Image.DecompressionBombError):
        return None


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, -1
    return found.st_mtime_ns, found.st_size


def picture_sizes(paths: list[str]) -> list[Size | None]:
    """Sizes of many pictures; new ones are read by several threads."""
    keys = [(path, *_stamp(path)) for path in paths]
    if len(keys) > _FRESH and _size_of.cache_info().currsize < len(keys):
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda key: _size_of(*key), keys, chunksize=64))
    return [_size_of(*key) for key in keys]


def sizes_in(folder: str, names: list[str]) -> list[Size | None]:
    """Sizes of pictures in a folder; those of a large one are remembered between runs, as the trainers do."""
    if len(names) < FEWEST or cache_folder() is None:
        return picture_sizes([os.path.join(folder, name) for name in names])
    packed = remembered_sizes(folder, names, lambda path: _size_of(path, *_stamp(path))).numbers
    return [(value >> 32, value & 0xFFFFFFFF) if value >= 0 else None for value in packed]


def view(values: Mapping[str, Any], command: str = "train_network", allowed: Allowed | None = None) -> DatasetView:
    """The data set of these values. Never raises for what it finds; `problems` says it.

    Args:
        values: every option of the trainer.
        command: the trainer.
        allowed: whether a path may be looked at; None allows all.
    """
    found = find(values, command, allowed)
    made = DatasetView(unknown=found.unknown, problems=found.problems)
    total: Counter[Size] = Counter()
    for part in found.parts:
        seen = (_Sight(source, part, found, allowed).view() for source in part.sources)
        views = [each for each in seen if each is not None]
        counts = _counted(views, made)
        made.batches += batch_count(counts.values(), part.batch_size)
        made.batch_size = max(made.batch_size, part.batch_size)
        total += counts
        made.folders += views
    made.buckets = dict(sorted(total.items()))
    lonely = set(made.lonely)
    made.folders = [_with_odd(folder, lonely) for folder in made.folders] if lonely else made.folders
    return made


def _counted(views: Sequence[FolderView], made: DatasetView) -> Counter[Size]:
    """Showings of an epoch by size; regularisation pictures as often as needed to match the others."""
    trained = [[picture for picture in folder.pictures if not picture.aside] for folder in views]
    target = sum(folder.repeats * len(some) for folder, some in zip(views, trained) if not folder.regularisation)
    asked = [folder.repeats for folder in views if folder.regularisation for _ in folder.pictures]
    balanced = iter(balance_regularisation(target, asked))
    counts: Counter[Size] = Counter()
    for folder, some in zip(views, trained):
        made.aside += len(folder.pictures) - len(some)
        for picture in some:
            times = next(balanced) if folder.regularisation else folder.repeats
            if not times:
                continue
            made.regular += folder.regularisation
            made.images += not folder.regularisation
            if picture.placement is not None:
                counts[picture.placement.bucket] += times
                made.shown += times
    return counts


def _with_odd(folder: FolderView, lonely: set[Size]) -> FolderView:
    if not any(picture.bucket in lonely for picture in folder.pictures):
        return folder
    pictures = [
        replace(picture, problems=(*picture.problems, "odd bucket")) if picture.bucket in lonely else picture
        for picture in folder.pictures
    ]
    return replace(folder, pictures=pictures)


@dataclass(frozen=True)
class _Raw:
    """A picture before its place is known; `bucket` is what a metadata file prescribes."""

    path: str
    size: Size | None
    caption_path: str | None
    text: str | None = None
    bucket: Size | None = None


class _Sight:
    """One look at the pictures of a source."""

    def __init__(self, source: Source, part: Part, found: Found, allowed: Allowed | None) -> None:
        self.source, self.part, self.found, self.allowed = source, part, found, allowed
        self.bucketer = Bucketer(part.bucketing or Bucketing((64, 64), True))
        self.least = 0 if part.bucketing is None else part.bucketing.resolution[0] * part.bucketing.resolution[1] / 2

    def view(self) -> FolderView | None:
        """The source with its pictures; None if it cannot be used, which is noted."""
        source, files = self.source, self.source.files
        try:
            raw = list(self._of_metadata() if files is None else self._of_folder())
        except DataError as error:
            self.found.add(source.key, error)
            return None
        controls, strangers = self._controls([picture.path for picture in raw])
        empty = {picture.path for picture in raw if picture.caption_path and _is_empty(picture.caption_path)}
        aside = set() if source.regularisation else set(set_aside(len(raw), self.part.split, self.part.seed)[1])
        pictures = [
            self._picture(picture, picture.path in empty, controls.get(picture.path), number in aside)
            for number, picture in enumerate(raw)
        ]
        return FolderView(
            source.path,
            source.repeats,
            source.class_tokens,
            source.regularisation,
            bool(files and files.flat),
            pictures,
            files.text_files if files else {},
            source.extension,
            source.key,
            files is None,
            source.rules,
            tuple(sorted(os.path.basename(path) for path in empty)),
            source.control_dir,
            tuple(strangers),
        )

    def _of_folder(self) -> Iterator[_Raw]:
        files = self.source.files
        if files is None:
            return
        folder = str(files.path)
        refuse_links(folder, (*files.images, *filter(None, files.captions)), self.source.key, self.allowed)
        for name, size, caption in zip(files.images, sizes_in(folder, files.images), files.captions):
            yield _Raw(os.path.join(folder, name), size, os.path.join(folder, caption) if caption else None)

    def _of_metadata(self) -> Iterator[_Raw]:
        source, path = self.source, Path(self.source.path)
        folder = Path(source.image_dir) if source.image_dir else None
        entries = read_metadata(path)
        files = files_by_stem(folder) if folder is not None else {}
        places = {key: locate(key, folder, files) for key in entries}
        lost = [key for key, place in places.items() if place is None]
        if lost:
            shown = ", ".join(repr(os.path.basename(key)) for key in lost[:3]) + (", ..." if len(lost) > 3 else "")
            where = f" in {folder}" if folder else ""
            text = f"{path.name} names {len(lost)} pictures that are not there{where} ({shown})"
            raise DataError(text, source.key, "Choose the folder of its pictures, or make the file anew.")
        strange = {os.path.dirname(place) for place in places.values() if place}
        strange = {each for each in strange if self.allowed is not None and not self.allowed(each)}
        if strange:
            raise DataError(f"{sorted(strange)[0]} lies outside the folders open to the page", source.key)
        measured = [place for key, place in places.items() if place and not entries[key].get("image_size")]
        sizes = dict(zip(measured, picture_sizes(measured)))
        for key, entry in entries.items():
            place = str(places[key])
            size = size_in(entry, "image_size", key, path) or sizes.get(place)
            words = caption_of_entry(entry, source.rules.caption_separator)
            yield _Raw(place, size, None, words or "", size_in(entry, "train_resolution", key, path))

    def _picture(self, raw: _Raw, empty: bool, control: str | None, aside: bool) -> PictureView:
        source = self.source
        words = raw.text if source.files is None else raw.caption_path and not empty
        problems = [] if words or source.class_tokens else ["no caption"]
        placement = None
        if raw.size is None:
            problems.append("unreadable")
        elif self.part.bucketing is None:
            placement = self.bucketer.place_in(raw.size, raw.bucket) if raw.bucket else None
        else:
            placement = self._place(raw.path, raw.size)
            if placement is None or raw.size[0] * raw.size[1] < self.least:
                problems.append("too small")
        if source.control_dir and control is None:
            problems.append("no control picture")
        return PictureView(raw.path, raw.size, raw.caption_path, placement, tuple(problems), raw.text, control, aside)

    def _place(self, path: str, size: Size) -> Placement | None:
        try:
            return self.bucketer.select(*size)
        except DataError as error:
            text = f"{os.path.basename(path)}: {error.message}."
            self.found.problems.append(Problem("error", error.key, text, error.hint))
            return None

    def _controls(self, paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """The control picture or mask of every picture by name, and files that belong to none."""
        folder = self.source.control_dir
        if not folder:
            return {}, []
        key = "conditioning_data_dir"
        if not os.path.isdir(folder):
            # a folder chosen in the form is looked for with the other files
            if self.source.key == "dataset_config":
                self.found.add("dataset_config", DataError(f"the folder {folder} does not exist"))
            return {}, []
        try:
            names = {os.path.splitext(name)[0]: name for name in list_folder(folder).images}
        except DataError as error:
            self.found.add(key, error)
            return {}, []
        stems = {path: os.path.splitext(os.path.basename(path))[0] for path in paths}
        matched = {path: os.path.join(folder, names[stem]) for path, stem in stems.items() if stem in names}
        strangers = sorted(set(names) - set(stems.values())) if self.source.control_only else []
        return matched, [names[stem] for stem in strangers]


def control_of_other_shape(folder: FolderView) -> list[str]:
    """Names of pictures whose control picture or mask has another shape, which cannot be cut alike."""
    pairs = [(picture, picture.control, picture.size) for picture in folder.pictures]
    known = [(picture, control, size) for picture, control, size in pairs if control and size]
    others = picture_sizes([control for _, control, _ in known])
    return [
        picture.name
        for (picture, _, size), other in zip(known, others)
        if other is not None and other != size and not same_shape(size, other)
    ]


def _is_empty(path: str) -> bool:
    """Whether a caption file holds no words; a long one is not read for that."""
    try:
        if os.stat(path).st_size > _SHORT:
            return False
        with open(path, "rb") as file:
            return not file.read(_SHORT).strip(b" \t\r\n\xef\xbb\xbf")
    except OSError:
        return False
