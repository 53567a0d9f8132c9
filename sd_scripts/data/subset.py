"""Finding the pictures of a subset with their captions and sizes, from names and file headers alone."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sd_scripts.data.config import SubsetSpec
from sd_scripts.data.image import picture_size
from sd_scripts.data.info_cache import InfoCache
from sd_scripts.data.npz import read_arrays
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.captions import count_tags, read_caption
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS, caption_advice, list_folder

_T = TypeVar("_T")
_CHUNK = 256
_THREADS = min(8, (os.cpu_count() or 1) * 2)


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


@dataclass
class FoundSubset:
    """What was found for a subset. captions_found counts caption files (or metadata entries) with text."""

    spec: SubsetSpec
    images: list[FoundImage] = field(default_factory=list)
    captions_found: int = 0
    warnings: list[str] = field(default_factory=list)

    def tag_counts(self) -> Counter[str]:
        """How often each tag stands in the captions, every picture counted once."""
        counts: Counter[str] = Counter()
        for image in self.images:
            count_tags(counts, image.caption)
        return counts


def find_images(spec: SubsetSpec) -> FoundSubset:
    """All pictures of a subset, sorted by name. Raises DataError naming the folder or file that cannot be used."""
    found = _from_metadata(spec) if spec.kind == "finetune" else _from_folder(spec)
    if spec.conditioning_data_dir is not None:
        _attach_conditioning(found, spec.conditioning_data_dir)
    if not found.images:
        found.warnings.append(f"{spec.name}: no pictures found")
    return found


def in_parallel(work: Callable[[Any], _T], items: Sequence[Any]) -> list[_T]:
    """Results of file work in order; threads share it where there is enough of it."""
    if len(items) < _CHUNK:
        return [work(item) for item in items]

    def chunk_work(chunk: list[Any]) -> list[_T]:
        return [work(item) for item in chunk]

    iterator = iter(items)
    chunks = list(iter(lambda: list(islice(iterator, _CHUNK)), []))
    with ThreadPoolExecutor(_THREADS) as pool:
        return [result for results in pool.map(chunk_work, chunks) for result in results]


def _from_folder(spec: SubsetSpec) -> FoundSubset:
    if spec.image_dir is None:
        raise DataError("a subset names no image_dir", key="dataset_config")
    if not spec.image_dir.is_dir():
        raise DataError(f"the picture folder {spec.image_dir} does not exist", key="train_data_dir")
    folder = list_folder(spec.image_dir, spec.caption_extension)
    folder.class_tokens = spec.class_tokens or ""
    root = str(spec.image_dir)
    wildcards = spec.captions.enable_wildcard
    info = InfoCache(spec.image_dir) if spec.cache_info else None

    def look(item: tuple[str, str | None]) -> tuple[FoundImage, bool, bool]:
        name, caption_name = item
        path = os.path.join(root, name)
        size = info.size_of(path) if info is not None else picture_size(path)
        caption = None if caption_name is None else read_caption(os.path.join(root, caption_name), wildcards)
        image = FoundImage(path, spec.class_tokens or "" if caption is None else caption, size)
        return image, caption is not None, caption_name is not None and caption is None

    results = in_parallel(look, list(zip(folder.images, folder.captions)))
    found = FoundSubset(spec, [image for image, _, _ in results], sum(has for _, has, _ in results))
    if info is not None:
        info.save({image.path: image.caption for image in found.images})
    if not spec.is_reg:
        advice = caption_advice(folder, spec.caption_extension)
        if advice:
            found.warnings.append(advice)
    empty = [image.path for image, _, is_empty in results if is_empty]
    if empty:
        names = ", ".join(os.path.basename(path) for path in empty[:5])
        found.warnings.append(f"{spec.name}: {len(empty)} caption files are empty, as if missing ({names} ...)")
    return found


def _attach_conditioning(found: FoundSubset, folder: Path) -> None:
    """Give every picture the file of the same stem in another folder."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist", key="conditioning_data_dir")
    by_stem = {os.path.splitext(name)[0]: name for name in list_folder(folder).images}
    missing = []
    for image in found.images:
        stem = os.path.splitext(os.path.basename(image.path))[0]
        name = by_stem.pop(stem, None)
        if name is None:
            missing.append(os.path.basename(image.path))
        else:
            image.conditioning = str(folder / name)
    if missing:
        raise DataError(
            f"{folder} has no mask or control picture for {len(missing)} of {len(found.images)} pictures: "
            f"{', '.join(missing[:5])}",
            key="conditioning_data_dir",
            hint="It must have the same name as the picture.",
        )
    if by_stem and found.spec.conditioning_must_match:
        raise DataError(
            f"{folder} has {len(by_stem)} pictures that go with no training picture: "
            f"{', '.join(sorted(by_stem.values())[:5])}",
            key="conditioning_data_dir",
        )


