"""Class folders: `<repeats>_<class words>` under a training folder, or one flat folder of pictures.

Only names are read here, no picture is opened: a folder costs one directory listing.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sd_scripts.schema.errors import DataError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
CAPTION_EXTENSIONS = (".txt", ".caption", ".cap", ".tags", ".wd14")
"""Endings that are reported when captions are not found under the chosen one."""


@dataclass
class ClassFolder:
    """One folder of pictures.

    images: file names, sorted; captions: for every picture the caption file's name or None; text_files: how many files
    end in another likely caption ending (to say so when captions are missing); flat: the training folder itself.
    """

    path: Path
    repeats: int
    class_tokens: str
    images: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    text_files: dict[str, int] = field(default_factory=dict)
    flat: bool = False

    @property
    def captions_found(self) -> int:
        """Number of pictures that have a caption file."""
        return sum(name is not None for name in self.captions)


def parse_class_folder(name: str) -> tuple[int, str] | None:
    """Repeats and class words of a folder name, or None where it is not `<repeats>_<class words>`."""
    number, _, words = name.partition("_")
    try:
        repeats = int(number)
    except ValueError:
        return None
    return (repeats, words) if repeats >= 1 else None


def normalise_extension(extension: str) -> str:
    """A caption extension with its leading dot."""
    return extension if not extension or extension.startswith(".") else f".{extension}"


def caption_candidates(stem: str, extension: str) -> list[str]:
    """Caption file names to look for, best first; a face position at the end of a name may be left out."""
    parts = stem.split("_")
    names = [stem + extension]
    if len(parts) >= 5:
        names.append("_".join(parts[:-4]) + extension)
    return names


def list_folder(path: Path | str, caption_extension: str = ".caption") -> ClassFolder:
    """Pictures and caption files directly in a folder, as repeats 1 without class words. DataError if unreadable."""
    path = Path(path)
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except OSError as error:
        raise _unreadable(path, error) from error
    extension = normalise_extension(caption_extension)
    endings = Counter(name.rpartition(".")[1:] for name in names)
    pictures = tuple(dot + ending for dot, ending in endings if dot + ending.lower() in IMAGE_EXTENSIONS)
    images = sorted([name for name in names if name.endswith(pictures)])
    here = {name for name in names if name.endswith(extension)} if extension else set()
    usual = [name.rpartition(".")[0] + extension for name in images]
    captions = [name if name in here else _find_caption(image, extension, here) for name, image in zip(usual, images)]
    lower: Counter[str] = Counter()
    for (dot, ending), count in endings.items():
        lower[dot + ending.lower()] += count
    text_files = {e: lower[e] for e in CAPTION_EXTENSIONS if lower[e] and e != extension}
    return ClassFolder(path, 1, "", images, captions, text_files)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {path}: {error.strerror or error}", key="train_data_dir")


def _find_caption(image: str, extension: str, here: set[str]) -> str | None:
    stem = image.rpartition(".")[0]
    return next((name for name in caption_candidates(stem, extension) if name in here), None) if here else None


def _has_pictures(path: Path) -> bool:
    """Whether any picture lies directly in a folder; looks no further than the first one."""
    try:
        with os.scandir(path) as entries:
            return any(
                os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file()
            )
    except OSError as error:
        raise _unreadable(path, error) from error


def scan_class_folders(
    root: Path | str, caption_extension: str = ".caption", *, contents: bool = True
) -> list[ClassFolder]:
    """All class folders directly under `root`, sorted by name; a root without any is itself one flat folder.

    Without `contents` only the folders' names are read: pictures and captions stay empty lists.

    Raises DataError where the root is missing or cannot be read.
    """
    root = Path(root)
    # os.path answers no where pathlib raises: for a name longer than a file system takes
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"the picture folder {root} {what}", key="train_data_dir")
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(root, error) from error
    folders = []
    for name in names:
        parsed = parse_class_folder(name)
        if parsed is not None:
            place = root / name
            folder = list_folder(place, caption_extension) if contents else ClassFolder(place, 1, "")
            folder.repeats, folder.class_tokens = parsed
            folders.append(folder)
    if folders:
        return folders
    if not contents:
        return [ClassFolder(root, 1, "", flat=True)] if _has_pictures(root) else []
    flat = list_folder(root, caption_extension)
    flat.flat = True
    return [flat] if flat.images else []


def ignored_entries(root: Path | str) -> list[str]:
    """Names under `root` that training passes over: folders without a valid `<repeats>_` prefix, loose pictures."""
    root = Path(root)
    ignored = []
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if parse_class_folder(entry.name) is None:
                    ignored.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                ignored.append(entry.name)
    return ignored


def caption_advice(folder: ClassFolder, caption_extension: str) -> str | None:
    """One sentence when a folder with pictures has no captions at all or lacks some; None when all is there."""
    if not folder.images or folder.captions_found == len(folder.images):
        return None
    extension = normalise_extension(caption_extension)
    missing = len(folder.images) - folder.captions_found
    start = f"{folder.path.name}: no {extension} caption found for {missing} of {len(folder.images)} pictures"
    if folder.captions_found == 0 and folder.text_files:
        there = ", ".join(f"{count} {ending}" for ending, count in folder.text_files.items())
        return f"{start}, but the folder has {there} files; is caption_extension right?"
    instead = f'the class words "{folder.class_tokens}" are used' if folder.class_tokens else "they train without words"
    return f"{start}; {instead}"
