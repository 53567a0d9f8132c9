"""Every flag of every trainer has a test that fails when it has no effect.

What the loop does with a flag is shown once, with train_network. A flag that train_network lacks, or that reaches the
trainers of another method by other code, is shown for each method that offers it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import trainer_fields

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py") if path.stem != Path(__file__).stem)
# method -> flags that train_network has too, but that act there by code of their own
OWN_WAY = {
    "network": {"network_train_unet_only", "text_encoder_lr"},
    "full": {"learning_rate", "save_model_as", "save_precision", "in_json", "full_bf16", "fused_backward_pass"},
    "embedding": {"learning_rate", "save_model_as", "save_precision", "output_name", "sample_prompts"},
    "xti": {"learning_rate", "save_model_as", "save_precision", "output_name", "sample_prompts"},
    "controlnet": {"learning_rate", "save_model_as", "save_precision", "conditioning_data_dir", "sample_prompts"},
    "lllite": {
        "learning_rate", "save_model_as", "save_precision", "conditioning_data_dir", "sample_prompts", "network_dim",
        "network_dropout", "network_weights",
    },
}  # fmt: skip


def shown() -> Iterator[tuple[tuple[str, str], str]]:
    """((method, flag), the test that shows what it does), by the `@shows` above the tests."""
    for name in MODULES:
        for test_name, test in vars(importlib.import_module(name)).items():
            for proof in getattr(test, "shows", ()):
                yield proof, f"{name}.{test_name}"


def wanted() -> set[tuple[str, str]]:
    """(method, flag) of everything that must be shown."""
    common = set(trainer_fields("train_network"))
    found = {("network", flag) for flag in common}
    for name, command in COMMANDS.items():
        offered = set(trainer_fields(name))
        found |= {(command.method, flag) for flag in (offered - common) | (OWN_WAY[command.method] & offered)}
    return found


def test_every_flag_is_shown_to_act() -> None:
    proved = {proof for proof, _ in shown()}
    assert sorted(wanted() - proved) == [], "these flags have no test that shows their effect"
    offered = {(command.method, flag) for name, command in COMMANDS.items() for flag in trainer_fields(name)}
    assert sorted(proved - offered) == [], "these are shown but are no flags"


def test_own_ways_name_flags_that_are_offered() -> None:
    for method, flags in OWN_WAY.items():
        offered = [set(trainer_fields(name)) for name, command in COMMANDS.items() if command.method == method]
        assert flags <= set().union(*offered), method


def test_shown_flags_belong_to_tests() -> None:
    assert all(name.partition(".")[2].startswith("test_") for _, name in shown())
