"""The set-up scripts: an unfinished environment is noticed, a wrong Python is refused, paths with spaces work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the shell scripts need a POSIX shell")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, in a folder with a space, with no package to install."""
    root = tmp_path / "a folder"
    for name in ("kohya_gui", "sd_scripts"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").touch()
    shutil.copy(ROOT / "kohya_gui" / "installer.py", root / "kohya_gui")
    for name in ("setup.sh", "gui.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "requirements.txt").write_text("# nothing\n", encoding="utf-8")
    return root


def installer(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kohya_gui.installer", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def fingerprint(tree: Path) -> str:
    code = "from kohya_gui.installer import fingerprint; print(fingerprint(), end='')"
    return subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True).stdout


def test_only_a_finished_environment_of_todays_files_is_current(tree: Path) -> None:
    assert installer(tree, "--is-current").returncode == 1
    (tree / "venv").mkdir()
    mark = tree / "venv" / ".setup-done"
    mark.write_text("torn", encoding="utf-8")
    assert installer(tree, "--is-current").returncode == 1
    mark.write_text(fingerprint(tree), encoding="utf-8")
    assert installer(tree, "--is-current").returncode == 0
    (tree / "requirements.txt").write_text("one-more==1\n", encoding="utf-8")
    assert installer(tree, "--is-current").returncode == 1


def test_setup_names_the_pythons_that_would_do(tree: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env"):
        os.symlink(shutil.which(name) or "", programs / name)
    old = programs / "python3"
    old.write_text("#!/bin/bash\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    result = subprocess.run(
        [str(tree / "setup.sh")], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "3.11, 3.12 or 3.13" in result.stderr


def test_too_little_space_is_one_sentence(tree: Path) -> None:
    code = (
        "import kohya_gui.installer as i; i.NEEDED_BYTES = {'cpu': 2**60, 'cuda': 2**60}; raise SystemExit(i.main([]))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "are free in" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tree / "venv").exists()


@pytest.mark.slow
def test_gui_repairs_an_unfinished_environment_and_says_what_is_missing(tree: Path) -> None:
    (tree / "venv" / "bin").mkdir(parents=True)
    (tree / "venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tree / "venv" / "bin" / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(
        [str(tree / "gui.sh")], env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert "making venv/" in result.stdout
    # The copied tree asks for no package, so the last check must find that nothing imports, and leave no mark.
    assert result.returncode == 2
    assert "do not import" in result.stderr
    assert not (tree / "venv" / ".setup-done").exists()
