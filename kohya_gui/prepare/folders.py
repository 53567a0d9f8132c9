"""Folder preparation: pictures copied into img/<repeats>_<instance> <class>, reg/, log/ and model/ below one place."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui.paths import Roots
from kohya_gui.prepare.journal import Change, Journal
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS

KIND = "folder preparation"
CACHES = (".npz", ".safetensors")
"""Endings of files that are worked out from a picture at its old place and mean nothing beside a copy."""
_BAD_SIGNS = re.compile(r'[\\/:*?"<>|\x00-\x1f]')
_MOST_NAME = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked for. Paths are real ones inside the allowed folders; `regularisation` may be None."""

    instance: str
    class_words: str
    pictures: Path
    repeats: int
    regularisation: Path | None
    regularisation_repeats: int
    target: Path


@dataclass(frozen=True)
class FolderPlan:
    """One folder that will be made: from where, as what, with which files; `replaces` is the number of files that
    stand under its name now (None: nothing does)."""

    source: Path
    target: Path
    files: tuple[tuple[str, int], ...]
    pictures: int
    without_caption: int
    passed_over: int
    replaces: int | None

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(size for _, size in self.files)


@dataclass(frozen=True)
class Plan:
    """Everything that a preparation will do. `free` is the disk's free space in bytes; `kept` says how many earlier
    changes can be undone and how many bytes lie there for that."""

    folders: tuple[FolderPlan, ...]
    make: tuple[Path, ...]
    free: int
    interrupted: int
    kept: tuple[int, int] = (0, 0)
    form: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(folder.size for folder in self.folders)


def wanted(values: Mapping[str, Any], roots: Roots) -> Wanted:
    """What the form asks for.

    Raises:
        UserError: naming the field, if something is missing, is no name for a folder, or lies where it may not.
    """
    instance = _name(values, "util_instance_prompt_input", "The instance prompt")
    class_words = _name(values, "util_class_prompt_input", "The class prompt")
    pictures = _folder(values, "util_training_images_dir_input", roots)
    regularisation = None
    if values.get("util_regularization_images_dir_input"):
        regularisation = _folder(values, "util_regularization_images_dir_input", roots)
    key = "util_training_dir_output"
    if not values.get(key):
        raise UserError("The destination is missing.", key, "Give a folder; it is made if it is not there.")
    target = roots.inside(str(values[key]), key)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file.", key, "Give a folder.")
    return Wanted(
        instance,
        class_words,
        pictures,
        int(values.get("util_training_images_repeat_input") or 40),
        regularisation,
        int(values.get("util_regularization_images_repeat_input") or 1),
        target,
    )


def _name(values: Mapping[str, Any], key: str, what: str) -> str:
    text = str(values.get(key) or "").strip()
    if not text:
        raise UserError(f"{what} is missing.", key, "Type a word or two.")
    found = _BAD_SIGNS.search(text)
    if found:
        raise UserError(f"{what} holds {found[0]!r}, which no folder's name may have.", key, "Leave it out.")
    if len(text.encode()) > _MOST_NAME or text.endswith("."):
        raise UserError(f"{what} cannot be a folder's name.", key, "Make it shorter, without a full stop at its end.")
    return text


def _folder(values: Mapping[str, Any], key: str, roots: Roots) -> Path:
    text = str(values.get(key) or "").strip()
    if not text:
        raise UserError("The folder with the pictures is missing.", key, "Choose a folder.")
    path = roots.inside(text, key)
    if not path.is_dir():
        raise UserError(f"The folder {path} does not exist.", key, "Choose an existing one.")
    return path


# ---------------------------------------------------------------- looking


def plan(asked: Wanted, roots: Roots) -> Plan:
    """What `prepare` would do; touches nothing.

    Raises:
        UserError: there are no pictures, or source and target lie in each other.
    """
    target = asked.target
    parts = [(asked.pictures, target / "img" / f"{asked.repeats}_{asked.instance} {asked.class_words}", "training")]
    if asked.regularisation is not None:
        name = f"{asked.regularisation_repeats}_{asked.class_words}"
        parts.append((asked.regularisation, target / "reg" / name, "regularization"))
    folders = []
    for source, place, kind in parts:
        key = f"util_{kind}_images_dir_input"
        real = Path(os.path.realpath(place))
        if not roots.allows(real):
            raise UserError(f"{place} leads out of the folders open to the page.", "util_training_dir_output")
        if source == real or source.is_relative_to(real) or real.is_relative_to(source):
            raise UserError(
                f"{source} and {place} lie in each other.",
                key,
                "Choose another destination: the source stays as it is.",
            )
        folders.append(_folder_plan(source, place, key, roots))
    made = tuple(path for path in (target / "log", target / "model") if not path.exists())
    filled = {
        "train_data_dir": str(target / "img"),
        "reg_data_dir": str(target / "reg") if asked.regularisation is not None else None,
        "output_dir": str(target / "model"),
        "logging_dir": str(target / "log"),
    }
    journal = Journal(target)
    left, kept = (len(journal.interrupted()), journal.kept()) if target.is_dir() else (0, (0, 0))
    return Plan(tuple(folders), made, free_space(target), left, kept, filled)


