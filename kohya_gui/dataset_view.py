"""What the trainer would see in the picture folders, worked out from names and file headers alone.

The same functions that the trainer uses decide about folders, buckets and captions. Sizes are remembered by path, time
of change and length, so that a second look at 10,000 pictures costs a fraction of a second.
"""

import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from sd_scripts.schema.buckets import Bucketer, Bucketing, Placement, Size
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.filememory import FEWEST, cache_folder
from sd_scripts.schema.folders import ClassFolder, ignored_entries, list_folder, scan_class_folders
from sd_scripts.schema.imagesize import read_header, remembered_sizes
from sd_scripts.schema.steps import balance_regularisation, batch_count
from sd_scripts.schema.values import parse_resolution

_LONGEST = 32_768
_FRESH = 400  # with more new files than this, threads are worth their start


@dataclass(frozen=True)
class Problem:
    """Something wrong ("error": Start is stopped) or doubtful ("warning"), with the option it is about.

    `fix` holds the values that would mend it, where a click can.
    """

    severity: str
    key: str | None
    message: str
    hint: str = ""
    fix: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PictureView:
    """One picture. Sizes in pixels as shown (turned by EXIF); None where the file cannot be read.

    `problems` are some of "no caption", "too small", "unreadable", "odd bucket".
    """

    path: str
    size: Size | None
    caption_path: str | None
    placement: Placement | None
    problems: tuple[str, ...] = ()

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
    """One folder of pictures with what its name says."""

    path: str
    repeats: int
    class_tokens: str
    regularisation: bool
    flat: bool
    pictures: list[PictureView]
    text_files: dict[str, int]
    caption_extension: str

    @property
    def name(self) -> str:
        """Folder name."""
        return os.path.basename(self.path)

    @property
    def captions(self) -> int:
        """Pictures with a caption file."""
        return sum(picture.caption_path is not None for picture in self.pictures)

    @property
    def smallest_side(self) -> int | None:
        """Shortest side of any picture."""
        return min((min(picture.size) for picture in self.pictures if picture.size), default=None)


@dataclass
class DatasetView:
    """All folders with what follows: pictures, showings in an epoch, buckets, batches; and what is wrong."""

    folders: list[FolderView] = field(default_factory=list)
    images: int = 0
    shown: int = 0
    buckets: dict[Size, int] = field(default_factory=dict)
    batches: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def lonely(self) -> list[Size]:
        """Buckets that hold one showing only."""
        return [size for size, count in self.buckets.items() if count == 1] if len(self.buckets) > 1 else []


@dataclass(frozen=True)
class _Part:
    """Folders that share buckets and batches, and their rule."""

    folders: list[tuple[ClassFolder, bool, str]]
    bucketing: Bucketing | None
    batch_size: int
    split: float = 0.0


@lru_cache(maxsize=200_000)
def _size_of(path: str, changed: int, length: int) -> Size | None:
    """Size of a picture as shown; `changed` and `length` only make the answer forgotten when the file changes."""
    try:
        header = read_header(path)
        if header is not None:
            return header.size
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
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


def bucketing_of(values: Mapping[str, Any]) -> Bucketing | None:
    """The rule for buckets in these values (all keys present); None without a valid resolution."""
    try:
        resolution = parse_resolution(str(values["resolution"]))
    except (UserError, KeyError):
        return None
    return Bucketing(
        resolution,
        bool(values["enable_bucket"]),
        int(values["min_bucket_reso"]),
        int(values["max_bucket_reso"]),
        max(int(values["bucket_reso_steps"]), 1),
        bool(values["bucket_no_upscale"]),
    )


