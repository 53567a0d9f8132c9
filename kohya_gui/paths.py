"""Which files the page may touch: one door for every path that comes from a browser."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS

IMAGE_SUFFIXES = IMAGE_EXTENSIONS
# what the page writes beside pictures; with any other ending a caption could become a program or a setting
CAPTION_ENDINGS = (
    ".txt", ".caption", ".captions", ".cap", ".tag", ".tags", ".text", ".prompt", ".desc", ".description", ".label",
    ".wd14", ".wd", ".blip", ".blip2", ".booru", ".tagger",
)  # fmt: skip
_DOUBLE = re.compile(r"\.[\w-]{1,40}(\.\w+)")
_DRIVE = re.compile(r"^[A-Za-z]:")
DEVICES = re.compile(r"^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?$", re.IGNORECASE)
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
MOST_ENTRIES = 5000
# hidden folders hold keys, tokens and start-up files; models that were downloaded lie in these
_OPEN_HIDDEN = ((".cache", "huggingface", "hub"), (".cache", "torch", "hub"))


@dataclass(frozen=True)
class Entry:
    """One line of the browse dialog. `size` is in bytes (files), `pictures` counts the folder's own pictures."""

    name: str
    path: str
    folder: bool
    size: int | None
    pictures: int | None


@dataclass(frozen=True)
class Listing:
    """What the browse dialog shows: the folder, its parent inside the roots (or None), folders first, then files."""

    path: str
    parent: str | None
    entries: list[Entry]
    cut: bool


def _refuse_form(text: str) -> None:
    """Refuse what is no plain path at all, before the file system sees it."""
    if "\0" in text:
        raise UserError("The path holds a NUL character.", hint="Type the path again.")
    if _URL.match(text):
        raise UserError(f"{text!r} is an address, not a path.", hint="Give a file or folder of this machine.")
    # both spellings of separators are looked at everywhere: a config from Windows may arrive on Linux and back
    plain = text.replace("\\", "/")
    if plain.startswith("//"):
        raise UserError(f"{text!r} is a network or device path.", hint="Mount it and give its folder on this machine.")
    if _DRIVE.match(plain) and not plain[2:].startswith("/"):
        raise UserError(
            f"{text!r} depends on the drive's current folder.", hint="Give the whole path, such as C:/pictures."
        )
    if os.name == "nt" and plain.startswith("/"):
        raise UserError(f"{text!r} has no drive.", hint="Give the whole path, such as C:/pictures.")
    for part in plain.split("/"):
        if DEVICES.match(part.rstrip(" .")) and (os.name == "nt" or not Path(text).exists()):
            raise UserError(f"{part!r} is the name of a device, not of a file.", hint="Choose another name.")


def _folded(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.casefold() for part in parts)


def caption_ending(text: str, key: str) -> str:
    """The ending of caption files that the page may write, with its dot.

    Raises:
        UserError: for any other ending.
    """
    plain = text.strip()
    made = plain if plain.startswith(".") else f".{plain}"
    # as ".wd14.txt", which keeps several captions of one picture apart
    double = _DOUBLE.fullmatch(made.lower())
    if (double[1] if double else made.lower()) not in CAPTION_ENDINGS:
        raise UserError(
            f"{text[:100]!r} is no ending of caption files that the page writes.",
            key,
            f"Choose one of {', '.join(CAPTION_ENDINGS)}, or run the script in a terminal.",
        )
    return made


