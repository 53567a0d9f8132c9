"""Folders of small real photographs under awkward names, and a way to run a script as people do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forked
import pytest
from PIL import Image
from script_kit import ROOT, Run


@pytest.fixture
def pictures(photos: Path, tmp_path: Path) -> Path:
    """Four photographs of several shapes with .caption and .txt files; blanks and other alphabets in the names."""
    folder = tmp_path / "my pictures 写真"
    folder.mkdir()
    names = {"astronaut": "an astronaut", "coffee": "Kaffee ü", "chelsea": "猫", "rocket": "rocket"}
    for number, (source, name) in enumerate(sorted(names.items())):
        image = Image.open(photos / "2_photo" / f"{source}.png")
        image.thumbnail((160, 160))
        image.crop((0, 0, image.width, image.height - 24 * number)).save(folder / f"{name}.png")
        (folder / f"{name}.caption").write_text(f"a photo of {name}\n", encoding="utf-8")
        (folder / f"{name}.txt").write_text(f"1girl, blue_eyes, {name}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(shallow_sdxl: Path) -> Path:
    """No script here looks at the number of layers."""
    return shallow_sdxl


@pytest.fixture
def script(tmp_path: Path) -> Run:
    """Run a script of sd_scripts in its own process, from another folder."""

    def run(name: str, *argv: object) -> subprocess.CompletedProcess[str]:
        return forked.run(ROOT / "sd_scripts" / name, [str(item) for item in argv], tmp_path)

    return run


@pytest.fixture
def fresh_script(tmp_path: Path) -> Run:
    """The same in a fresh interpreter, as people start it."""

    def run(name: str, *argv: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "sd_scripts" / name), *(str(item) for item in argv)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240, encoding="utf-8")

    return run
