"""Dataset balancing: folders renamed so that each shows about the same number of pictures in an epoch."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.prepare.journal import Change, Journal
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS

KIND = "balancing"
_FACTOR = re.compile(r"^\{(\d+(?:\.\d+)?)\}")
_REPEATS = re.compile(r"^\d+_(?=.)")
_MOST_REPEATS = 10**6


@dataclass(frozen=True)
class Renaming:
    """One folder: its pictures, its name and the name it gets. `factor` is the text of {X} in front of its name;
    `passed` means that it has no repeats in front of its name and keeps it."""

    old: str
    new: str
    pictures: int
    repeats: int
    factor: str = ""
    passed: bool = False

    @property
    def changes(self) -> bool:
        """Whether the name changes."""
        return self.old != self.new


def plan(folder: Path, steps: int, insecure: bool) -> list[Renaming]:
    """The new names of the folders directly in `folder`; touches nothing.

    Args:
        folder: the picture folders' folder, a real path.
        steps: pictures to show per folder and epoch.
        insecure: rename folders that have no repeats in front of their name, too.

    Raises:
        UserError: there is no such folder, nothing in it can be renamed, or two would get the same name.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", "folder", "Choose an existing one.")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        # a link leads elsewhere, and what lies elsewhere is not renamed
        names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        found = [_renaming(folder, name, steps, insecure) for name in names]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.", "folder") from error
    if all(item.passed for item in found):
        raise UserError(
            f"{folder} holds no folder named like 10_cat.",
            "folder",
            "Choose the folder that holds the picture folders, not one of them.",
        )
    taken = Counter(item.new for item in found)
    twice = [item.old for item in found if taken[item.new] > 1]
    if twice:
        raise UserError(f"{' and '.join(twice[:3])} would get the same name.", "folder", "Rename one of them first.")
    files = {entry.name for entry in entries} - set(names)
    if hit := [item.new for item in found if item.changes and item.new in files]:
        raise UserError(f"A file or link named {hit[0]} is in the way.", "folder", "Move it away first.")
    return found


def _renaming(folder: Path, name: str, steps: int, insecure: bool) -> Renaming:
    with os.scandir(folder / name) as inside:
        count = sum(
            os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
            for entry in inside
            if entry.is_file() and not entry.name.startswith(".")
        )
    factor = _FACTOR.match(name)
    rest = name[factor.end() :] if factor else name
    numbered = _REPEATS.match(rest)
    if not numbered and not insecure:
        return Renaming(name, name, count, 0, passed=True)
    words = rest[numbered.end() :] if numbered else rest
    if not count:
        return Renaming(name, f"0_{words}" if words else name, 0, 0)
    if not words:
        return Renaming(name, name, count, 0, passed=True)
    repeats = max(1, round(steps / count))
    if factor:
        repeats = max(1, round(repeats * float(factor[1])))
    repeats = min(repeats, _MOST_REPEATS)
    return Renaming(name, f"{repeats}_{words}", count, repeats, factor[1] if factor else "")


def balance(folder: Path, steps: int, insecure: bool) -> list[Renaming]:
    """Rename the folders; `undo` gives them their names back.

    Raises:
        UserError: as `plan`, or the disk refuses; then nothing was renamed.
    """
    plan(folder, steps, insecure)
    journal = Journal(folder)
    with journal.locked():
        found = plan(folder, steps, insecure)
        changed = [item for item in found if item.changes]
        if changed:
            change = journal.begin(KIND)
            # by way of a folder of its own, as one folder may get the name that another gives up
            out = [(folder / item.old, change.new / str(number)) for number, item in enumerate(changed)]
            back = [(change.new / str(number), folder / item.new) for number, item in enumerate(changed)]
            names = {item.old: item.new for item in changed}
            journal.carry_out(change, [out, back], (), {"names": names})
    return found


def undo(folder: Path) -> Change:
    """Give the folders the names back that they had before the newest balancing.

    Raises:
        UserError: there is nothing to undo, or a folder has been renamed or removed since.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", "folder")
    journal = Journal(folder)
    with journal.locked():
        last = journal.last()
        gone = _gone(folder, list(last.facts.get("names", {}).values()) if last else [])
        if gone:
            raise UserError(f"{gone[0]} is no longer in {folder}.", "folder", "It was renamed or removed since.")
        return journal.undo()


def _gone(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_dir()]
