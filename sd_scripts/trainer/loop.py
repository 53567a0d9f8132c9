"""The one training loop. It knows families and methods by their protocols, and reads in the order things happen."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sd_scripts.data.batch import Batch
from sd_scripts.trainer.guard import Agreement, NotFiniteError, agree, all_paths
from sd_scripts.trainer.reporting import peak_memory
from sd_scripts.trainer.run import Run
from sd_scripts.trainer.spread import callable_weights, clip, whole_weights
from sd_scripts.trainer.trackers import log_epoch, step_scalars
from sd_scripts.training.guard import OverflowWatch
from sd_scripts.training.loss import LossRecorder
from sd_scripts.training.rng import seed_batch

# Speed is the average over this many steps: long enough to be calm, short enough to follow a change.
_SPEED_STEPS = 20


@dataclass
class Position:
    """Where the run stands.

    epoch: 0-based, the one being run; batch: batches of it that this process has used; step: finished optimizer steps.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Clock:
    """Speed of the last steps and the time left."""

    times: list[float] = field(default_factory=lambda: [time.monotonic()])

    def tick(self) -> None:
        """A step has ended."""
        self.times.append(time.monotonic())
        del self.times[: -_SPEED_STEPS - 1]

    def restart(self) -> None:
        """Something that is no step took time (a sample, a save): count anew from here."""
        self.times[:] = [time.monotonic()]

    @property
    def speed(self) -> float:
        """Steps a second; 0 before the first."""
        spent = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / spent if spent > 0 else 0.0


