"""A sample picture that cannot be made warns, whatever the reason; training goes on."""

from pathlib import Path

import pytest
from effects import SMALL
from runs import train_here

from sd_scripts.events import Control, read_events
from sd_scripts.families.sd import StableDiffusion


def test_any_failure_is_a_warning(
    tiny_sd1: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a scheduler without this entry")

    monkeypatch.setattr(StableDiffusion, "sample", broken)
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --s 1\n", encoding="utf-8")
    options = {**SMALL, "sample_prompts": tmp_path / "prompts.txt", "sample_at_first": True}
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", **options)
    assert finished.code == 0
    assert ["KeyError" in event["message"] for event in finished.of("warn") if event["code"] == "sample"] == [True]


def test_asking_for_a_picture_without_prompts_is_answered(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    Control(job / "control").request("sample")
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", **SMALL, job_dir=job)
    assert finished.code == 0
    events = read_events(job / "events.jsonl")[0]
    assert "no prompt" in next(event["message"] for event in events if event.get("code") == "sample")
    assert events[-1]["status"] == "done"


def test_requests_left_over_from_an_earlier_run_are_forgotten(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    Control(tmp_path / "out" / "small.run" / "control").request("stop")
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", **{**SMALL, "max_train_steps": 2})
    assert len(finished.losses) == 2
