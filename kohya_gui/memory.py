"""The trainer's own plan of a run, made in a process of its own: its memory, and whatever the trainer refuses.

The page itself never imports torch. One process works at a time, with low priority; everybody who looks at a form has
one question, and a newer one takes the place of the older.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kohya_gui.command import PLUGINS, build, trainer
from kohya_gui.counting import stamps
from kohya_gui.forecast import Forecast
from kohya_gui.launch_args import environment
from kohya_gui.machine import has_gpu
from kohya_gui.model_kind import resolve
from sd_scripts.events import read_events
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300.0  # seconds; a busy machine takes a minute for SDXL
SETTLE = 1.0  # seconds without a newer question before a process is started
GONE = 60.0  # seconds after which nobody waits any more for what was asked
_KEPT = 40
_LAST_SECONDS = 5.0  # that the end of the page waits for a process to end
_NICE = 10
_REFUSED = 2  # the trainers' exit code for options that cannot be
# They change nothing about the memory; without them a renamed run is not planned again.
_NO_MATTER = (
    "output_name", "output_dir", "logging_dir", "log_prefix", "log_tracker_name", "wandb_run_name", "training_comment",
    "seed", "max_train_steps", "max_train_epochs", "epoch", "lr_warmup", "lr_warmup_steps", "prior_loss_weight",
    "min_snr_gamma", "noise_offset", "sample_every_n_steps", "sample_every_n_epochs", "sample_sampler",
)  # fmt: skip
_NO_MATTER_STARTS = ("save_every_", "save_last_", "metadata_", "huggingface_")
# of a rate it only matters whether there is one
_RATES = ("learning_rate", "unet_lr", "learning_rate_te", "learning_rate_te1", "learning_rate_te2")


@dataclass
class _Question:
    """What one person wants to know. Times are of `time.monotonic`."""

    key: str
    command: str
    values: Mapping[str, Any]
    asked: float
    seen: float


@dataclass
class _Work:
    """The process that works now."""

    key: str
    process: subprocess.Popen[str] | None = None
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self) -> None:
        """Stop it, or keep it from starting."""
        with self.lock:
            self.ended = True
            if self.process is not None and self.process.poll() is None:
                self.process.kill()


class MemoryPlanner:
    """Plans in the background. Answers are remembered by the options that matter."""

    def __init__(
        self,
        timeout: float = TIMEOUT,
        python: str = sys.executable,
        settle: float = SETTLE,
        allow_plugins: bool = False,
    ) -> None:
        """Args:
        timeout: seconds after which a process is ended.
        python: the program that runs the trainer.
        settle: seconds without a newer question before a process is started.
        allow_plugins: foreign classes were allowed by whoever started the page, so the trainer may import them too.
        """
        self._timeout, self._python, self._settle = timeout, python, settle
        self._plugins = allow_plugins
        self._changed = threading.Condition()
        self._answers: OrderedDict[str, Forecast] = OrderedDict()
        self._questions: OrderedDict[str, _Question] = OrderedDict()
        self._work: _Work | None = None
        self._thread: threading.Thread | None = None
        self._registered = False

    def ask(self, command: str, values: Mapping[str, Any], who: str = "") -> Forecast:
        """What is known about these form values at once; the first question about them starts the work.

        Args:
            command: the tab's command.
            values: the form's values.
            who: whoever asks; their earlier question is forgotten.
        """
        key, now = _key(command, values), time.monotonic()
        with self._changed:
            if key in self._answers:
                self._answers.move_to_end(key)
                self._drop(who)
                return self._answers[key]
            before = self._questions.get(who)
            if before is None or before.key != key:
                self._drop(who)
                before = self._questions[who] = _Question(key, command, dict(values), now, now)
            before.seen = now
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
                self._thread.start()
                if not self._registered:
                    self._registered = True
                    atexit.register(self.close)
            self._changed.notify()
            return Forecast("working", waited=now - before.asked)

    def known(self, command: str, values: Mapping[str, Any]) -> Forecast | None:
        """The answer about these form values, if there is one already."""
        with self._changed:
            return self._answers.get(_key(command, values))

    def close(self) -> None:
        """End the work; the process that works leaves nothing behind."""
        with self._changed:
            self._questions.clear()
            work, thread = self._work, self._thread
            if work is not None:
                work.end()
            self._changed.notify()
        if thread is not None:
            thread.join(_LAST_SECONDS)

    def cancel(self, who: str = "") -> None:
        """Nobody of this name wants to know anything any more; what is known stays known."""
        with self._changed:
            self._drop(who)
            self._changed.notify()

    @property
    def process(self) -> subprocess.Popen[str] | None:
        """The process at work, if there is one."""
        return self._work.process if self._work else None

    def _drop(self, who: str) -> None:
        gone = self._questions.pop(who, None)
        wanted = {question.key for question in self._questions.values()}
        if gone and self._work and self._work.key == gone.key and gone.key not in wanted:
            self._work.end()

    # ------------------------------------------------------------------ the one thread that works

    def _run(self) -> None:
        while True:
            with self._changed:
                question = self._next()
                if question is None:
                    return
                work = self._work = _Work(question.key)
            answer = self._answer(question, work)
            with self._changed:
                self._work = None
                if answer is not None:
                    self._answers[question.key] = answer
                    while len(self._answers) > _KEPT:
                        self._answers.popitem(last=False)

    def _next(self) -> _Question | None:
        """The question that has waited longest, once its form is left alone; None ends the thread. Holds the lock."""
        while True:
            now = time.monotonic()
            for who, question in list(self._questions.items()):
                if now - question.seen > GONE or question.key in self._answers:
                    del self._questions[who]
            ready = [each for each in self._questions.values() if now - each.asked >= self._settle]
            if ready:
                return min(ready, key=lambda each: each.asked)
            if not self._questions:
                self._thread = None
                return None
            self._changed.wait(max(self._settle / 4, 0.01))

    def _answer(self, question: _Question, work: _Work) -> Forecast | None:
        """What one process says; None when nobody wants to know any more."""
        folder = Path(tempfile.mkdtemp(prefix="kohya-plan-"))
        try:
            argv, env = self._command(question.command, question.values, folder)
            return self._ask_trainer(argv, env, folder, work)
        except UserError as error:
            # the form says the same beside its field
            return Forecast("failed", problem=error.message, key=error.key, hint=error.hint)
        except OSError as error:
            return Forecast("failed", problem=f"The plan could not be started: {error.strerror}.")
        finally:
            # the folder also took what a trainer writes beside its results: a plan leaves nothing behind
            shutil.rmtree(folder, ignore_errors=True)

    def _command(self, command: str, values: Mapping[str, Any], folder: Path) -> tuple[list[str], Mapping[str, str]]:
        """Write what the trainer reads into the folder; the command that plans with it. Raises UserError."""
        # which would be written beside the pictures
        asked = {key: value for key, value in values.items() if key != "cache_info"}
        plan = build(command, asked, job_dir=folder, allow_plugins=self._plugins)
        config = folder / "plan.toml"
        config.write_text(plan.toml_text, encoding="utf-8")
        for name, text in plan.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        name = trainer(command, resolve(values))
        script = ROOT / COMMANDS[name].module
        argv = [self._python, str(script), "--config_file", str(config), "--plan_only", "--job_dir", str(folder)]
        argv += ["--output_dir", str(folder / "out"), *(PLUGINS if self._plugins else ())]
        env = {**os.environ, **environment(complete(name, {}), ROOT, not has_gpu()), "OMP_NUM_THREADS": "1"}
        return argv, env if has_gpu() else {**env, "ACCELERATE_USE_CPU": "true"}

    def _ask_trainer(self, argv: list[str], env: Mapping[str, str], folder: Path, work: _Work) -> Forecast | None:
        with work.lock:
            if work.ended:
                return None
            pipe = subprocess.PIPE
            process = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", cwd=ROOT, env=env)
            work.process = process
        _lower(process.pid)
        try:
            out, said = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Forecast("failed", problem=f"The plan took longer than {self._timeout:.0f} s and was ended.")
        return None if work.ended else read_answer(process.returncode, out, said, folder)


def _lower(pid: int) -> None:
    """Let everything else on this machine go before the process."""
    try:
        psutil.Process(pid).nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", _NICE))
    except psutil.Error:
        return  # it is over already, or may not be slowed down


def read_answer(code: int, out: str, said: str, folder: Path | None = None) -> Forecast:
    """What a trainer printed for --plan_only; why it refused stands in its events in the folder."""
    if code == 0:
        for line in reversed(out.splitlines()):
            if line.startswith("{"):
                try:
                    facts = json.loads(line)
                except ValueError:
                    continue
                return Forecast("done", facts, str(facts.get("memory_problem", "")))
    events = read_events(folder / "events.jsonl", 0)[0] if folder is not None else []
    error = next((event for event in reversed(events) if event.get("kind") == "error"), None)
    if error is not None and code == _REFUSED:
        key, hint = error.get("key"), str(error.get("hint") or "")
        return Forecast("refused", problem=str(error.get("message")), key=str(key) if key else None, hint=hint)
    last = said.strip().splitlines()[-1:] or [f"the trainer ended with code {code}"]
    return Forecast("failed", problem=f"There is no plan: {last[0]}")


def _key(command: str, values: Mapping[str, Any]) -> str:
    asked = {
        key: bool(value) if key in _RATES else value
        for key, value in values.items()
        if key not in _NO_MATTER and not key.startswith(_NO_MATTER_STARTS) and value is not None
    }
    return json.dumps([command, asked, stamps(values)], sort_keys=True, default=str)