def view(values: Mapping[str, Any]) -> DatasetView:
    """The data set of these values (all keys present). Never raises for what it finds; `problems` says it."""
    made = DatasetView()
    total: Counter[Size] = Counter()
    for part in _parts(values, made.problems):
        counts: Counter[Size] = Counter()
        views = [_folder(folder, reg, extension, part, made.problems) for folder, reg, extension in part.folders]
        for folder_view, showings in zip(views, _showings(views)):
            made.images += 0 if folder_view.regularisation else len(folder_view.pictures)
            trained = _kept(len(folder_view.pictures), part.split) if not folder_view.regularisation else None
            for picture, times in zip(folder_view.pictures[:trained], showings):
                if picture.placement is not None and times:
                    counts[picture.placement.bucket] += times
                    made.shown += times
        made.batches += batch_count(counts.values(), max(part.batch_size, 1))
        total += counts
        made.folders += views
    made.buckets = dict(sorted(total.items()))
    lonely = set(made.lonely)
    made.folders = [_with_odd(folder, lonely) for folder in made.folders] if lonely else made.folders
    return made


def _kept(count: int, split: float) -> int:
    return count - round(count * split) if split > 0 else count


def _showings(views: list[FolderView]) -> list[list[int]]:
    """How often every picture is shown in an epoch: its repeats; regularisation pictures as often as needed."""
    target = sum(folder.repeats * len(folder.pictures) for folder in views if not folder.regularisation)
    regular = [folder.repeats for folder in views if folder.regularisation for _ in folder.pictures]
    balanced = iter(balance_regularisation(target, regular))
    return [
        [next(balanced) for _ in folder.pictures] if folder.regularisation else [folder.repeats] * len(folder.pictures)
        for folder in views
    ]


def _with_odd(folder: FolderView, lonely: set[Size]) -> FolderView:
    if not any(picture.bucket in lonely for picture in folder.pictures):
        return folder
    pictures = [
        PictureView(p.path, p.size, p.caption_path, p.placement, (*p.problems, "odd bucket"))
        if p.bucket in lonely
        else p
        for p in folder.pictures
    ]
    changed = {name: getattr(folder, name) for name in folder.__dataclass_fields__} | {"pictures": pictures}
    return FolderView(**changed)


def _folder(folder: ClassFolder, reg: bool, extension: str, part: _Part, problems: list[Problem]) -> FolderView:
    paths = [os.path.join(folder.path, name) for name in folder.images]
    bucketer = Bucketer(part.bucketing) if part.bucketing else None
    pictures = []
    for path, size, caption in zip(paths, sizes_in(str(folder.path), folder.images), folder.captions):
        found: list[str] = [] if caption or folder.class_tokens else ["no caption"]
        placement = None
        if size is None:
            found.append("unreadable")
        elif bucketer is not None:
            placement = _place(bucketer, path, size, problems)
            area = bucketer.bucketing.resolution[0] * bucketer.bucketing.resolution[1]
            if placement is None or size[0] * size[1] < area / 2:
                found.append("too small")
        caption_path = os.path.join(folder.path, caption) if caption else None
        pictures.append(PictureView(path, size, caption_path, placement, tuple(found)))
    return FolderView(
        str(folder.path), folder.repeats, folder.class_tokens, reg, folder.flat, pictures, folder.text_files, extension
    )


def _place(bucketer: Bucketer, path: str, size: Size, problems: list[Problem]) -> Placement | None:
    try:
        return bucketer.select(*size)
    except DataError as error:
        problems.append(Problem("error", error.key, f"{os.path.basename(path)}: {error.message}.", error.hint))
        return None


def _parts(values: Mapping[str, Any], problems: list[Problem]) -> Iterable[_Part]:
    extension = str(values.get("caption_extention") or values["caption_extension"])
    if values.get("dataset_config"):
        yield from _parts_of_file(Path(str(values["dataset_config"])), values, extension, problems)
        return
    folders: list[tuple[ClassFolder, bool, str]] = []
    for key, reg in (("train_data_dir", False), ("reg_data_dir", True)):
        if not values.get(key):
            continue
        try:
            found = scan_class_folders(str(values[key]), extension)
            folders += [(folder, reg, extension) for folder in found]
            problems += _ignored(str(values[key]), key, found)
        except DataError as error:
            problems.append(Problem("error", key, f"{error.message[0].upper()}{error.message[1:]}.", error.hint))
    split = float(values.get("validation_split") or 0)
    yield _Part(folders, _usable(bucketing_of(values), problems), int(values["train_batch_size"]), split)


