"""Finding the pictures of a subset with their captions and sizes, from names and file headers alone."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sd_scripts.data.config import SubsetSpec
from sd_scripts.data.control import check_shapes
from sd_scripts.data.image import picture_size
from sd_scripts.data.info_cache import InfoCache
from sd_scripts.data.npz import read_arrays
from sd_scripts.data.records import FoundImages
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.captions import count_tags, read_caption
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.filememory import cache_folder, facts_of
from sd_scripts.schema.filestamps import LaterStamps
from sd_scripts.schema.filework import in_parallel
from sd_scripts.schema.folders import ClassFolder, caption_advice, list_folder
from sd_scripts.schema.imagesize import remembered_sizes
from sd_scripts.schema.metadata_file import caption_of_entry, files_by_stem, locate, read_metadata, size_in


def _no_images() -> FoundImages:
    """Columns without any picture."""
    return FoundImages("", [], [], np.zeros((0, 2), dtype=np.int32))


@dataclass
class FoundSubset:
    """What was found for a subset. captions_found counts caption files (or metadata entries) with text."""

    spec: SubsetSpec
    images: FoundImages = field(default_factory=_no_images)
    captions_found: int = 0
    warnings: list[str] = field(default_factory=list)

    def tag_counts(self) -> Counter[str]:
        """How often each tag stands in the captions, every picture counted once."""
        counts: Counter[str] = Counter()
        for caption, times in Counter(self.images.captions).items():
            count_tags(counts, caption, times)
        return counts


def find_images(spec: SubsetSpec) -> FoundSubset:
    """All pictures of a subset, sorted by name. Raises DataError naming the folder or file that cannot be used."""
    try:
        found = _from_metadata(spec) if spec.kind == "finetune" else _from_folder(spec)
        if spec.conditioning_data_dir is not None:
            _attach_conditioning(found, spec.conditioning_data_dir)
    except DataError as error:
        if not spec.place:
            raise
        raise DataError(f"{spec.place}: {error.message}", "dataset_config", error.hint) from error
    if not found.images:
        found.warnings.append(f"{spec.name}: no pictures found")
    return found


def _from_folder(spec: SubsetSpec) -> FoundSubset:
    if spec.image_dir is None:
        raise DataError("a subset names no image_dir", key="dataset_config")
    if not spec.image_dir.is_dir():
        raise DataError(f"the picture folder {spec.image_dir} does not exist", key="train_data_dir")
    folder = list_folder(spec.image_dir, spec.caption_extension)
    folder.class_tokens = spec.class_tokens or ""
    root = str(spec.image_dir)
    info = InfoCache(spec.image_dir, folder.images) if spec.cache_info else None
    files = [name for name in folder.captions if name is not None]
    with LaterStamps(root, files, here=cache_folder() is None) as stamps:
        sizes, new_sizes = _sizes(root, folder.images, info)
        captions, new_captions, empty = _captions(folder, spec, stamps)
    with_text = folder.captions_found - len(empty)
    found = FoundSubset(spec, FoundImages(os.path.join(root, ""), folder.images, captions, sizes), with_text)
    if info is not None and (new_sizes or new_captions or not info.exists):
        info.save(sizes.tolist(), captions)
    if not spec.is_reg:
        advice = caption_advice(folder, spec.caption_extension)
        if advice:
            found.warnings.append(advice)
    if empty:
        names = ", ".join(folder.images[number] for number in empty[:5])
        found.warnings.append(f"{spec.name}: {len(empty)} caption files are empty, as if missing ({names} ...)")
    return found


def _sizes(root: str, names: list[str], info: InfoCache | None) -> tuple[np.ndarray, int]:
    """Width and height of pictures as shown, int32 [n, 2], and for how many of them that is news."""
    facts = remembered_sizes(root, names, picture_size if info is None else info.size_of)
    packed = np.frombuffer(facts.numbers, dtype=np.int64)
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1).astype(np.int32), facts.fresh


def _captions(folder: ClassFolder, spec: SubsetSpec, stamps: LaterStamps) -> tuple[list[str], int, list[int]]:
    """Caption of every picture, how many were read anew, and the numbers of those whose file is empty."""
    wildcards = spec.captions.enable_wildcard

    def read(path: str) -> tuple[int, str]:
        caption = read_caption(path, wildcards)
        return (0, "") if caption is None else (1, caption)

    instead = spec.class_tokens or ""
    kind = f"captions, {'all lines' if wildcards else 'first line'}, {spec.caption_extension}"
    facts = facts_of(str(folder.path), stamps.names, kind, read, texts=True, stamps=stamps)
    if sum(facts.numbers) == len(folder.images):
        return facts.texts, facts.fresh, []
    texts = zip(facts.texts, facts.numbers)
    captions, empty = [], []
    for number, name in enumerate(folder.captions):
        text, has_text = ("", 0) if name is None else next(texts)
        captions.append(text if has_text else instead)
        if name is not None and not has_text:
            empty.append(number)
    return captions, facts.fresh, empty


def _attach_conditioning(found: FoundSubset, folder: Path) -> None:
    """Give every picture the file of the same stem in another folder."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist", key="conditioning_data_dir")
    by_stem = {os.path.splitext(name)[0]: name for name in list_folder(folder).images}
    prefix = os.path.join(folder, "")
    missing, files = [], []
    for name in map(os.path.basename, found.images.names):
        file = by_stem.pop(os.path.splitext(name)[0], None)
        if file is None:
            missing.append(name)
        else:
            files.append(prefix + file)
    if missing:
        raise DataError(
            f"{folder} has no mask or control picture for {len(missing)} of {len(found.images)} pictures: "
            f"{', '.join(missing[:5])}",
            key="conditioning_data_dir",
            hint="It must have the same name as the picture.",
        )
    found.images.conditioning = files
    check_shapes(found.images, _sizes(str(folder), [os.path.basename(file) for file in files], None)[0])
    if by_stem and found.spec.conditioning_must_match:
        raise DataError(
            f"{folder} has {len(by_stem)} picture(s) that go with no training picture: "
            f"{', '.join(sorted(by_stem.values())[:5])}",
            key="conditioning_data_dir",
        )


