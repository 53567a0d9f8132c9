"""The subcommands: check, command, train and jobs without a page."""

import json
import shlex
import tomllib
from pathlib import Path

import pytest
from gui_bench import Bench

from kohya_gui import cli, configs
from kohya_gui.jobs import JobStore


@pytest.fixture
def form(tmp_path: Path) -> Path:
    """A saved form with a mistake: its base model is missing."""
    path = tmp_path / "form.json"
    values = {
        "pretrained_model_name_or_path": str(tmp_path / "none.safetensors"),
        "output_name": "x",
        "resolution": "64",
    }
    configs.write_file(path, configs.save_text("lora", values))
    return path


def test_check_says_what_is_wrong(form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--jobs_dir", str(tmp_path / "jobs"), "check", str(form)]) == 1
    said = capsys.readouterr().out
    assert "x The base model" in said and "[train_data_dir]" in said and "Rates" in said


def test_command_prints_what_runs(form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["command", str(form), "--set", "network_dim=7", "--out", str(tmp_path / "out")]) == 0
    line, _, rest = capsys.readouterr().out.partition("\n")
    config = tmp_path / "out/config.toml"
    assert shlex.split(line)[-2:] == ["--config_file", str(config)]
    assert tomllib.loads(rest) == tomllib.loads(config.read_text())
    assert tomllib.loads(rest)["network_dim"] == 7


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["check"],
        ["check", "/no/such.json"],
        ["check", "{}", "--set", "network_dimm=1"],
        ["check", "{}", "--set", "network_dim=x"],
        ["jobs", "log"],
        ["jobs", "stop", "12345678"],
    ],
)
def test_a_wrong_command_line_is_a_sentence(
    argv: list[str], form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(form) if word == "{}" else word for word in argv]
    assert cli.main(["--jobs_dir", str(tmp_path / "jobs"), *filled]) == 2
    said = capsys.readouterr().err
    assert said and "Traceback" not in said


def test_a_form_with_errors_does_not_start(form: Path, tmp_path: Path) -> None:
    assert cli.main(["--jobs_dir", str(tmp_path / "jobs"), "train", str(form)]) == 1
    assert not (tmp_path / "jobs").exists() or JobStore(tmp_path / "jobs").list() == []


def test_jobs_are_listed_followed_and_removed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    job = bench.add("fast", "my cat", max_train_steps=20)
    root = ["--jobs_dir", str(bench.store.root)]
    assert cli.main([*root, "jobs"]) == 0
    assert "waiting, number 1" in capsys.readouterr().out
    assert cli._follow(bench.store, job.id) == 0
    assert "wrote " in capsys.readouterr().out
    assert cli.main([*root, "jobs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "done"
    assert cli.main([*root, "jobs", "log", job.id]) == 0
    assert "step 20" in capsys.readouterr().out
    assert cli.main([*root, "jobs", "remove", job.id]) == 0
    assert bench.store.list() == []


def test_a_failed_job_ends_with_its_cause(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    job = bench.add("refuse")
    assert cli._follow(bench.store, job.id) == 1
    assert "network_dim is 0. Give at least 1." in capsys.readouterr().err
