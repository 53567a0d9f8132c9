"""A sample picture that cannot be made warns, whatever the reason; training goes on."""

from pathlib import Path

import pytest
from effects import SMALL
from runs import events_of, train_here

from sd_scripts.events import Control
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
    Control(tmp_path / "out" / "small.run" / "control").request("sample")
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", **SMALL)
    assert finished.code == 0
    assert "no prompt" in next(event["message"] for event in finished.of("warn") if event["code"] == "sample")
    assert events_of(tmp_path / "out")[-1]["status"] == "done"
