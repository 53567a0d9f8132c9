"""Scripts in processes of their own, forked from one process that has imported the large libraries already.

Importing torch, transformers and diffusers takes longer than all that these scripts do here. Whether a script starts
in a fresh interpreter is shown by the tests that ask every script for its help.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

_PRELOAD = ["sd_scripts.trainer.session", "sd_scripts.families.sdxl", "sd_scripts.families.sd"]


def start(
    script: Path,
    argv: Sequence[str],
    output: Path,
    *,
    errors: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Run `script` as `python script argv...` would; what it says goes to `output` (and to `errors`, if given).

    `environment` is added to this process's. The process leads a process group of its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    whole = {**os.environ, **(environment or {})}
    process = context.Process(
        target=_become, args=(str(script), list(argv), output, errors or output, folder or Path.cwd(), whole)
    )
    process.start()
    return process


def run(
    script: Path,
    argv: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> CompletedProcess[str]:
    """As `subprocess.run` with captured output, working in `folder`. Raises TimeoutError."""
    (output, errors) = (_log(folder, name) for name in ("output", "errors"))
    process = start(script, argv, output, errors=errors, folder=folder, environment=environment)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{script.name} did not end within {timeout:g} s: {errors.read_text('utf-8')[-3000:]}")
    said = [path.read_text(encoding="utf-8") for path in (output, errors)]
    for path in (output, errors):
        path.unlink()
    return CompletedProcess([str(script), *argv], process.exitcode, *said)


def _log(folder: Path, name: str) -> Path:
    """A file beside `folder`, so that the folder holds only what the script writes."""
    return folder.with_name(f"{folder.name} {name}.log")


def _become(
    script: str, argv: list[str], output: Path, errors: Path, folder: Path, environment: dict[str, str]
) -> None:
    """What the new process does."""
    os.setsid()
    for path, descriptors in ((output, (1, 2)), (errors, (2,))):
        with path.open("ab") as file:
            for descriptor in descriptors:
                os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")
