"""Names of saves, and which ones go, on real files in the order of the trainer."""

from pathlib import Path
from typing import Any

import pytest
from training_vectors import load

from sd_scripts.schema.naming import (
    SaveNames,
    Saves,
    epoch_stem,
    last_stem,
    outdated_epoch,
    outdated_step,
    step_stem,
)
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.training.plan import make_plan

VECTORS = load("steps")


def _saves(folder: Path, args: dict[str, Any], per_epoch: int, steps: int) -> Saves:
    saving = SavingOptions(output_dir=str(folder), **args)
    training = TrainingOptions(max_train_steps=steps)
    plan = make_plan(training, OptimizerOptions(), saving, batches=per_epoch, batch_size=1)
    return Saves.of(saving, plan, saving.save_model_as or "safetensors")


def _write(names: SaveNames, with_state: bool, events: list[str], state_first: bool = False) -> None:
    def file() -> None:
        names.file.write_text("weights")
        events.append(f"+{names.file.name}")
        if names.old_file and names.old_file.exists():
            names.old_file.unlink()
            events.append(f"-{names.old_file.name}")

    def state() -> None:
        if not with_state:
            return
        names.state.mkdir()
        events.append(f"+{names.state.name}")
        if names.old_state and names.old_state.exists():
            names.old_state.rmdir()
            events.append(f"-{names.old_state.name}")

    for part in (state, file) if state_first else (file, state):
        part()


@pytest.mark.parametrize("case", VECTORS["save_and_remove"], ids=lambda case: case["id"])
def test_saves_of_a_whole_run(case: dict[str, Any], tmp_path: Path) -> None:
    args, per_epoch = case["args"], case["steps_per_epoch"]
    saves = _saves(tmp_path, args, per_epoch, case["max_steps"])
    assert (saves.epochs, saves.every_n_epochs) == (case["num_train_epochs"], case["save_every_n_epochs"])
    events: list[str] = []
    always = args.get("save_state", False)
    step = 0
    for epoch in range(saves.epochs):
        for _ in range(per_epoch):
            if step == case["max_steps"]:
                break
            step += 1
            if saves.step_due(step):
                _write(saves.at_step(step), always, events)
        if saves.epoch_due(epoch + 1):
            _write(saves.at_epoch(epoch + 1), always, events)
    _write(saves.at_end(), always or args.get("save_state_on_train_end", False), events, state_first=True)
    assert events == case["events"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(case["kept"])


@pytest.mark.parametrize("name", ["None", "my"])
def test_names(name: str) -> None:
    wanted, given = VECTORS["names"][name], None if name == "None" else name
    assert epoch_stem(given, 3) + ".safetensors" == wanted["epoch_3"]
    assert epoch_stem(given, 3) + "-state" == wanted["epoch_state_3"]
    assert step_stem(given, 500) + ".safetensors" == wanted["step_500"]
    assert step_stem(given, 500) + "-state" == wanted["step_state_500"]
    assert last_stem(given) + ".safetensors" == wanted["last"]
    assert last_stem(given) + "-state" == wanted["last_state"]
    for epoch, gone in wanted["remove_epoch_no"].items():
        assert outdated_epoch(int(epoch), 1, 2) == gone
    for step, gone in wanted["remove_step_no"].items():
        assert outdated_step(int(step), 10, 30) == gone


def test_states_may_be_kept_longer_or_shorter(tmp_path: Path) -> None:
    args = {"save_every_n_steps": 10, "save_last_n_steps": 30, "save_last_n_steps_state": 10, "output_name": "my"}
    names = _saves(tmp_path, args, 100, 100).at_step(50)
    assert names.old_file == tmp_path / "my-step00000010.safetensors"
    assert names.old_state == tmp_path / "my-step00000030-state"


def test_a_save_by_hand_removes_nothing(tmp_path: Path) -> None:
    saves = _saves(tmp_path, {"save_every_n_steps": 10, "save_last_n_steps": 10, "save_model_as": "pt"}, 100, 100)
    names = saves.at_step(45)
    assert names.file.name == "at-step00000045.pt" and names.old_file is names.old_state is None
    assert saves.at_step(50).old_file is not None