class Roots:
    """The folders the page may read and write, links followed. Everything else is refused.

    Args:
        folders: allowed folders; missing ones are kept (they may be made later).
    """

    def __init__(self, folders: Sequence[Path | str]) -> None:
        unique = dict.fromkeys(Path(os.path.realpath(Path(folder).expanduser())) for folder in folders)
        self.folders: tuple[Path, ...] = tuple(unique)

    def inside(self, path: Path | str, key: str | None = None) -> Path:
        """The real path (links and `..` resolved) if it lies inside an allowed folder.

        A relative path starts at the first allowed folder, never at the process's current folder.

        Args:
            path: as it came.
            key: the option that holds it, for the error.

        Raises:
            UserError: for any other path, and for forms that are no plain path (NUL, network, device, drive-relative).
        """
        try:
            return self._inside(path)
        except UserError as error:
            raise UserError(error.message, key, error.hint) from error

    def _inside(self, path: Path | str) -> Path:
        text = os.fspath(path).strip()
        if not text:
            raise UserError("No path was given.")
        _refuse_form(text)
        if not self.folders:
            raise UserError("No folder is open to the page.", hint="Start it with --allow_folder.")
        given = Path(text).expanduser()
        whole = given if given.is_absolute() else self.folders[0] / given
        try:
            real = Path(os.path.realpath(whole))
        except (OSError, ValueError) as error:
            raise UserError(f"{text!r} cannot be read as a path: {error}.") from error
        if not any(real == root or real.is_relative_to(root) for root in self.folders):
            shown = ", ".join(str(root) for root in self.folders)
            raise UserError(
                f"{text!r} lies outside the folders open to the page ({shown}).", hint="Choose a path inside them."
            )
        self._refuse_hidden(real, text)
        return real

    def _refuse_hidden(self, real: Path, text: str) -> None:
        """Refuse what is hidden, or lies in a hidden folder, below every allowed folder that holds it."""
        below = [real.relative_to(root).parts for root in self.folders if real.is_relative_to(root)]
        parts = min(below, key=len)
        hidden = [place for place, part in enumerate(parts) if part.startswith(".")]
        if hidden and not any(_folded(parts[hidden[0] :])[: len(kept)] == kept for kept in _OPEN_HIDDEN):
            raise UserError(
                f"{text!r} is hidden or lies in a hidden folder, which the page does not open.",
                hint="Choose another place, or open that folder with --allow_folder.",
            )
        if os.name == "nt" and any(":" in part or part != part.rstrip(" .") for part in parts):
            raise UserError(
                f"{text!r} is no plain name on Windows.", hint="Leave out colons, trailing dots and blanks."
            )

    def allows(self, path: Path | str) -> bool:
        """Whether `inside` would accept the path."""
        try:
            self.inside(path)
        except UserError:
            return False
        return True

    def listing(self, path: Path | str | None = None, *, files: bool = True, suffixes: Sequence[str] = ()) -> Listing:
        """The contents of an allowed folder, folders first, names in natural order; hidden names are left out.

        Args:
            path: the folder, or a file in it; None lists the roots themselves if there are several.
            files: whether files are listed.
            suffixes: only files ending so; empty for all.

        Raises:
            UserError: if the folder is not allowed, missing or not readable.
        """
        if path is None or not str(path).strip():
            if len(self.folders) != 1:
                entries = [Entry(str(root), str(root), True, None, None) for root in self.folders if root.is_dir()]
                return Listing("", None, entries, False)
            path = self.folders[0]
        folder = self.inside(path)
        folder = folder if folder.is_dir() else folder.parent
        if not self.allows(folder) or not folder.is_dir():
            raise UserError(f"The folder {str(path)!r} does not exist.", hint=_nearest_hint(folder))
        try:
            entries, cut = self._entries(folder, files, tuple(s.lower() for s in suffixes))
        except OSError as error:
            raise UserError(f"The folder {str(folder)!r} cannot be read: {error.strerror}.") from error
        above = folder.parent
        parent = (
            str(above) if folder not in self.folders and self.allows(above) else ("" if len(self.folders) > 1 else None)
        )
        return Listing(str(folder), parent, entries, cut)

    def _entries(self, folder: Path, files: bool, suffixes: tuple[str, ...]) -> tuple[list[Entry], bool]:
        folders, plain, cut = [], [], False
        with os.scandir(folder) as scan:
            for count, item in enumerate(scan):
                if count >= MOST_ENTRIES:
                    cut = True
                    break
                if item.name.startswith(".") or (item.is_symlink() and not self.allows(item.path)):
                    continue
                if item.is_dir():
                    folders.append(Entry(item.name, item.path, True, None, count_pictures(item.path)))
                elif files and (not suffixes or item.name.lower().endswith(suffixes)):
                    plain.append(Entry(item.name, item.path, False, item.stat().st_size, None))
        return sorted(folders, key=lambda e: natural(e.name)) + sorted(plain, key=lambda e: natural(e.name)), cut


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2_dog before 10_cat, whatever the case."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    ]


def count_pictures(folder: Path | str, most: int = 20000) -> int | None:
    """How many pictures lie directly in a folder; None if it cannot be read."""
    try:
        with os.scandir(folder) as scan:
            return sum(1 for _, item in zip(range(most), scan) if item.name.lower().endswith(IMAGE_SUFFIXES))
    except OSError:
        return None


def nearest_name(path: Path) -> Path | None:
    """The existing sibling whose name is most like a missing path's name, found at the first level that exists."""
    import difflib

    missing = path
    while not missing.parent.is_dir():
        if missing.parent == missing:
            return None
        missing = missing.parent
    try:
        names = [entry.name for entry in os.scandir(missing.parent)]
    except OSError:
        return None
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6)
    return missing.parent / close[0] if close else None


def _nearest_hint(path: Path) -> str:
    near = nearest_name(path)
    return f"Did you mean {near}?" if near else ""
