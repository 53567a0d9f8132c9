"""Every trainer's command can be made, not only those of networks."""

import sys
from pathlib import Path

import pytest

from kohya_gui import checks, command
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sdxl_train_network", "SDXL · LoRA rank 4"),
        ("sdxl_train", "SDXL · whole U-Net"),
        ("sdxl_train_textual_inversion", "SDXL · new word"),
        ("sdxl_train_control_net_lllite", "SDXL · ControlNet-LLLite rank 4"),
    ],
)
def test_a_trainer_for_sdxl_needs_no_switch_for_it(name: str, said: str, tiny_sdxl_file: Path) -> None:
    values: dict[str, object] = {"pretrained_model_name_or_path": str(tiny_sdxl_file)}
    if "network_dim" in trainer_fields(name):
        values |= {"network_dim": 4}
    view = checks.plan(name, values)
    assert dict(view.lines)["Training"].startswith(said)
    assert [problem for problem in view.problems if problem.key == "sdxl"] == []


def test_the_plan_names_what_a_trainer_trains(tiny_sd1: Path, tiny_sdxl_file: Path) -> None:
    said = {name: dict(checks.plan(name, {}).lines)["Training"] for name in COMMANDS}
    assert not [name for name, text in said.items() if "None" in text]
    wrong = checks.plan("sdxl_train", {"pretrained_model_name_or_path": str(tiny_sd1)})
    errors = [problem for problem in wrong.problems if problem.severity == "error"]
    assert {"pretrained_model_name_or_path", "model_family"} & {problem.key for problem in errors}
    seen = checks.plan("train_network", {"pretrained_model_name_or_path": str(tiny_sdxl_file)})
    assert seen.trainer == "sdxl_train_network", "the model itself says which trainer it needs"
    assert [problem for problem in seen.problems if problem.key == "model_family"] == []
    told = {"pretrained_model_name_or_path": str(tiny_sdxl_file), "model_family": "sd1"}
    contradicted = checks.plan("train_network", told)
    assert [problem.severity for problem in contradicted.problems if problem.key == "model_family"] == ["error"]
