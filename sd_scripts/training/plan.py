"""The plan of a run: all lengths, computed once from the options and the dataset, and never changed."""

from dataclasses import dataclass

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.naming import epochs_between_saves
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.steps import plan_steps
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.training.schedulers import step_count


@dataclass(frozen=True)
class Start:
    """Where a run begins: 0-based epoch, batches of it to skip (per process), and optimizer steps already counted."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass(frozen=True)
class RunPlan:
    """Lengths of a run.

    total_steps: optimizer steps until the end; epochs: epochs begun until then; steps_per_epoch: optimizer steps of an
    epoch; batches_per_epoch: batches of all processes; batches_per_process: those that each of them runs;
    total_batch_size: pictures behind one optimizer step; warmup_steps and decay_steps: in scheduler steps, of which
    every optimizer step makes `processes`; save_every_n_epochs: with save_n_epoch_ratio worked in.
    """

    total_steps: int
    epochs: int
    steps_per_epoch: int
    batches_per_epoch: int
    batches_per_process: int
    accumulation: int
    processes: int
    total_batch_size: int
    warmup_steps: int
    decay_steps: int
    save_every_n_epochs: int | None
    start: Start


def make_plan(
    training: TrainingOptions,
    optimizer: OptimizerOptions,
    saving: SavingOptions,
    *,
    batches: int,
    batch_size: int,
    processes: int = 1,
) -> RunPlan:
    """Work out the plan.

    Args:
        training, optimizer, saving: their option sections.
        batches: batches of one epoch over all processes, as the dataset counts them.
        batch_size: pictures in a batch, for `total_batch_size`.
        processes: processes that train together.

    Raises:
        UserError: there is no batch, or the run would begin at or behind its end.
    """
    if batches < 1:
        raise UserError("There are no pictures to train on.", "train_data_dir")
    accumulation = max(1, training.gradient_accumulation_steps)
    steps = plan_steps(
        batches,
        batch_size=batch_size,
        max_train_steps=training.max_train_steps,
        max_train_epochs=training.max_train_epochs,
        processes=processes,
        accumulation=accumulation,
    )
    passed = steps.total_steps * processes
    return RunPlan(
        total_steps=steps.total_steps,
        epochs=steps.epochs,
        steps_per_epoch=steps.steps_per_epoch,
        batches_per_epoch=batches,
        batches_per_process=-(-batches // processes),
        accumulation=accumulation,
        processes=processes,
        total_batch_size=steps.total_batch_size,
        warmup_steps=step_count(optimizer.lr_warmup_steps, passed, "lr_warmup_steps"),
        decay_steps=step_count(optimizer.lr_decay_steps, passed, "lr_decay_steps"),
        save_every_n_epochs=epochs_between_saves(saving.save_every_n_epochs, saving.save_n_epoch_ratio, steps.epochs),
        start=_start(training, steps.steps_per_epoch, steps.total_steps, accumulation),
    )


def starts_elsewhere(training: TrainingOptions) -> bool:
    """Whether initial_step or initial_epoch is given; they win over the position inside a resumed state."""
    return training.initial_step is not None or training.initial_epoch is not None


def _start(training: TrainingOptions, per_epoch: int, total: int, accumulation: int) -> Start:
    """The beginning by initial_step or initial_epoch; without skip_until_initial_step only the numbers go on."""
    if training.initial_step is not None:
        step, key = training.initial_step, "initial_step"
    elif training.initial_epoch is not None:
        step, key = (training.initial_epoch - 1) * per_epoch, "initial_epoch"
    else:
        return Start()
    if step < 0 or (step and step >= total):
        raise UserError(
            f"{key} would begin the run at step {step}, but it ends at step {total}.",
            key,
            "Raise max_train_steps or max_train_epochs: they count from the very beginning.",
        )
    return start_at(step, per_epoch, accumulation, training.skip_until_initial_step)


def start_at(step: int, steps_per_epoch: int, accumulation: int, skip: bool) -> Start:
    """The position after `step` optimizer steps; with `skip` the epoch's pictures until there are skipped too."""
    epoch, within = divmod(step, steps_per_epoch)
    return Start(epoch, within * accumulation if skip else 0, step)
