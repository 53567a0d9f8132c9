"""Saves during and after a run: weights with their metadata, states to resume from, uploads. Rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sd_scripts.methods.base import Method
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.naming import SaveNames, Saves
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.trainer.outputs import WrittenFileError, check_written, free_space_warning, remove_old, size_of
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.trainer.spread import whole_weights
from sd_scripts.trainer.upload import Uploader
from sd_scripts.training.optimizers import CreatedOptimizer

StateWriter = Callable[[Path, dict[str, Any]], None]
MetadataMaker = Callable[[int, int, float], dict[str, str]]


@dataclass
class Saver:
    """Writes what the options ask for.

    `write_state(folder, loop_state)` is called in every process; `make_metadata(step, epoch, time)` gives the notes of
    one file.
    """

    accelerator: Accelerator
    method: Method
    created: CreatedOptimizer
    options: SavingOptions
    saves: Saves
    dtype: torch.dtype | None
    make_metadata: MetadataMaker
    write_state: StateWriter
    predictor: nn.Module
    uploader: Uploader | None
    reporter: Reporter

    @property
    def state_with_steps(self) -> bool:
        """Whether saves between epochs keep a training state too."""
        return self.options.save_state

    @property
    def state_with_epochs(self) -> bool:
        """Whether saves at the end of epochs keep a training state too."""
        return self.options.save_state

    @property
    def state_at_end(self) -> bool:
        """Whether the final save keeps a training state."""
        return self.options.save_state or self.options.save_state_on_train_end

    def step_due(self, step: int) -> bool:
        """Whether a save is due after this step."""
        return self.saves.step_due(step)

    def epoch_due(self, epoch: int, epochs: int) -> bool:
        """Whether a save is due after this many finished epochs."""
        return epoch < epochs and self.saves.epoch_due(epoch)

    def save_step(self, step: int, epoch: int, state: dict[str, Any] | None) -> None:
        """Save between epochs; a state where one is given."""
        self._save(self.saves.at_step(step), step, epoch, state, final=False)

    def save_epoch(self, epoch: int, step: int, state: dict[str, Any] | None) -> None:
        """Save after `epoch` finished epochs."""
        self._save(self.saves.at_epoch(epoch), step, epoch, state, final=False)

    def save_last(self, step: int, epoch: int, state: dict[str, Any] | None) -> None:
        """The final save. Raises UserError when it cannot be written or not be read again."""
        self._save(self.saves.at_end(), step, epoch, state, final=True)

    def _save(self, names: SaveNames, step: int, epoch: int, state: dict[str, Any] | None, *, final: bool) -> None:
        self.reporter.phase("save")
        self.accelerator.wait_for_everyone()
        with whole_weights(self.accelerator, self.predictor):
            if self.accelerator.is_main_process and self._weights(names.file, step, epoch, final):
                self._remove(names.old_file)
        if state is not None and self._state(names.state, step, epoch, state, final):
            self._remove(names.old_state)
        self.accelerator.wait_for_everyone()
        if not final:
            self.reporter.phase("train")

    def _remove(self, old: Path | None) -> None:
        """Called only after the newer one was written: a save that fails must not cost the last good one."""
        if old is None or not self.accelerator.is_main_process:
            return
        try:
            remove_old(old, self.reporter.say)
        except OSError as error:
            self.reporter.warn("save", f"The older {old.name} could not be removed: {error.strerror}.")

    def _weights(self, path: Path, step: int, epoch: int, final: bool) -> bool:
        try:
            with self.created.evaluating():
                metadata = self.make_metadata(step, epoch, time.time())
                self.method.save(path, self.dtype, metadata, epoch=epoch, step=step)
            tensors = check_written(path)
        except (OSError, WrittenFileError) as error:
            self._failed(path, error, final)
            return False
        size = size_of(path)
        self.reporter.say(f"saved {path.name} ({size / 2**20:.1f} MB, {tensors} tensors), opened again and checked")
        self.reporter.event(
            "save", path=str(path), step=step, epoch=epoch, bytes=size, final=final, state=False, checked=True
        )
        if not final and (warning := free_space_warning(path.parent, size)):
            self.reporter.warn("disk", warning, "Make room before the next save.", "output_dir")
        if self.uploader:
            self.uploader.upload(path, is_last=final)
        return True

    def _state(self, folder: Path, step: int, epoch: int, state: dict[str, Any], final: bool) -> bool:
        try:
            self.write_state(folder, state)
        except OSError as error:
            self._failed(folder, error, final)
            return False
        if not self.accelerator.is_main_process:
            return False  # it lies with the first process, on whose machine this one may not be
        self.reporter.say(f"saved the training state {folder.name}")
        size = size_of(folder)
        self.reporter.event(
            "save", path=str(folder), step=step, epoch=epoch, bytes=size, final=final, state=True, checked=True
        )
        if self.uploader and self.options.save_state_to_huggingface:
            self.uploader.upload(folder, is_last=final)
        return True

    def _failed(self, path: Path, error: Exception, final: bool) -> None:
        """An intermediate save that fails is a warning: the training so far is worth more than the file."""
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        message = f"{path} could not be saved: {reason}."
        if final:
            raise UserError(
                message,
                "output_dir",
                "The disk or folder needs a look; then resume from the last state."
                if isinstance(error, OSError)
                else "Lower the learning rate or use bf16 instead of fp16, and resume from an earlier state.",
            )
        self.reporter.warn("save", message, "Make room or mend the folder; the next save is tried again.", "output_dir")
