"""Captions by hand: the tags of a caption, ticking one, collecting them from a folder, writing one file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.paths import Roots, caption_ending, natural
from kohya_gui.prepare.looks import pictures_in
from sd_scripts.schema.captions import decode_caption
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS

PAGE = 5
MOST_CAPTION = 20_000


@dataclass(frozen=True)
class Row:
    """One picture with its caption: `tags` are those to tick, (tag, ticked)."""

    picture: Path
    caption: str
    tags: tuple[tuple[str, bool], ...]


def split(text: str) -> list[str]:
    """The tags of a caption or of the quick tags, each once, in order."""
    return list(dict.fromkeys(tag.strip() for tag in text.split(",") if tag.strip()))


def choices(caption: str, quick: Sequence[str]) -> list[tuple[str, bool]]:
    """The boxes under a picture: the quick tags, then the tags that only this caption has."""
    own = split(caption)
    return [(tag, tag in own) for tag in quick] + [(tag, True) for tag in own if tag not in quick]


def ticked(caption: str, tag: str, on: bool, quick: Sequence[str]) -> str:
    """The caption after a box was ticked or cleared: quick tags in their order, then the others as they were added."""
    own = [known for known in split(caption) if known != tag]
    if on:
        own.append(tag)
    return ", ".join([known for known in quick if known in own] + [known for known in own if known not in quick])


def ending(text: str) -> str:
    """The ending of caption files as typed, with its dot.

    Raises:
        UserError: if it could name any other file.
    """
    return caption_ending(text, "caption_ext")


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order.

    Raises:
        UserError: there are none.
    """
    return sorted(pictures_in(folder, False, "images_dir"), key=lambda path: natural(path.name))


def read(picture: Path, extension: str) -> str:
    """The caption beside a picture; "" if there is none.

    Raises:
        UserError: if the file is no readable text.
    """
    path = picture.with_name(picture.stem + extension)
    try:
        return decode_caption(path.read_bytes(), path).strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or error}.", "caption_ext") from error


def page(found: Sequence[Path], number: int, extension: str, quick: Sequence[str]) -> list[Row]:
    """The rows of one page, counted from 1."""
    rows = []
    for picture in found[(number - 1) * PAGE : number * PAGE]:
        caption = read(picture, extension)
        rows.append(Row(picture, caption, tuple(choices(caption, quick))))
    return rows


def pages(found: Sequence[Path]) -> int:
    """How many pages there are, at least one."""
    return max(1, -(-len(found) // PAGE))


def collect(found: Sequence[Path], extension: str, most_words: int) -> list[str]:
    """All tags of the captions, the first spelling of each, without those of more words than `most_words`."""
    tags: dict[str, str] = {}
    for picture in found:
        for tag in split(read(picture, extension)):
            if len(tag.split()) <= most_words:
                tags.setdefault(tag.casefold(), tag)
    return list(tags.values())


def write(roots: Roots, picture: str, extension: str, text: str) -> Path:
    """Write the caption of a picture, complete or not at all.

    Args:
        roots: the folders that may be written.
        picture: path of the picture, which must be there.
        extension: ending of the caption file.
        text: the caption; an empty one makes an empty file only where one is there already.

    Raises:
        UserError: the picture is not there or not allowed, or the disk refuses.
    """
    real = roots.inside(picture)
    if real.suffix.lower() not in IMAGE_EXTENSIONS or not real.is_file():
        raise UserError(f"There is no picture {real.name}.")
    target = real.with_name(real.stem + ending(extension))
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise UserError(f"{target.name} is no plain file.", hint="Remove it first.")
    if len(text) > MOST_CAPTION:
        raise UserError(f"The caption has {len(text):,} signs; {MOST_CAPTION:,} are allowed.")
    if not text.strip() and not target.exists():
        return target
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(text.replace("\r\n", "\n").strip().encode("utf-8"))
        os.replace(aside, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{target.name} cannot be written: {error.strerror or error}.") from error
    return target
