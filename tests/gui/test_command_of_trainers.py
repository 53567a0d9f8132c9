"""Every trainer's command can be made, not only those of networks."""

import sys
from pathlib import Path

import pytest

from kohya_gui import command
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import trainer_fields


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_command_of_every_trainer(name: str, tmp_path: Path) -> None:
    plan = command.build(name, {"learning_rate": 3e-5, "seed": 5}, job_dir=tmp_path, on_cpu=True)
    assert plan.argv[0] == sys.executable
    script = next(Path(word) for word in plan.argv if word.endswith(".py"))
    assert script.is_file() and script.name == Path(COMMANDS[name].module).name
    network = {"network_module": "networks.lora"} if COMMANDS[name].method == "network" else {}
    assert plan.toml == {"learning_rate": 3e-5, "seed": 5, "job_dir": str(tmp_path)} | network
    assert set(plan.toml) <= set(trainer_fields(name))


def test_the_switch_for_sdxl_takes_the_trainer_of_the_same_method() -> None:
    assert command.trainer("train_db", {"sdxl": True}) == command.trainer("fine_tune", {"sdxl": True}) == "sdxl_train"
    assert command.trainer("train_network", {"sdxl": True}) == "sdxl_train_network"
    assert command.trainer("train_textual_inversion", {"sdxl": True}) == "sdxl_train_textual_inversion"
    assert command.trainer("sdxl_train", {}) == "sdxl_train"