def _usable(rule: Bucketing | None, problems: list[Problem]) -> Bucketing | None:
    """The rule if buckets can be made by it; numbers far out of reason would take hours to count."""
    if rule is None or (max(rule.resolution) <= _LONGEST and not rule.enabled):
        return rule
    if min(rule.resolution) < rule.step:
        text = f"The resolution is smaller than the step between buckets ({rule.step})."
        problems.append(Problem("error", "resolution", text, "Raise it, or lower the step."))
    elif max(rule.resolution) > _LONGEST:
        problems.append(Problem("error", "resolution", f"The resolution is above {_LONGEST}.", "512 to 1024 is usual."))
    elif rule.maximum > _LONGEST:
        text = f"The largest side of a bucket is above {_LONGEST}."
        problems.append(Problem("error", "max_bucket_reso", text, "1024 to 2048 is usual."))
    else:
        return rule
    return None


def _ignored(root: str, key: str, found: list[ClassFolder]) -> list[Problem]:
    """Folders that training passes over because of their names, and pictures that lie outside all folders."""
    if found and found[0].flat:
        return []
    names = ignored_entries(root)
    folders = [name for name in names if os.path.isdir(os.path.join(root, name))]
    folders = [name for name in folders if list_folder(os.path.join(root, name)).images]
    loose = len(names) - sum(os.path.isdir(os.path.join(root, name)) for name in names)
    problems = []
    if folders:
        shown = ", ".join(repr(name) for name in folders[:3]) + (" and others" if len(folders) > 3 else "")
        better = f"10_{folders[0].lstrip('_ ')}"
        hint = f"Rename {folders[0]!r} to {better!r}: the number is how often each picture is shown."
        severity = "warning" if found else "error"
        problems.append(Problem(severity, key, f"{shown} has pictures, but no number in front of its name.", hint))
    if loose and found:
        text = f"{loose} pictures lie beside the folders in {os.path.basename(root)!r} and are not trained."
        problems.append(Problem("warning", key, text, "Move them into one of the folders."))
    if not found and not folders:
        text = f"There are no pictures in {root!r}."
        problems.append(Problem("error", key, text, "Put them there, or into a folder such as 10_name inside."))
    return problems


def _parts_of_file(path: Path, values: Mapping[str, Any], extension: str, problems: list[Problem]) -> Iterable[_Part]:
    """The parts of a dataset description. Its mistakes are named by `findings`; here folders and sizes count."""
    key = "dataset_config"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        tables = [(table, list(table["subsets"])) for table in content["datasets"]]
        general = dict(content.get("general") or {})
    except OSError as error:
        problems.append(Problem("error", key, f"{path} cannot be read: {error.strerror}.", "Choose another file."))
        return
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "It needs [[datasets]] with [[datasets.subsets]]; Windows paths stand in single quotes."
        problems.append(Problem("error", key, f"{path.name} is no description of datasets: {error}.", hint))
        return
    for table, subsets in tables:
        merged = {**values, "train_batch_size": values["train_batch_size"], **general, **table}
        if isinstance(merged.get("resolution"), list):
            merged["resolution"] = ",".join(str(side) for side in merged["resolution"])
        batch = int(table.get("batch_size", general.get("batch_size", values["train_batch_size"])))
        found = []
        for subset in subsets:
            ending = str(subset.get("caption_extension", merged["caption_extension"] or extension))
            try:
                folder = list_folder(str(subset.get("image_dir", "")), ending)
            except DataError as error:
                problems.append(Problem("error", key, f"{path.name}: {error.message}."))
                continue
            folder.repeats = int(subset.get("num_repeats", general.get("num_repeats", values["dataset_repeats"])))
            folder.class_tokens = str(subset.get("class_tokens", ""))
            found.append((folder, bool(subset.get("is_reg")), ending))
        yield _Part(found, _usable(bucketing_of(merged), problems), batch, float(merged.get("validation_split") or 0))
