"""Renames inside one folder that happen all or not at all, survive being killed, and can be taken back.

Everything about a change lies in `<folder>/.kohya_prepared/<moment>/`: what is copied before it is shown (`new/`), what
stood in the way (`before/`), and `journal.json` with the renames in their phases. A change is only begun when all of
its files are there, so an interrupted one is finished by doing again what has not been done.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui.job_process import FileLock
from kohya_gui.supervisor import read_json, write_json
from sd_scripts.schema.errors import UserError

PLACE, JOURNAL, COPIED, LOCK = ".kohya_prepared", "journal.json", "copied.json", "lock"
STAGING, DOING, DONE, UNDOING = "staging", "doing", "done", "undoing"
_WAIT_SECONDS = 1.0

Moves = Sequence[tuple[Path, Path]]


@dataclass
class Change:
    """One change of a folder. `phases` are lists of renames; a phase begins when the one before it is complete."""

    folder: Path
    kind: str
    state: str = STAGING
    phases: list[list[tuple[Path, Path]]] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    moment: float = 0.0

    @property
    def new(self) -> Path:
        """Where files are copied to before they are shown."""
        return self.folder / "new"

    @property
    def before(self) -> Path:
        """Where what stood in the way is kept."""
        return self.folder / "before"

    def write(self) -> None:
        """Put the journal on the disk, complete or not at all."""
        content = {
            "version": 1,
            "kind": self.kind,
            "state": self.state,
            "moment": self.moment,
            "phases": [[[str(old), str(new)] for old, new in phase] for phase in self.phases],
            "made": [str(path) for path in self.made],
            "facts": self.facts,
        }
        write_json(self.folder / JOURNAL, content)


def _read(folder: Path) -> Change | None:
    stored = read_json(folder / JOURNAL)
    if stored is None:
        return None
    try:
        return Change(
            folder=folder,
            kind=str(stored["kind"]),
            state=str(stored["state"]),
            phases=[[(Path(old), Path(new)) for old, new in phase] for phase in stored["phases"]],
            made=[Path(path) for path in stored["made"]],
            facts=dict(stored["facts"]),
            moment=float(stored["moment"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


class Journal:
    """The changes made to one folder, newest last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / PLACE
        self._made: list[Path] = []

    def changes(self) -> list[Change]:
        """All changes that are known, oldest first."""
        return [change for folder in self._folders() if (change := _read(folder)) is not None]

    def last(self) -> Change | None:
        """The change that `undo` would take back."""
        return next((change for change in reversed(self.changes()) if change.state == DONE), None)

    def kept(self) -> tuple[int, int]:
        """How many changes can still be undone, and how many bytes are kept for that."""
        changes = [change for change in self.changes() if change.state == DONE]
        size = sum(path.stat().st_size for change in changes for path in change.before.rglob("*") if path.is_file())
        return len(changes), size

    def interrupted(self) -> list[Path]:
        """The folders of changes that were begun and not brought to an end."""
        states = {folder: _read(folder) for folder in self._folders()}
        return [folder for folder, change in states.items() if change is None or change.state != DONE]

    def _folders(self) -> list[Path]:
        if not self.place.is_dir():
            return []
        return sorted(path for path in self.place.iterdir() if path.is_dir() and not path.is_symlink())

    # ---- changing

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile; what an earlier change left half is put right first.

        Raises:
            UserError: another page is changing the folder, or the disk does not let us.
        """
        self._made = missing(self.place)[:-1]
        with told(self.root):
            self.place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.place / LOCK)
        if not lock.take(_WAIT_SECONDS):
            raise UserError(f"{self.root} is being changed by another page right now.", hint="Wait until it is done.")
        try:
            with told(self.root):
                self.recover()
                yield
        finally:
            lock.release()
            self._tidy()

    def recover(self) -> None:
        """Bring interrupted changes to their end: half copied ones are removed, half done ones completed."""
        for folder in self.interrupted():
            change = _read(folder)
            if change is None or change.state == STAGING:
                # nothing outside this folder was touched yet
                shutil.rmtree(folder)
            elif change.state == DOING:
                self._run(change)
            else:
                self._take_back(change)

    def begin(self, kind: str) -> Change:
        """A new change, to be filled in its `new` folder; `carry_out` shows it."""
        moment = time.time()
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(moment))}-{time.time_ns() % 10**9:09d}"
        change = Change(self.place / name, kind, moment=moment)
        change.folder.mkdir(parents=True)
        change.write()
        return change

    def carry_out(
        self, change: Change, phases: Sequence[Moves], made: Sequence[Path], facts: Mapping[str, Any]
    ) -> None:
        """Do the renames; if one of them fails, all are taken back.

        Args:
            change: as `begin` gave it.
            phases: renames; the targets' folders are made where they are missing.
            made: folders to make, which `undo` removes again where they are empty.
            facts: what to remember of the change.
        """
        change.phases = [list(phase) for phase in phases]
        targets = [new.parent for phase in change.phases for _, new in phase if not new.is_relative_to(change.folder)]
        new = [path for target in [*targets, *made] for path in missing(target)]
        change.made = list(dict.fromkeys([*self._made, *new]))
        change.facts, change.state = dict(facts), DOING
        write_json(change.folder / COPIED, _files(change.new))
        change.write()
        for path in made:
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._run(change)
        except OSError:
            change.state = UNDOING
            change.write()
            self._take_back(change)
            raise

    def _run(self, change: Change) -> None:
        for phase in change.phases:
            for old, new in phase:
                _rename(old, new)
        change.state = DONE
        change.write()

    def undo(self) -> Change:
        """Take the newest change back.

        Raises:
            UserError: there is none.
        """
        change = self.last()
        if change is None:
            raise UserError(f"Nothing that was done in {self.root} is left to undo.")
        change.state = UNDOING
        change.write()
        self._take_back(change)
        return change

    def forget(self) -> int:
        """Delete what is kept for undoing, for good; the bytes that were freed.

        Raises:
            UserError: another page is changing the folder, or the disk does not let us.
        """
        if not self.place.is_dir():
            return 0
        with self.locked(), told(self.root):
            freed = self.kept()[1]
            for change in self.changes():
                shutil.rmtree(change.folder)
        return freed

    def _take_back(self, change: Change) -> None:
        for phase in reversed(change.phases):
            for old, new in reversed(phase):
                _rename(new, old)
        if change.new.is_dir() and _files(change.new) != read_json(change.folder / COPIED):
            # somebody has worked in these folders since: that work is put beside, not thrown away
            change.facts["aside"] = str(self.root / f"undone-{change.folder.name}")
            os.rename(change.new, change.facts["aside"])
        shutil.rmtree(change.folder)
        for path in reversed(change.made):
            _remove_empty(path)
        # what holds our own folder can only go when that is gone
        self._made += [path for path in change.made if path.is_dir()]

    def _tidy(self) -> None:
        """Leave no trace where nothing is left to undo."""
        if self.place.is_dir() and not self._folders():
            (self.place / LOCK).unlink(missing_ok=True)
            _remove_empty(self.place)
            for path in sorted(self._made, key=lambda path: len(path.parts), reverse=True):
                _remove_empty(path)


def _files(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its length and the time of its last change."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            facts = path.stat()
            found[path.relative_to(folder).as_posix()] = [facts.st_size, facts.st_mtime_ns]
    return found


def _rename(old: Path, new: Path) -> None:
    """Rename unless that has been done already."""
    if not os.path.lexists(old):
        return
    if os.path.lexists(new):
        raise FileExistsError(17, "something of this name has come in between", str(new))
    new.parent.mkdir(parents=True, exist_ok=True)
    os.rename(old, new)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        # somebody has put something in: then it stays
        return


def missing(path: Path) -> list[Path]:
    """The folders on the way to `path` that are not there yet, and `path` itself; outermost first."""
    return [part for part in [*reversed(path.parents), path] if not part.exists()]


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes one sentence.

    Raises:
        UserError: for any OSError inside.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise UserError(
            f"{where}: {error.strerror or error}. Nothing was changed.", hint="Look at the disk and its permissions."
        ) from error