def _from_metadata(spec: SubsetSpec) -> FoundSubset:
    path = spec.metadata_file
    if path is None:
        raise DataError("a subset names no metadata_file", key="dataset_config")
    entries = _read_metadata(path)
    files = _files_by_stem(spec.image_dir) if spec.image_dir is not None else {}

    def look(item: tuple[str, Any]) -> tuple[FoundImage, bool]:
        key, entry = item
        if not isinstance(entry, dict):
            raise DataError(f"{path.name}: the entry {key!r} is no object", key="in_json")
        caption = _prompt(entry, spec.captions.caption_separator)
        image = _locate(key, spec.image_dir, files)
        if image is None:
            raise DataError(f"{path.name}: no picture and no .npz found for {key!r} in {spec.image_dir}", key="in_json")
        bucket = entry.get("train_resolution")
        size = entry.get("image_size")
        if size is None:
            size = _npz_size(image) if image.endswith(".npz") else picture_size(image)
        return (
            FoundImage(
                image,
                caption or "",
                (int(size[0]), int(size[1])),
                bucket=tuple(bucket) if bucket else None,
                latents=image if image.endswith(".npz") else None,
            ),
            bool(caption),
        )

    results = in_parallel(look, list(entries.items()))
    found = FoundSubset(spec, [image for image, _ in results], sum(has for _, has in results))
    missing = len(results) - found.captions_found
    if missing:
        found.warnings.append(f"{spec.name}: {missing} of {len(results)} entries have neither caption nor tags")
    return found


def _read_metadata(path: Path) -> dict[str, Any]:
    """Entries by picture, from a JSON object or from lines of JSON (.jsonl)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            return {line["image_path"]: line for line in lines}
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read the metadata file {path}: {error.strerror or error}", key="in_json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is no metadata file: {error}", key="in_json") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name} is no metadata file: it must be an object by picture", key="in_json")
    return content


def _prompt(entry: dict[str, Any], separator: str) -> str | None:
    caption, tags = entry.get("caption"), entry.get("tags")
    if tags:
        return f"{caption}{separator} {tags}" if caption else str(tags)
    return str(caption) if caption else None


def _files_by_stem(folder: Path) -> dict[str, str]:
    """Picture files of a folder by stem, then cache files where no picture has the stem."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}", key="train_data_dir") from error
    files: dict[str, str] = {}
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in IMAGE_EXTENSIONS:
            files.setdefault(stem, os.path.join(folder, name))
    for name in names:
        if name.endswith(".npz"):
            files.setdefault(name[:-4], os.path.join(folder, name))
    return files


def _locate(key: str, folder: Path | None, files: dict[str, str]) -> str | None:
    if os.path.isfile(key):
        return key
    if key in files:
        return files[key]
    cache = os.path.splitext(key)[0] + ".npz"
    if os.path.isfile(cache):
        return cache
    if folder is not None:
        for name in (key, f"{key}.npz"):
            if os.path.isfile(folder / name):
                return str(folder / name)
    return None


def _npz_size(path: str) -> Size:
    size = read_arrays(path)["original_size"]
    return int(size[0]), int(size[1])
