"""The dataset view: folders with their pictures, captions as the text encoder sees them, thumbnails, duplicates."""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from kohya_gui.dataset_view import FolderView, PictureView, view
from sd_scripts.schema.captions import Moment, Replacements, compose, read_caption
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete
from sd_scripts.schema.templates import OBJECT, STYLE, filled

MOST_PIXELS = 120_000_000
# what the known endings stand for; Pillow goes by the content, and for some other kinds it starts programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "AVIF", "TIFF", "GIF")
MOST_CAPTION = 20_000
_HASH_BITS, _DISTANCE = 64, 5
_CACHE_FILES = 20_000


def scan(folder: Path | str, values: Mapping[str, Any]) -> list[FolderView]:
    """The picture folders below a folder, each with its pictures, sizes, buckets and crop boxes.

    Args:
        folder: the training folder (class folders below it, or pictures directly in it).
        values: the form's values; missing keys count as default. They decide buckets and captions.

    Raises:
        UserError: if the folder is missing or holds no pictures.
    """
    known = complete("train_network", {})
    full = known | {key: value for key, value in values.items() if value is not None and key in known}
    found = view({**full, "train_data_dir": str(folder), "reg_data_dir": None, "dataset_config": None, "in_json": None})
    if not found.folders and found.problems:
        first = found.problems[0]
        raise UserError(first.message, first.key, first.hint)
    return found.folders


def caption(picture: PictureView, folder: FolderView) -> str:
    """The caption of a picture: its file's or the metadata's words, else those in the folder's name; "" for none.

    Raises:
        UserError: if the file is no readable text.
    """
    if picture.text:
        return picture.text[:MOST_CAPTION]
    if picture.caption_path is None:
        return folder.class_tokens
    text = read_caption(picture.caption_path)
    return (text or folder.class_tokens)[:MOST_CAPTION]


