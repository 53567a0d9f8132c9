"""The page's question for a plan: asked in a process of its own, remembered, ended for a newer one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from kohya_gui import machine
from kohya_gui.forecast import Forecast
from kohya_gui.memory import MemoryPlanner, read_answer

FACTS = {
    "memory": {
        "peak": 3 << 30, "weights": 1 << 30, "gradients": 0, "optimizer": 1 << 29, "activations": 3 << 29,
        "device": "cuda", "extra": 1 << 29,
    }
}  # fmt: skip


def python(tmp_path: Path, program: str) -> str:
    """An interpreter that runs `program` whatever script it is given; every run adds a line to runs.txt."""
    script = tmp_path / "program.py"
    count = f"open({str(tmp_path / 'runs.txt')!r}, 'a').write('x\\n')\n"
    script.write_text(count + program, encoding="utf-8")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return str(wrapper)


def settled(planner: MemoryPlanner, values: dict[str, Any], who: str = "", seconds: float = 60) -> Forecast:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = planner.ask("train_network", values, who)
        if found.state != "working":
            return found
        assert found.pace is not None and found.line({}) == "being predicted"
        time.sleep(0.05)
    raise AssertionError("no answer came")


def started(planner: MemoryPlanner) -> subprocess.Popen[str]:
    end = time.monotonic() + 20
    while planner.process is None and time.monotonic() < end:
        time.sleep(0.01)
    assert planner.process is not None
    return planner.process


@pytest.fixture
def values() -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": "/models/base.safetensors",
        "train_data_dir": "/data",
        "output_dir": "/out",
    }


def test_an_answer_is_shown_and_remembered_by_what_matters(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(0, "card", 12 << 30),))
    planner = MemoryPlanner(settle=0, python=python(tmp_path, f"print('words'); print({json.dumps(FACTS)!r})"))
    assert planner.ask("train_network", values).state == "working"
    found = settled(planner, values)
    assert found.state == "done" and found.pace is None
    assert found.line({}) == "about 3.5 of 12 GB (predicted)"
    assert found.details == "weights 1, gradients 0, optimizer 0.5, activations 1.5"
    for change in (
        {"output_name": "another"},
        {"learning_rate": 1e-4},
        {"learning_rate": 2e-4},
        {"save_every_n_steps": 5},
    ):
        settled(planner, {**values, "learning_rate": 1e-5, **change})
    runs = (tmp_path / "runs.txt").read_text().count("x")
    assert runs == 2  # without any rate, and with one
    settled(planner, {**values, "train_batch_size": 4})
    assert (tmp_path / "runs.txt").read_text().count("x") == runs + 1


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(timeout=0.5, settle=0, python=python(tmp_path, "import time; time.sleep(60)"))
    found = settled(planner, values, seconds=20)
    assert found.state == "failed" and "longer than" in found.problem and found.line({}) == "not known"


def test_a_newer_question_of_the_same_person_ends_the_process(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(settle=0, python=python(tmp_path, "import time; time.sleep(60)"))
    planner.ask("train_network", values, "a")
    first = started(planner)
    planner.ask("train_network", {**values, "train_batch_size": 4}, "a")
    assert first.wait(10) != 0
    planner.cancel("a")


def test_two_people_wait_for_each_other_and_share_answers(tmp_path: Path, values: dict[str, Any]) -> None:
    program = f"import time; time.sleep(0.3); print({json.dumps(FACTS)!r})"
    planner = MemoryPlanner(settle=0, python=python(tmp_path, program))
    other = {**values, "train_batch_size": 4}
    for who, asked in (("a", values), ("b", other), ("c", values)):
        assert planner.ask("train_network", asked, who).state == "working"
    first = started(planner)
    assert psutil.Process(first.pid).nice() > psutil.Process().nice() or first.poll() is not None
    # b goes on asking, which does not end what a and c wait for
    assert settled(planner, other, "b").state == "done" and first.returncode == 0
    assert settled(planner, values, "a").state == "done" == settled(planner, values, "c").state
    assert (tmp_path / "runs.txt").read_text().count("x") == 2


def test_quick_typing_starts_one_process(tmp_path: Path, values: dict[str, Any]) -> None:
    planner = MemoryPlanner(settle=0.3, python=python(tmp_path, f"print({json.dumps(FACTS)!r})"))
    for rank in range(1, 9):
        planner.ask("train_network", {**values, "network_dim": rank})
        time.sleep(0.02)
    assert settled(planner, {**values, "network_dim": 8}).state == "done"
    assert (tmp_path / "runs.txt").read_text().count("x") == 1


def test_failures_are_sentences(tmp_path: Path) -> None:
    assert "The model is damaged." in read_answer(1, "", "noise\ntrain_network: The model is damaged.\n").problem
    assert read_answer(1, "", "").state == "failed"
    problem = {"memory": None, "memory_problem": "The model cannot be read."}
    assert read_answer(0, "hello\n" + json.dumps(problem), "").line({}) == "not known"
    event = {"v": 1, "t": 0, "kind": "error", "message": "No.", "hint": "Do this.", "key": "resume"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    refused = read_answer(2, "", "", tmp_path)
    assert (refused.state, refused.problem, refused.hint, refused.key) == ("refused", "No.", "Do this.", "resume")
    assert [problem.severity for problem in refused.problems({})] == ["error"] and refused.line({}) == ""


@pytest.mark.parametrize(("size", "severity"), [(24, None), (3.6, "warning"), (3, "error")])
def test_what_does_not_fit_names_the_first_thing_to_change(
    size: float, severity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(0, "card", int(size * 2**30)),))
    found = list(Forecast("done", FACTS).problems({"train_batch_size": 4}))
    assert [problem.severity for problem in found] == ([severity] if severity else [])
    if found:
        assert found[0].key == "gradient_checkpointing" and found[0].fix == {"gradient_checkpointing": True}
        assert "about 3.5 GB (weights 1, " in found[0].message
    lean = {"gradient_checkpointing": True, "train_batch_size": 1, "mixed_precision": "bf16", "cache_latents": True}
    assert [problem.key for problem in Forecast("done", FACTS).problems(lean)] == ["optimizer_type"] * bool(severity)


@pytest.mark.parametrize("broken", [False, True])
def test_the_real_trainer_is_asked(tiny_sd1: Path, photos: Path, tmp_path: Path, broken: bool) -> None:
    out = tmp_path / "out"
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(tiny_sd1), "train_data_dir": str(photos), "output_dir": str(out),
        "resolution": "64", "LoRA_type": "Standard", "network_dim": 2, "caption_extension": ".txt",
    }  # fmt: skip
    if broken:
        values |= {"sample_prompts": str(tmp_path / "prompts.toml"), "sample_every_n_epochs": 1}
        (tmp_path / "prompts.toml").write_text("[[prompt.subset]]\nprompt = 'a'\nwidth = 'wide'\n")
    before = sorted(photos.rglob("*"))
    found = settled(MemoryPlanner(settle=0), values, seconds=200)
    if broken:
        assert found.state == "refused" and found.key == "sample_prompts" and "width" in found.problem, found
    else:
        assert found.state == "done" and found.memory["device"] == "cpu" and found.needed > 1_000_000, found
        assert found.line({}).startswith("about 0") and " of " in found.line({})
    # nothing is left behind
    assert not out.exists() and sorted(photos.rglob("*")) == before
