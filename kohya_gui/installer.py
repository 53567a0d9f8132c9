"""Make, check and repair the environment in `venv/`; standard library only, run by the system's Python.

python -m kohya_gui.installer                 make or repair
python -m kohya_gui.installer --is-current    exit code 0 where nothing is to do (takes no install time)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "venv"
MARK = VENV / ".setup-done"
PYTHONS = ((3, 11), (3, 13))
# Measured: 2.1 GB with the CPU build of torch; CUDA's libraries add about 5 GB, pip's unpacking needs room beside it.
NEEDED_BYTES = {"cpu": 5 * 2**30, "cuda": 12 * 2**30}
# PyPI's torch for Windows is a CPU build; the CUDA one is on PyTorch's own index.
WINDOWS_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
CHECK = "import torch, diffusers, transformers, accelerate, safetensors, gradio, tomli_w, sd_scripts, kohya_gui"


class SetupError(Exception):
    """The set-up cannot go on; the text is one sentence for the user."""


def fingerprint() -> str:
    """What the finished environment was made from: requirements, package file, Python's minor version."""
    digest = hashlib.sha256()
    for name in ("requirements.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version_info[:2]} {ROOT}".encode())
    return digest.hexdigest()


def is_current() -> bool:
    """Whether the running Python's environment was finished from today's files (called with the venv's own Python)."""
    try:
        return MARK.read_text(encoding="utf-8") == fingerprint()
    except (OSError, UnicodeDecodeError):
        return False


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(arguments: Sequence[str | Path], quiet: bool = False) -> int:
    """Run one program from the project's folder; its output stays visible unless `quiet`. Returns the exit code."""
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.run([str(part) for part in arguments], cwd=ROOT, check=False, stderr=errors).returncode


def find_gpu() -> tuple[str, str]:
    """("cuda" | "mps" | "cpu", one line about it)."""
    tool = shutil.which("nvidia-smi")
    if tool:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return "cpu", f"nvidia-smi is there but does not answer ({error}): the NVIDIA driver needs a look"
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        if result.returncode == 0 and lines:
            return "cuda", f"{len(lines)} NVIDIA GPU: {'; '.join(lines)}"
        return "cpu", "nvidia-smi found no GPU or no driver: training will run on the CPU"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps", "Apple silicon: training will run on its GPU (MPS)"
    return "cpu", "no NVIDIA GPU: training will run on the CPU, which is slow for full-size models"


def check_python() -> str:
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        raise SetupError(
            f"This is Python {platform.python_version()}; 3.{low[1]} to 3.{high[1]} is needed. "
            "Install one of those and run the set-up again."
        )
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise SetupError("PyTorch has no current build for Intel Macs. Use a Mac with Apple silicon, Linux or Windows.")
    return f"Python {platform.python_version()} at {sys.executable}"


def check_space(kind: str) -> str:
    free = shutil.disk_usage(ROOT).free
    needed = NEEDED_BYTES["cuda" if kind == "cuda" else "cpu"]
    if free < needed:
        raise SetupError(
            f"{free / 2**30:.1f} GB are free in {ROOT}, about {needed / 2**30:.0f} GB are needed. "
            "Make room, or skip this check with --skip-space-check."
        )
    return f"{free / 2**30:.0f} GB free"


def make_venv(recreate: bool) -> None:
    """Create `venv/`, or keep it if its Python answers; a broken or foreign one is made anew."""
    answer = venv_python().exists() and run([venv_python(), "-c", "import pip"], quiet=True) == 0
    if answer and not recreate:
        print("venv/ is there: repairing it", flush=True)
        return
    print("making venv/", flush=True)
    try:
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=os.name != "nt").create(VENV)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"venv/ could not be made ({error}). On Debian and Ubuntu install python3-venv, then run the set-up again."
        ) from error


def install(kind: str) -> None:
    pip: list[str | Path] = [venv_python(), "-m", "pip", "--disable-pip-version-check"]
    steps: list[list[str | Path]] = []
    if os.name == "nt" and kind == "cuda":
        torch = next(
            line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")
        )
        steps.append([*pip, "install", torch, "--index-url", WINDOWS_CUDA_INDEX])
    steps.append([*pip, "install", "-r", "requirements.txt"])
    steps.append([*pip, "install", "--no-deps", "-e", "."])
    if kind == "cuda":
        steps.append([*pip, "install", "--no-deps", "xformers==0.0.35"])
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {' '.join(str(part) for part in step[3:])}", flush=True)
        if run(step) != 0:
            raise SetupError(
                "pip did not finish; its own message stands above. Mend that (usually the network or the disk) and "
                "run the set-up again: it goes on where it stopped."
            )


def set_up(skip_space: bool, recreate: bool) -> str:
    print(check_python(), flush=True)
    kind, about = find_gpu()
    print(about, flush=True)
    if not skip_space:
        print(check_space(kind), flush=True)
    MARK.unlink(missing_ok=True)  # from here on, an interrupted run is seen as unfinished
    make_venv(recreate)
    install(kind)
    print("checking that everything imports", flush=True)
    if run([venv_python(), "-c", CHECK]) != 0:
        raise SetupError("The packages are installed but do not import; run the set-up with --recreate.")
    MARK.write_text(fingerprint(), encoding="utf-8")
    return f"Ready: {about}. Start the page with {'gui.bat' if os.name == 'nt' else './gui.sh'}."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="setup", description="Make or repair the environment in venv/.")
    parser.add_argument("--is-current", action="store_true", help="only tell, by the exit code, whether all is done")
    parser.add_argument("-s", "--skip-space-check", action="store_true", help="do not look at the free disk space")
    parser.add_argument("--recreate", action="store_true", help="throw venv/ away first")
    options = parser.parse_args(arguments)
    if options.is_current:
        return 0 if is_current() else 1
    try:
        print(set_up(options.skip_space_check, options.recreate), flush=True)
    except SetupError as error:
        print(f"The set-up stopped: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the set-up again and it goes on where it stopped.", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
