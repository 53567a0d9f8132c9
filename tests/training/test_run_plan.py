"""Lengths and beginnings of runs."""

from typing import Any

import pytest
from training_vectors import load

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.training.plan import RunPlan, Start, make_plan, starts_elsewhere


def _plan(batches: int = 10, processes: int = 1, saving: SavingOptions | None = None, **training: Any) -> RunPlan:
    options = TrainingOptions(**training)
    return make_plan(
        options, OptimizerOptions(), saving or SavingOptions(), batches=batches, batch_size=2, processes=processes
    )


@pytest.mark.parametrize("case", load("steps")["training"], ids=str)
def test_lengths(case: dict[str, Any]) -> None:
    limits = (
        {"max_train_epochs": case["max_train_epochs"]}
        if "max_train_epochs" in case
        else {"max_train_steps": case["max_train_steps"]}
    )
    training = TrainingOptions(gradient_accumulation_steps=case["gradient_accumulation"], **limits)
    plan = make_plan(
        training,
        OptimizerOptions(),
        SavingOptions(),
        batches=case["batches"],
        batch_size=case["batch_size"],
        processes=case["processes"],
    )
    assert plan.total_steps == case["max_train_steps"]
    assert plan.steps_per_epoch == case["updates_per_epoch"]
    assert plan.epochs == case["num_train_epochs"]
    assert plan.total_batch_size == case["total_batch_size"]
    assert plan.batches_per_process * case["processes"] >= case["batches"]


@pytest.mark.parametrize(("warmup", "decay", "steps"), [(0.1, 20, (40, 20)), (7, 0.5, (7, 200)), (0, 0, (0, 0))])
def test_warmup_as_ratio_counts_processes(warmup: int | float, decay: int | float, steps: tuple[int, int]) -> None:
    optimizer = OptimizerOptions(lr_warmup_steps=warmup, lr_decay_steps=decay)
    training = TrainingOptions(max_train_steps=200)
    plan = make_plan(training, optimizer, SavingOptions(), batches=10, batch_size=1, processes=2)
    assert (plan.warmup_steps, plan.decay_steps) == steps


def test_save_ratio_wins() -> None:
    saving = SavingOptions(save_n_epoch_ratio=3, save_every_n_epochs=1)
    assert _plan(saving=saving, max_train_epochs=10).save_every_n_epochs == 3
    assert _plan(saving=SavingOptions(save_n_epoch_ratio=50), max_train_epochs=10).save_every_n_epochs == 1
    assert _plan(max_train_epochs=10).save_every_n_epochs is None


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({}, Start(0, 0, 0)),
        ({"initial_step": 12}, Start(2, 0, 12)),
        ({"initial_step": 12, "skip_until_initial_step": True}, Start(2, 4, 12)),
        ({"initial_epoch": 4}, Start(3, 0, 15)),
        ({"initial_epoch": 4, "skip_until_initial_step": True}, Start(3, 0, 15)),
        ({"initial_epoch": 4, "initial_step": 1}, Start(0, 0, 1)),
        ({"initial_step": 0}, Start(0, 0, 0)),
    ],
)
def test_beginnings(given: dict[str, Any], start: Start) -> None:
    plan = _plan(gradient_accumulation_steps=2, max_train_epochs=5, **given)
    assert plan.steps_per_epoch == 5 and plan.start == start
    assert starts_elsewhere(TrainingOptions(**given)) == any(key.startswith("initial") for key in given)


@pytest.mark.parametrize(
    ("given", "key"), [({"initial_step": 50}, "initial_step"), ({"initial_epoch": 6}, "initial_epoch")]
)
def test_a_beginning_behind_the_end(given: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        _plan(max_train_epochs=5, **given)
    assert caught.value.key == key


def test_no_pictures() -> None:
    with pytest.raises(UserError, match="no pictures"):
        _plan(batches=0)
