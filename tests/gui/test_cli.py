"""The subcommands: check, command, train and jobs without a page."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from gui_bench import Bench

from kohya_gui import cli, configs, user_presets
from kohya_gui.jobs import JobStore
from sd_scripts.schema.tabs import TABS


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
    ("argv", "said"),
    [
        ([], "required"),
        (["fly"], "invalid choice"),
        (["check"], "required: file\n"),
        (["check", "/no/such.json"], "does not exist"),
        (["check", "{}", "--set", "network_dimm=1"], "network_dim"),
        (["check", "{}", "network_dimm=1"], "Did you mean network_dim"),
        (["check", "{}", "network_dim=x"], "must be a whole number"),
        (["check", "{}", "network_dim"], "key=value"),
        (["check", "{}", "--strict", "seed=1", "loss"], "unrecognized"),
        (["check", "{}", "allow_plugins=true"], "--allow_plugins"),
        (["check", "{}", "job_dir=x"], "cannot be set"),
        (["check", "{}", "--tab", "nothing"], "invalid choice"),
        (["check", "{}", "--tab", "finetune", "network_dim=4"], "The Finetune tab has no option"),
        (["jobs", "log"], "needs the job's id"),
        (["jobs", "stop", "12345678"], "no such job"),
        (["jobs", "show", "12345678"], "no such job"),
    ],
    ids=range(16),
)
def test_a_wrong_command_line_is_a_sentence(
    argv: list[str], said: str, form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(form) if word == "{}" else word for word in argv]
    assert cli.main(["--jobs_dir", str(tmp_path / "jobs"), *filled]) == 2
    shown = capsys.readouterr().err
    assert said.lower() in shown.lower() and "Traceback" not in shown


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_is_found_from_its_file(tab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "form.json"
    configs.write_file(path, configs.save_text(tab, {"pretrained_model_name_or_path": "m", "output_name": "x"}))
    changes = ["seed=7", "--json", "learning_rate=1e-5", "optimizer=Lion", "max_train_epochs="]
    assert cli.main(["command", str(path), *changes]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tab"] == tab and found["argv"][-2] == "--config_file"
    sent = {key: found["config"][key] for key in ("seed", "learning_rate", "optimizer_type", "output_name")}
    assert sent == {"seed": 7, "learning_rate": 1e-5, "optimizer_type": "Lion", "output_name": "x"}
    assert tomllib.loads(found["toml"]) == found["config"]
    assert (
        cli.main(["command", str(path), "--toml", "model_family=sdxl" if len(TABS[tab].commands) > 1 else "seed=1"])
        == 0
    )
    assert tomllib.loads(capsys.readouterr().out)["output_name"] == "x"


def test_switches_of_the_trainers_count_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "form.json"
    configs.write_file(path, configs.save_text("lora", {"model_family": "sd1", "pretrained_model_name_or_path": "m"}))
    for changes, trainer in (
        (["sdxl=true"], "sdxl_train_network"),
        (["v2=true"], "train_network"),
        (["model_family=sdxl"], "sdxl_train_network"),
        ([], "train_network"),
    ):
        assert cli.main(["command", str(path), "--json", *changes]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["trainer"] == trainer and found["config"].get("v2", False) is (changes == ["v2=true"])


def test_the_line_is_for_linux_or_windows(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["command", str(form), "--windows"]) == 0
    windows = capsys.readouterr().out.splitlines()[0]
    assert cli.main(["command", str(form), "--linux"]) == 0
    linux = capsys.readouterr().out.splitlines()[0]
    assert windows.startswith("set ") and shlex.split(linux)[0] == "env"


def test_check_for_programs_tells_everything(form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--jobs_dir", str(tmp_path / "jobs"), "check", str(form), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["can_start"] and found["tab"] == "lora"
    errors = {item["key"] for item in found["problems"] if item["severity"] == "error"}
    assert {"pretrained_model_name_or_path", "train_data_dir"} <= errors
    assert cli.main(["check", str(tmp_path / "none.json"), "--json"]) == 2
    assert "does not exist" in json.loads(capsys.readouterr().out)["error"]


def test_a_lora_is_a_form_to_train_like_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"ss_network_dim": "4", "ss_learning_rate": "0.001", "ss_network_module": "networks.lora"}
    raw = json.dumps({"__metadata__": notes, "lora_unet_x.lora_up.weight": {"shape": [1]}}).encode()
    path = tmp_path / "cat.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert cli.main(["command", str(path), "--toml", "output_name=y", "--quiet"]) == 0
    sent = tomllib.loads(capsys.readouterr().out)
    assert (sent["network_dim"], sent["learning_rate"], sent["output_name"]) == (4, 0.001, "y")


def run(*argv: str) -> "subprocess.CompletedProcess[str]":
    """The program itself, as a person types it."""
    program = [sys.executable, str(Path(cli.__file__).parents[1] / "kohya_gui.py"), *argv]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_itself_gives_these_exit_codes(form: Path, tmp_path: Path) -> None:
    bad = run("check", str(form), "network_dimm=4")
    assert bad.returncode == 2 and "Did you mean network_dim" in bad.stderr and not bad.stdout
    found = run("check", str(form), "--jobs_dir", str(tmp_path))
    assert found.returncode == 1 and "x The base model" in found.stdout
    good = run("command", str(form), "--toml")
    assert good.returncode == 0 and tomllib.loads(good.stdout)["output_name"] == "x"
    assert "Traceback" not in bad.stderr + found.stderr + good.stderr


def test_interrupted_is_130() -> None:
    script = (
        "import signal, sys; from kohya_gui import cli, configs\n"
        # a build machine may start its tests deaf to Ctrl+C, which is inherited
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_):\n    signal.raise_signal(signal.SIGINT)\n"
        "configs.open_file = wait\n"
        "sys.exit(cli.main(['check', 'x.json']))"
    )
    root = Path(cli.__file__).parents[1]
    made = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, timeout=60, check=False)
    assert made.returncode == 130 and not made.stderr


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


def test_presets_are_named_like_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = ["--jobs_dir", str(tmp_path)]
    assert cli.main([*jobs, "command", "preset:subject (sd 1.5)", "--json", "network_dim=5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tab"] == "lora" and found["config"]["network_dim"] == 5
    # one's own goes first, and of two tabs one has to be named
    user_presets.save(tmp_path, "lora", "Subject (SD 1.5)", "", {"network_dim": 99})
    assert cli.main([*jobs, "command", "preset:Subject (SD 1.5)", "--toml"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["network_dim"] == 99
    user_presets.save(tmp_path, "finetune", "Subject (SD 1.5)", "", {})
    assert cli.main([*jobs, "check", "preset:Subject (SD 1.5)"]) == 2
    assert "lora, finetune" in capsys.readouterr().err
    assert cli.main([*jobs, "check", "preset:Subject (SD 1.5)", "--tab", "lora", "--quiet"]) == 1
    assert cli.main([*jobs, "check", "preset:../x"]) == 2
