"""Files of the scripts: finding pictures, writing complete or not at all, never over what is there unless allowed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sd_scripts.schema.captions import decode_caption
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS, normalise_extension
from sd_scripts.tools.report import report

_NAMED = 3


def folder(text: str | None, key: str) -> Path:
    """The folder of this name. Raises UserError where there is none."""
    if not text:
        raise UserError(f"{key} is missing.", key, "Give a folder.")
    path = Path(text)
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"The folder {path} {what}.", key)
    return path


def find_pictures(root: Path, recursive: bool = False) -> list[Path]:
    """Pictures in a folder, or in all folders below too, in order of their paths. Hidden files are passed over."""
    return sorted(_walk(root, recursive))


def _walk(root: Path, recursive: bool) -> Iterator[Path]:
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and entry.is_file():
                yield root / entry.name
            elif recursive and entry.is_dir(follow_symlinks=False):
                yield from _walk(root / entry.name, recursive)


def some_pictures(text: str | None, key: str, recursive: bool = False) -> list[Path]:
    """Pictures of a folder. Raises UserError where there are none."""
    root = folder(text, key)
    found = find_pictures(root, recursive)
    if not found:
        hint = "Pictures are png, jpg, jpeg, webp, bmp or avif files."
        below = "" if recursive else " itself"
        raise UserError(f"There are no pictures in the folder {root}{below}.", key, hint)
    return found


def read_text(path: Path) -> str | None:
    """Text of a file, UTF-8 or UTF-16, without blanks around; None if it does not exist. Raises DataError naming it."""
    try:
        return decode_caption(path.read_bytes(), path).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def beside(picture: Path, extension: str) -> Path:
    """The file of the same name with another ending, which may be given without its dot."""
    return picture.with_name(picture.stem + normalise_extension(extension))


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A name to write to; the file takes its place when all went well, else it is gone. Makes the folder.

    flush: wait until the disk has it, so that even a power cut leaves a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.part{path.suffix}")
    try:
        yield aside
        if flush:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
        with report.writing(path):
            os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, as it is on every system) complete or not at all."""
    with replacing(path) as aside:
        aside.write_bytes(text.encode("utf-8"))


def write_caption(path: Path, text: str) -> None:
    """As write_text, but without waiting for the disk, which would take minutes for ten thousand small files."""
    with replacing(path, flush=False) as aside:
        aside.write_bytes(text.encode("utf-8"))


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Look before anything is written. Raises UserError naming files that would be written over, or written twice."""
    seen: set[Path] = set()
    twice = [path for path in paths if path in seen or seen.add(path)]  # type: ignore[func-returns-value]
    if twice:
        raise UserError(
            f"Two pictures would both be written to {twice[0]}.",
            hint="Rename one of them, or work on one folder alone.",
        )
    there = [] if overwrite else sorted(path for path in seen if os.path.lexists(path))
    if there:
        names = ", ".join(str(path) for path in there[:_NAMED]) + (" ..." if len(there) > _NAMED else "")
        raise UserError(
            f"{len(there)} of {len(seen)} files are there already ({names}); nothing was written.",
            "overwrite",
            "Choose another folder, or give --overwrite.",
        )