class Trainer:
    """Runs a prepared `Run` from its position to the end, or until it is asked to stop."""

    def __init__(self, run: Run, position: Position, recorder: LossRecorder) -> None:
        self.run = run
        self.position = position
        self.recorder = recorder
        self.clock = Clock()
        self._overflow = OverflowWatch(run.accelerator.scaler is not None)
        self._speed = 0.0
        self._stop_asked = False
        self._micro_losses: list[float] = []
        self._paths: list[str] = []

    def train(self) -> str:
        """Train to the end. Returns "done" or "stopped".

        Raises:
            NotFiniteError: the loss or a gradient became NaN or infinite; the weights before that step are kept.
        """
        run = self.run
        run.reporter.phase("train")
        if run.samples.due(self.position.step, first=True):
            self._sample(None)
        while self.position.epoch < run.plan.epochs and not self._finished:
            self._epoch()
        return self._end()

    @property
    def _finished(self) -> bool:
        return self._stop_asked or self.position.step >= self.run.plan.total_steps

    def _epoch(self) -> None:
        run, at = self.run, self.position
        run.method.on_epoch_start()
        for batch in run.loader.epoch(at.epoch + 1, start=at.batch, global_step=at.step):
            seed_batch(run.seed, at.epoch, at.batch * run.accelerator.num_processes + run.accelerator.process_index)
            at.batch += 1
            self._micro_step(batch)
            if run.accelerator.sync_gradients:
                self._after_step()
                if self._finished:
                    break
        if at.batch >= run.plan.batches_per_process:
            at.epoch, at.batch = at.epoch + 1, 0
            self._after_epoch(at.epoch)
        elif at.step >= run.plan.total_steps:
            # The last epoch may be cut short; it is shown like the others, but the position stays inside it.
            self._after_epoch(at.epoch + 1)

    def _micro_step(self, batch: Batch) -> None:
        """Forward and backward of one batch, and the optimizer step where enough batches were added up."""
        run, at = self.run, self.position
        accumulation = run.accumulation
        # As accelerate does it: step on every full group and at the end of an epoch.
        run.accelerator.sync_gradients = at.batch % accumulation == 0 or at.batch == run.plan.batches_per_process
        waits = not run.accelerator.sync_gradients and run.accelerator.num_processes > 1
        self._paths += batch.paths
        with run.accelerator.no_sync(run.predictor) if waits else nullcontext():
            run.method.on_step_start(batch.network_multipliers.to(run.maths.device), at.step)
            loss = self._loss(batch)
            value = float(loss.detach())
            # With several processes the others are waiting for this one's gradients: all stop together before the step.
            if not math.isfinite(value) and run.accelerator.num_processes == 1:
                raise NotFiniteError("loss", at.step + 1, self._paths)
            run.accelerator.backward(loss)
        self._micro_losses.append(value)
        if run.accelerator.sync_gradients:
            self._agreed = self._agree()
            self._optimizer_step()

    def _agree(self) -> Agreement:
        """Mean loss and requests, the same in all processes; asked before the step, so that NaN changes no weight."""
        run = self.run
        loss = sum(self._micro_losses) / len(self._micro_losses)
        agreed = agree(run.accelerator, loss, math.isfinite(loss), run.reporter.requests())
        if not agreed.finite:
            raise NotFiniteError("loss", self.position.step + 1, all_paths(run.accelerator, self._paths))
        return agreed

    def _loss(self, batch: Batch) -> Tensor:
        run = self.run
        latents = run.maths.latents(batch)
        with run.accelerator.autocast():
            prediction, sample = run.predictor(latents, batch, run.maths.draw)
        return run.maths.losses(prediction, sample, batch).mean()

    def _optimizer_step(self) -> None:
        run = self.run
        self._grad_norm = self._clip()
        run.optimizer.step()
        if not run.accelerator.optimizer_step_was_skipped:
            run.scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> float | None:
        """Clip the gradients as asked; returns their norm before, None where they are not kept (fused backward)."""
        run = self.run
        if run.fused is not None:
            if run.fused.broken:
                raise NotFiniteError("gradient", self.position.step + 1, all_paths(run.accelerator, self._paths))
            return None
        limit = run.max_grad_norm if run.max_grad_norm > 0 else math.inf
        length = clip(run.accelerator, run.predictor, run.method.trainable_parameters(), limit)
        if length is None:  # DeepSpeed clips by itself and does not always say
            return None
        norm = float(length)
        # With a loss scaler an overflow now and then is normal: the scaler skips the step and halves the scale.
        # The gradients are already averaged, so all processes see the same norm and stop together.
        if self._overflow.broken(norm):
            raise NotFiniteError("gradient", self.position.step + 1, all_paths(run.accelerator, self._paths))
        return norm

    def _after_step(self) -> None:
        """All that happens between two optimizer steps, in this order."""
        run, at = self.run, self.position
        agreed = self._agreed
        norms = run.method.after_step()
        at.step += 1
        self.clock.tick()
        self.recorder.add(at.epoch, (at.batch - 1) // run.accumulation, agreed.loss)
        self._micro_losses, self._paths = [], []
        self._report(agreed.loss, norms)
        if run.samples.due(at.step) or "sample" in agreed.requests:
            self._sample(None)
        if run.validation is not None and run.validation.due(at.step):
            self._validate()
        self._stop_asked = "stop" in agreed.requests
        if run.saver.step_due(at.step) or ("save" in agreed.requests and not self._stop_asked):
            self._save_step(with_state=run.saver.state_with_steps)

    def _report(self, loss: float, norms: dict[str, float] | None) -> None:
        run, at = self.run, self.position
        self._speed = self.clock.speed or self._speed
        rates = run.created.learning_rates()
        left = run.plan.total_steps - at.step
        run.reporter.step(
            step=at.step,
            of=run.plan.total_steps,
            epoch=at.epoch + 1,
            epochs=run.plan.epochs,
            loss=loss,
            avg_loss=self.recorder.average,
            lr=rates,
            adapted_lr=run.created.adapted_rates() or None,
            grad_norm=self._grad_norm,
            speed=self._speed,
            eta=left / self._speed if self._speed else 0.0,
            memory=peak_memory(run.maths.device),
            max_norm=norms,
        )
        if run.accelerator.trackers:
            adapted, names = run.created.adapted_rates(), run.method.scalar_names
            scalars = step_scalars(loss, self.recorder.average, rates, adapted, norms, names)
            run.accelerator.log(scalars, step=at.step)

    def _after_epoch(self, finished: int) -> None:
        """The end of an epoch: saves, pictures and validation that go by epochs. `finished` counts from 1."""
        run, at = self.run, self.position
        if run.accelerator.trackers:
            log_epoch(run.accelerator, self.recorder.average, finished, at.step)
        if run.saver.epoch_due(finished, run.plan.epochs) and at.step < run.plan.total_steps:
            self._save_epoch(finished)
        if run.samples.due(at.step, finished):
            self._sample(finished)
        if run.validation is not None and run.validation.due(at.step, finished):
            self._validate()

    def _sample(self, epoch: int | None) -> None:
        run = self.run
        with run.created.evaluating(), run.method.evaluation():
            run.samples.make(self.position.step, epoch)
        run.accelerator.wait_for_everyone()
        self.clock.restart()

    def _validate(self) -> None:
        run = self.run
        if run.validation is None:
            return
        run.reporter.phase("validate")
        whole = callable_weights(run.accelerator, run.predictor)
        with run.created.evaluating(), run.method.evaluation(), whole:
            loss = run.validation.measure(run.accelerator)
        run.reporter.event("validate", step=self.position.step, epoch=self.position.epoch, loss=loss)
        run.reporter.say(f"validation loss {loss:.4f} at step {self.position.step}")
        if run.accelerator.trackers:
            run.accelerator.log({"loss/validation/step_average": loss}, step=self.position.step)
        run.reporter.phase("train")
        self.clock.restart()

    def _state(self) -> dict[str, Any]:
        """The loop's own part of a training state."""
        at = self.position
        return {"epoch": at.epoch, "batch": at.batch, "step": at.step, "recorder": self.recorder.state_dict()}

    def _save_step(self, with_state: bool) -> None:
        self.run.saver.save_step(self.position.step, self.position.epoch, self._state() if with_state else None)
        self.clock.restart()

    def _save_epoch(self, epoch: int) -> None:
        state = self._state() if self.run.saver.state_with_epochs else None
        self.run.saver.save_epoch(epoch, self.position.step, state)
        self.clock.restart()

    def _end(self) -> str:
        run, at = self.run, self.position
        if self._stop_asked and at.step < run.plan.total_steps:
            self._save_step(with_state=True)
            return "stopped"
        state = self._state() if run.saver.state_at_end else None
        run.saver.save_last(at.step, run.plan.epochs, state)
        return "done"

    def keep_last_good(self) -> None:
        """After NaN: save the weights as they were before the bad step, where they are still finite."""
        run = self.run
        with whole_weights(run.accelerator, run.predictor):  # so all processes find the same
            finite = all(bool(torch.isfinite(parameter).all()) for parameter in run.method.trainable_parameters())
        if self.position.step and finite:
            self._save_step(with_state=False)