def free_space(path: Path) -> int:
    """Free bytes on the disk on which a path lies or will lie."""
    there = next(part for part in (path, *path.parents) if part.exists())
    return shutil.disk_usage(there).free


def _folder_plan(source: Path, place: Path, key: str, roots: Roots) -> FolderPlan:
    try:
        entries = [entry for entry in os.scandir(source) if not entry.name.startswith(".")]
        # a link may lead anywhere: only what the page may read is copied
        files = {
            e.name: e.stat().st_size for e in entries if e.is_file() and (not e.is_symlink() or roots.allows(e.path))
        }
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}.", key) from error
    pictures = sorted(name for name in files if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS)
    if not pictures:
        hint = "Pictures are png, jpg, jpeg, webp, bmp or avif files directly in it."
        raise UserError(f"There are no pictures in {source}.", key, hint)
    stems = {os.path.splitext(name)[0] for name in pictures}
    beside = sorted(
        name
        for name in set(files) - set(pictures)
        if _belongs(name, stems) and os.path.splitext(name)[1].lower() not in CACHES
    )
    captions = {os.path.splitext(n)[0] for n in beside if os.path.splitext(n)[1].lower() in CAPTION_EXTENSIONS}
    chosen = tuple((name, files[name]) for name in sorted([*pictures, *beside]))
    replaces = len(list(place.iterdir())) if place.is_dir() else None
    lacking = sum(os.path.splitext(name)[0] not in captions for name in pictures)
    return FolderPlan(source, place, chosen, len(pictures), lacking, len(entries) - len(chosen), replaces)


def _belongs(name: str, stems: set[str]) -> bool:
    """Whether a file goes with a picture: `cat.txt` and `cat.wd14.txt` with `cat.png`."""
    stem = os.path.splitext(name)[0]
    return stem in stems or os.path.splitext(stem)[0] in stems


# ---------------------------------------------------------------- doing


def prepare(asked: Wanted, roots: Roots, progress: Progress = lambda done, of: None) -> Plan:
    """Copy everything aside, then show it by renames; what stood under the names is kept for `undo`.

    Raises:
        UserError: as `plan`; the disk has no room, or refuses. Then nothing was changed.
    """
    made = plan(asked, roots)
    if made.size > made.free:
        raise UserError(
            f"{made.size / 1e9:.2f} GB are to be copied, but the disk has only {made.free / 1e9:.2f} GB left.",
            "util_training_dir_output",
            "Free some space or choose another destination.",
        )
    journal = Journal(asked.target)
    with journal.locked():
        # an interrupted preparation has been put right just now: look again at what stands there
        made = plan(asked, roots)
        change = journal.begin(KIND)
        try:
            _copy(made, change, asked.target, progress)
        except BaseException:
            shutil.rmtree(change.folder)
            raise
        replaced = [folder for folder in made.folders if folder.replaces is not None]
        aside = [(folder.target, change.before / _inner(folder, asked.target)) for folder in replaced]
        shown = [(change.new / _inner(folder, asked.target), folder.target) for folder in made.folders]
        facts = {"form": dict(made.form), "files": sum(len(folder.files) for folder in made.folders)}
        journal.carry_out(change, [aside, shown], made.make, facts)
    return made


def _inner(folder: FolderPlan, target: Path) -> Path:
    return folder.target.relative_to(target)


def _copy(made: Plan, change: Change, target: Path, progress: Progress) -> None:
    total, done = sum(len(folder.files) for folder in made.folders), 0
    for folder in made.folders:
        place = change.new / _inner(folder, target)
        place.mkdir(parents=True)
        for name, _ in folder.files:
            shutil.copy2(folder.source / name, place / name)
            done += 1
            progress(done, total)


def undo(target: Path) -> Change:
    """Take the newest preparation below `target` back: its folders go, what they replaced is there again.

    Raises:
        UserError: there is nothing to undo.
    """
    if not target.is_dir():
        raise UserError(f"The folder {target} does not exist.", "util_training_dir_output")
    journal = Journal(target)
    with journal.locked():
        last = journal.last()
        gone = [place for _, place in last.phases[-1] if not place.is_dir()] if last else []
        if gone:
            raise UserError(
                f"{gone[0]} is no longer there.",
                "util_training_dir_output",
                "It was renamed or removed since, perhaps by balancing: undo that first.",
            )
        return journal.undo()