def captions_seen(picture: PictureView, folder: FolderView, values: Mapping[str, Any], draws: int = 5) -> list[str]:
    """What the text encoder sees at several showings: after prefix, shuffling, dropping, alternatives, and with all
    parts of a new word.

    Args:
        picture: one of the folder's.
        folder: its rules for captions hold.
        values: the options of the run, for its length and a new word.
        draws: how many showings.

    Raises:
        UserError: if the caption is no readable text.
    """
    rules = folder.rules
    text = picture.text or ""
    if picture.caption_path is not None:
        text = read_caption(picture.caption_path, rules.enable_wildcard) or ""
    rng = random.Random(picture.path)
    steps = int(values.get("max_train_steps") or 0)
    replaced = new_word(values)
    return [
        compose(text or folder.class_tokens, rules, rng, Moment(1 + i, i * steps // max(draws, 1), steps), replaced)
        for i in range(draws)
    ]


def new_word(values: Mapping[str, Any]) -> Replacements:
    """What comes in the place of an embedding's new word, or of the whole caption where ready sentences are chosen."""
    word, count = str(values.get("token_string") or "").strip(), int(values.get("num_vectors_per_token") or 1)
    if not word:
        return ()
    names = " ".join([word, *(f"{word}{number}" for number in range(1, count))])
    if values.get("use_object_template") or values.get("use_style_template"):
        return (("", filled(OBJECT if values.get("use_object_template") else STYLE, names)),)
    return ((word, names),) if count > 1 else ()


def picture_problems(folders: Iterable[FolderView], problem: str) -> list[PictureView]:
    """The pictures with a problem: "no caption", "too small", "unreadable" or "odd bucket"."""
    return [picture for folder in folders for picture in folder.pictures if problem in picture.problems]


def open_safely(path: Path | str) -> Image.Image:
    """Open a picture whose size is within reason, not yet decoded.

    Raises:
        UserError: if it is no picture, damaged, or so large that decoding it could fill the memory.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"{os.path.basename(path)} is far too large to be shown.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{os.path.basename(path)} is no readable picture.") from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise UserError(f"{os.path.basename(path)} is too large to be shown ({image.width}x{image.height}).")
    return image


def thumbnail(path: Path | str, size: int = 256, cache: Path | None = None) -> Path:
    """A small JPEG of a picture, upright, at most `size` pixels wide and high; made once, then taken from the cache.

    Args:
        cache: folder of the thumbnails; by default beside the job folders.

    Raises:
        UserError: if the picture cannot be read.
    """
    folder = cache if cache is not None else Path(__file__).resolve().parent.parent / "jobs" / ".thumbnails"
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"{os.path.basename(path)} cannot be read: {error.strerror}.") from error
    key = hashlib.sha256(f"{os.path.abspath(path)}\0{found.st_mtime_ns}\0{found.st_size}\0{size}".encode()).hexdigest()
    target = folder / key[:2] / f"{key[2:34]}.jpg"
    if target.exists():
        return target
    with open_safely(path) as image:
        small = _small(image, size, os.path.basename(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    small.save(temporary, "JPEG", quality=82)
    os.replace(temporary, target)
    return target


def _small(image: Image.Image, size: int, name: str) -> Image.Image:
    try:
        # JPEG decoders can make a smaller picture at once, which saves most of the time
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((size, size), Image.Resampling.LANCZOS)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            grey = Image.new("RGBA", upright.size, (128, 128, 128, 255))
            return Image.alpha_composite(grey, upright.convert("RGBA")).convert("RGB")
        return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is damaged.", hint="Replace it or take it out.") from error


def clean_thumbnails(cache: Path, most: int = _CACHE_FILES) -> int:
    """Delete the thumbnails used longest ago, down to `most`; how many were deleted."""
    files = sorted(cache.glob("*/*.jpg"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[most:]:
        file.unlink(missing_ok=True)
    return len(files[most:])


@lru_cache(maxsize=100_000)
def _hash_of(path: str, changed: int, length: int) -> int | None:
    """64 bits that say where the picture gets brighter from left to right; `changed` and `length` as for sizes."""
    try:
        with open_safely(path) as image:
            image.draft("L", (36, 32))
            upright = ImageOps.exif_transpose(image)
            pixels = upright.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    except (UserError, OSError, ValueError, SyntaxError):
        return None
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (pixels[row * 9 + column] > pixels[row * 9 + column + 1])
    return bits


def near_duplicates(folders: Iterable[FolderView]) -> list[list[str]]:
    """Groups of pictures that look almost the same. Decodes every picture once: for a button, not for every change."""
    hashes: dict[str, int] = {}
    for folder in folders:
        for picture in folder.pictures:
            if picture.size is not None:
                found = os.stat(picture.path)
                value = _hash_of(picture.path, found.st_mtime_ns, found.st_size)
                if value is not None:
                    hashes[picture.path] = value
    leader = {path: path for path in hashes}

    def root(path: str) -> str:
        while leader[path] != path:
            leader[path] = leader[leader[path]]
            path = leader[path]
        return path

    for first, second in _close_pairs(hashes):
        leader[root(second)] = root(first)
    groups: dict[str, list[str]] = defaultdict(list)
    for path in hashes:
        groups[root(path)].append(path)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _close_pairs(hashes: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    """Pairs that differ in few bits.

    Cut into one piece more than bits may differ, at least one piece of such a pair is equal.
    """
    pieces = _DISTANCE + 1
    width = _HASH_BITS // pieces + 1
    for piece in range(pieces):
        shelves: dict[int, list[str]] = defaultdict(list)
        for path, value in hashes.items():
            shelves[value >> (piece * width) & ((1 << width) - 1)].append(path)
        for shelf in shelves.values():
            for index, first in enumerate(shelf):
                # flat pictures all share a piece; comparing a thousand neighbours finds what there is to find
                for second in shelf[index + 1 : index + 1001]:
                    if (hashes[first] ^ hashes[second]).bit_count() <= _DISTANCE:
                        yield first, second
