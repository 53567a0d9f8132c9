"""The trainer's own plan of memory, made in a process of its own: the page itself never imports torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui.command import build, trainer
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300.0  # seconds; a busy machine takes a minute for SDXL
_KEPT = 20
_RUNNING = "working"
# They change nothing about the memory; without them a renamed run is not planned again.
_NO_MATTER = ("output_name", "logging_dir", "training_comment", "seed")


@dataclass(frozen=True)
class Forecast:
    """What is known: `state` "working", "done" or "failed"; the plan's facts when done; a sentence when failed."""

    state: str
    facts: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def line(self) -> str:
        """The peak in words, or why there is none."""
        memory = (self.facts or {}).get("memory")
        if not memory:
            return self.problem
        parts = ", ".join(
            f"{name} {_gib(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations")
        )
        return f"{_gib(memory['peak'])} ({parts})"


class MemoryPlanner:
    """Plans in the background, one at a time: a newer question ends the older one's process.

    Answers are remembered by the options asked about.
    """

    def __init__(self, timeout: float = TIMEOUT, python: str = sys.executable) -> None:
        self._timeout, self._python = timeout, python
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, Forecast] = OrderedDict()
        self._current = ""
        self._process: subprocess.Popen[str] | None = None

    def ask(self, command: str, values: Mapping[str, Any]) -> Forecast:
        """What is known about these form values at once; the first question about them starts the work.

        Raises:
            UserError: the values make no command.
        """
        key = _key(command, values)
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
            if self._current == key:
                return Forecast(_RUNNING)
        # The folder also takes what a trainer writes beside its results: a plan leaves nothing behind.
        folder = Path(tempfile.mkdtemp(prefix="kohya-plan-"))
        try:
            argv = self._command(command, values, folder)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            if self._current == key:  # somebody else asked the same meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                return Forecast(_RUNNING)
            self._stop()
            self._current = key
        threading.Thread(target=self._work, args=(key, argv, folder), daemon=True).start()
        return Forecast(_RUNNING)

    def _command(self, command: str, values: Mapping[str, Any], folder: Path) -> list[str]:
        """Write what the trainer reads into the folder; the command that plans with it. Raises UserError."""
        plan = build(command, values, job_dir=folder)
        config = folder / "plan.toml"
        config.write_text(plan.toml_text, encoding="utf-8")
        for name, text in plan.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        script = ROOT / COMMANDS[trainer(command, values)].module
        return [self._python, str(script), "--config_file", str(config), "--plan_only", "--job_dir", str(folder)]

    def cancel(self) -> None:
        """End the work in progress; what is known stays known."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        self._current = ""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _work(self, key: str, argv: list[str], folder: Path) -> None:
        try:
            answer = self._run(key, argv)
        except OSError as error:
            answer = Forecast("failed", problem=f"The plan could not be started: {error.strerror}.")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            if self._current != key or answer is None:
                return
            self._current = ""
            self._answers[key] = answer
            while len(self._answers) > _KEPT:
                self._answers.popitem(last=False)

    def _run(self, key: str, argv: list[str]) -> Forecast | None:
        """The answer of one process; None when it was ended for a newer question."""
        with self._lock:
            if self._current != key:
                return None
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT
            )
            self._process = process
        try:
            out, said = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Forecast("failed", problem=f"The plan took longer than {self._timeout:.0f} s and was ended.")
        return read_answer(process.returncode, out, said)


def read_answer(code: int, out: str, said: str) -> Forecast:
    """What a trainer printed for --plan_only."""
    if code == 0:
        for line in reversed(out.splitlines()):
            if line.startswith("{"):
                try:
                    facts = json.loads(line)
                except ValueError:
                    continue
                return Forecast("done", facts, str(facts.get("memory_problem", "")))
    last = said.strip().splitlines()[-1:] or [f"the trainer ended with code {code}"]
    return Forecast("failed", problem=f"There is no plan: {last[0]}")


def _key(command: str, values: Mapping[str, Any]) -> str:
    asked = {key: value for key, value in values.items() if key not in _NO_MATTER}
    return json.dumps([command, asked], sort_keys=True, default=str)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
