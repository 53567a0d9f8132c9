"""Steps and epochs, regularisation balance, against recorded numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.steps import balance_regularisation, batch_count, plan_steps

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "steps.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_length_of_a_run(case: dict[str, Any]) -> None:
    batches, size = case["out"]["batches_per_epoch"], case["in"]["batch_size"]
    for row in case["out"]["training"]:
        limit = {"max_train_epochs": row["max_train_epochs"]} if "max_train_epochs" in row else {}
        plan = plan_steps(
            batches,
            batch_size=size,
            max_train_steps=row["max_train_steps"],
            processes=row["processes"],
            accumulation=row["gradient_accumulation"],
            **limit,
        )
        assert plan.steps_per_epoch == row["updates_per_epoch"]
        assert plan.total_steps == row["max_train_steps"]
        assert plan.epochs == row["num_train_epochs"]
        assert plan.total_batch_size == row["total_batch_size"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if any(s["is_reg"] for s in c["in"]["subsets"])], ids=lambda c: c["id"]
)
def test_regularisation_is_balanced(case: dict[str, Any]) -> None:
    target = case["out"]["num_train_images"]
    asked = [s["num_repeats"] for s in case["in"]["subsets"] if s["is_reg"] for _ in range(s["images"])]
    counts = balance_regularisation(target, asked)
    registered = case["out"]["registered"]
    if isinstance(registered, dict):
        assert sum(count > 0 for count in counts) == registered["reg_registered"]
        assert sum(counts) + target == registered["repeats_sum"]
    else:
        assert counts == [row[1] for row in registered if row[2]]


def test_no_regularisation_pictures() -> None:
    assert balance_regularisation(10, []) == []


def test_batches_are_counted_per_bucket() -> None:
    assert batch_count([3, 4, 2, 1], 2) == 6
    assert batch_count([], 2) == 0


def test_no_pictures_no_steps() -> None:
    assert plan_steps(0, max_train_steps=100).total_steps == 0
