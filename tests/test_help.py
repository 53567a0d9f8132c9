"""The scripts say what they take, and refuse what they do not know in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from sd_scripts.schema.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a script in its own process, from another folder, as accelerate would."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv], capture_output=True, text=True, cwd=ROOT.parent, timeout=120
    )


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help(command: str) -> None:
    done = run(COMMANDS[command].module, "--help")
    assert done.returncode == 0, done.stderr
    assert "--pretrained_model_name_or_path" in done.stdout and "--config_file" in done.stdout


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(command: str) -> None:
    done = run(COMMANDS[command].module, "--learnin_rate", "1e-4")
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "--learning_rate" in text or "learning_rate" in text
