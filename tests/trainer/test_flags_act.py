"""Every flag of the trainer has a test that fails when it has no effect."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from sd_scripts.schema.fields import trainer_fields

MODULES = ("test_flags_data", "test_flags_learning", "test_flags_loss", "test_flags_run", "test_flags_saving")


def shown() -> Iterator[tuple[str, str]]:
    """(flag, the test that shows what it does), by the `@shows` above the tests."""
    for name in MODULES:
        for test_name, test in vars(importlib.import_module(name)).items():
            for flag in getattr(test, "shows", ()):
                yield flag, f"{name}.{test_name}"


def test_every_flag_is_shown_to_act() -> None:
    flags, proved = set(trainer_fields("train_network")), {flag for flag, _ in shown()}
    assert sorted(flags - proved) == [], "these flags have no test that shows their effect"
    assert sorted(proved - flags) == [], "these are shown but are no flags"


def test_shown_flags_belong_to_tests() -> None:
    assert all(name.partition(".")[2].startswith("test_") for _, name in shown())
