"""The scripts say what they take, and refuse what they do not know in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import trainer_fields

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {command.module: name for name, command in COMMANDS.items()}
SCRIPTS["sd_scripts/sdxl_train_control_net_lllite_old.py"] = "sdxl_train_control_net_lllite"


def run(script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a script in its own process, from another folder, as accelerate would."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv], capture_output=True, text=True, cwd=ROOT.parent, timeout=120
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    shown = {word.rstrip(",]") for word in done.stdout.split() if word.startswith("--")}
    offered = {f"--{key}" for key in trainer_fields(SCRIPTS[script])}
    assert offered <= shown
    others = {f"--{key}" for name in COMMANDS for key in trainer_fields(name)} - offered
    assert not others & shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(script: str) -> None:
    done = run(script, "--learnin_rate", "1e-4")
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "--learning_rate" in text or "learning_rate" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_said_together_without_loading_anything(script: str, tmp_path: Path) -> None:
    done = run(script, "--output_dir", str(tmp_path / "out"), "--v2", "--mixed_precision", "no", "--full_bf16")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert SCRIPTS[script] in done.stderr and "The base model is missing." in done.stderr
    assert "bf16" in done.stderr
    assert ("both SDXL and Stable Diffusion 2" in done.stderr) == script.startswith("sd_scripts/sdxl")
    assert not (tmp_path / "out").exists()