def _from_metadata(spec: SubsetSpec) -> FoundSubset:
    path = spec.metadata_file
    if path is None:
        raise DataError("a subset names no metadata_file", key="dataset_config")
    entries = read_metadata(path)
    files = files_by_stem(spec.image_dir) if spec.image_dir is not None else {}

    def look(item: tuple[str, Any]) -> tuple[str, str, Size, Size]:
        key, entry = item
        caption = caption_of_entry(entry, spec.captions.caption_separator)
        image = locate(key, spec.image_dir, files)
        if image is None:
            raise DataError(f"{path.name}: no picture and no .npz found for {key!r} in {spec.image_dir}", key="in_json")
        bucket = size_in(entry, "train_resolution", key, path) or (0, 0)
        size = size_in(entry, "image_size", key, path)
        if size is None:
            size = _npz_size(image) if image.endswith(".npz") else picture_size(image)
        return image, caption or "", (int(size[0]), int(size[1])), bucket

    results = in_parallel(look, list(entries.items()))
    images = FoundImages(
        "",
        [image for image, _, _, _ in results],
        [caption for _, caption, _, _ in results],
        _pairs(size for _, _, size, _ in results),
        buckets=_pairs(bucket for _, _, _, bucket in results),
    )
    found = FoundSubset(spec, images, sum(bool(caption) for caption in images.captions))
    missing = len(results) - found.captions_found
    if missing:
        found.warnings.append(f"{spec.name}: {missing} of {len(results)} entries have neither caption nor tags")
    return found


def _pairs(sizes: Iterable[Size]) -> np.ndarray:
    flat = array("i", (side for size in sizes for side in size))
    return np.frombuffer(flat, dtype=np.int32).reshape(-1, 2)


def _npz_size(path: str) -> Size:
    size = read_arrays(path)["original_size"]
    return int(size[0]), int(size[1])
