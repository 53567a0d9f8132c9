"""What files and state folders are called, when they are due, and which older ones a new one replaces.

The names are those of sd-scripts, so that other programs and people's habits find them.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sd_scripts.schema.saving import SavingOptions


class Length(Protocol):
    """What names and moments need to know of a run's plan; `save_every_n_epochs` with save_n_epoch_ratio worked in."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps until the end."""

    @property
    def epochs(self) -> int:
        """Epochs begun until then."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""

    @property
    def save_every_n_epochs(self) -> int | None:
        """Epochs between saves."""


def epochs_between_saves(every: int | None, ratio: int | None, epochs: int) -> int | None:
    """Epochs between saves: a share of the run (`save_n_epoch_ratio`) goes before a number of epochs."""
    return max(1, epochs // ratio) if ratio else every


def _stem(output_name: str | None, unnamed: str, number: str) -> str:
    return f"{output_name or unnamed}{number}"


def epoch_stem(output_name: str | None, epoch: int) -> str:
    """`my-000003`, without a name `epoch-000003`; `epoch` counts finished epochs."""
    return _stem(output_name, "epoch", f"-{epoch:06d}")


def step_stem(output_name: str | None, step: int) -> str:
    """`my-step00000500`, without a name `at-step00000500`."""
    return _stem(output_name, "at", f"-step{step:08d}")


def last_stem(output_name: str | None) -> str:
    """`my`, without a name `last`."""
    return _stem(output_name, "last", "")


def outdated_epoch(epoch: int, every: int, keep: int | None) -> int | None:
    """The epoch whose file goes when that of `epoch` was written; None if none does."""
    if keep is None:
        return None
    gone = epoch - every * keep
    return gone if gone >= 0 else None


def outdated_step(step: int, every: int, keep: int | None) -> int | None:
    """The step whose file goes when that of `step` was written: the newest save more than `keep` steps older."""
    if keep is None:
        return None
    gone = step - keep - 1
    return gone - gone % every if gone >= 0 else None


@dataclass(frozen=True)
class SaveNames:
    """One save: the file, the state folder beside it, and the older ones to be removed once both are written."""

    file: Path
    state: Path
    old_file: Path | None = None
    old_state: Path | None = None


@dataclass(frozen=True)
class Saves:
    """When and under which names a run saves. `every_n_epochs` already has save_n_epoch_ratio worked in."""

    folder: Path
    name: str | None
    suffix: str
    every_n_epochs: int | None
    every_n_steps: int | None
    last_n_epochs: int | None
    last_n_steps: int | None
    last_n_epochs_state: int | None
    last_n_steps_state: int | None
    epochs: int

    @classmethod
    def of(cls, options: SavingOptions, plan: Length, file_format: str, default_name: str | None = None) -> "Saves":
        """The saves that the options ask for. States are kept as long as files unless told otherwise.

        `file_format` is what the method writes; diffusers folders have no suffix.
        """
        by_epochs, by_steps = options.save_last_n_epochs, options.save_last_n_steps
        return cls(
            folder=Path(options.output_dir or "."),
            name=options.output_name or default_name,
            suffix="" if file_format.startswith("diffusers") else f".{file_format}",
            every_n_epochs=plan.save_every_n_epochs,
            every_n_steps=options.save_every_n_steps,
            last_n_epochs=by_epochs,
            last_n_steps=by_steps,
            last_n_epochs_state=options.save_last_n_epochs_state or by_epochs,
            last_n_steps_state=options.save_last_n_steps_state or by_steps,
            epochs=plan.epochs,
        )

    def epoch_due(self, epoch: int) -> bool:
        """Whether to save after `epoch` finished epochs. The last epoch's save is the final one."""
        return bool(self.every_n_epochs) and epoch % (self.every_n_epochs or 1) == 0 and epoch < self.epochs

    def step_due(self, step: int) -> bool:
        """Whether to save after `step` optimizer steps."""
        return bool(self.every_n_steps) and step > 0 and step % (self.every_n_steps or 1) == 0

    def moments(self, plan: Length) -> Iterable[SaveNames]:
        """The names of every save of a run, in the order of writing."""
        by_epoch, by_step = self.every_n_epochs or 0, self.every_n_steps or 0
        epochs = range(by_epoch, plan.epochs, by_epoch) if by_epoch else range(0)
        steps = range(by_step, plan.total_steps + 1, by_step) if by_step else range(0)
        # at the same moment the step's file comes first, as the first iterator goes before the second
        found = heapq.merge(
            ((step, step, 0) for step in steps),
            ((epoch * plan.steps_per_epoch, 0, epoch) for epoch in epochs),
            key=lambda moment: moment[0],
        )
        for when, step, epoch in found:
            if step:
                yield self.at_step(step)
            elif when < plan.total_steps:
                yield self.at_epoch(epoch)
        yield self.at_end()

    def _file(self, stem: str) -> Path:
        return self.folder / f"{stem}{self.suffix}"

    def _state(self, stem: str) -> Path:
        return self.folder / f"{stem}-state"

    def at_epoch(self, epoch: int) -> SaveNames:
        """Names of the save after `epoch` finished epochs."""
        stem = epoch_stem(self.name, epoch)
        every = self.every_n_epochs or 1
        file, state = (outdated_epoch(epoch, every, keep) for keep in (self.last_n_epochs, self.last_n_epochs_state))
        return SaveNames(
            self._file(stem),
            self._state(stem),
            None if file is None else self._file(epoch_stem(self.name, file)),
            None if state is None else self._state(epoch_stem(self.name, state)),
        )

    def at_step(self, step: int) -> SaveNames:
        """Names of the save after `step` steps. A save between the regular ones (asked for by hand) removes nothing."""
        stem = step_stem(self.name, step)
        if not self.step_due(step):
            return SaveNames(self._file(stem), self._state(stem))
        every = self.every_n_steps or 1
        file, state = (outdated_step(step, every, keep) for keep in (self.last_n_steps, self.last_n_steps_state))
        return SaveNames(
            self._file(stem),
            self._state(stem),
            None if file is None else self._file(step_stem(self.name, file)),
            None if state is None else self._state(step_stem(self.name, state)),
        )

    def at_end(self) -> SaveNames:
        """Names of the final save. Nothing is removed by it."""
        return SaveNames(self._file(last_stem(self.name)), self._state(last_stem(self.name)))
