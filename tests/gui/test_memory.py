"""The page's question for a plan: asked in a process of its own, remembered, ended for a newer one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kohya_gui.memory import Forecast, MemoryPlanner, read_answer

FACTS = {"memory": {"peak": 3 << 30, "weights": 1 << 30, "gradients": 0, "optimizer": 1 << 29, "activations": 3 << 29}}


def python(tmp_path: Path, program: str) -> str:
    """An interpreter that runs `program` whatever script it is given; every run adds a line to runs.txt."""
    script = tmp_path / "program.py"
    count = f"open({str(tmp_path / 'runs.txt')!r}, 'a').write('x\\n')\n"
    script.write_text(count + program, encoding="utf-8")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return str(wrapper)


def settled(planner: MemoryPlanner, values: dict[str, Any], seconds: float = 60) -> Forecast:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = planner.ask("train_network", values)
        if found.state != "working":
            return found
        time.sleep(0.05)
    raise AssertionError("no answer came")


@pytest.fixture
def values() -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": "/models/base.safetensors",
        "train_data_dir": "/data",
        "output_dir": "/out",
    }


def test_an_answer_is_read_shown_and_remembered(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(python=python(tmp_path, f"print('words'); print({json.dumps(FACTS)!r})"))
    assert planner.ask("train_network", values).state == "working"
    found = settled(planner, values)
    assert found.state == "done"
    assert found.line == "3.0 GiB (weights 1.0 GiB, gradients 0 MiB, optimizer 512 MiB, activations 1.5 GiB)"
    assert settled(planner, {**values, "output_name": "another"}) == found
    assert (tmp_path / "runs.txt").read_text().count("x") == 1
    settled(planner, {**values, "train_batch_size": 4})
    assert (tmp_path / "runs.txt").read_text().count("x") == 2


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(timeout=0.5, python=python(tmp_path, "import time; time.sleep(60)"))
    found = settled(planner, values, 20)
    assert found.state == "failed" and "longer than" in found.line


def test_a_newer_question_ends_the_older_process(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(python=python(tmp_path, "import time; time.sleep(60)"))
    planner.ask("train_network", values)
    while planner._process is None:
        time.sleep(0.02)
    first = planner._process
    planner.ask("train_network", {**values, "train_batch_size": 4})
    assert first.wait(10) != 0
    planner.cancel()


def test_failures_are_sentences() -> None:
    assert "The model is damaged." in read_answer(2, "", "noise\ntrain_network: The model is damaged.\n").line
    assert read_answer(1, "", "").state == "failed"
    problem = {"memory": None, "memory_problem": "The model cannot be read."}
    assert read_answer(0, "hello\n" + json.dumps(problem), "").line == "The model cannot be read."
