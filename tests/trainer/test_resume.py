"""A run stopped at the end of an epoch or on request and resumed equals, bit for bit, one that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from effects import SMALL
from runs import Finished, train_here
from safetensors.torch import load_file


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path))


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def by_step(finished: Finished) -> dict[int, float]:
    """The loss of each step, the last one said where a step was run twice."""
    return {event["step"]: event["loss"] for event in finished.of("step")}


@pytest.mark.parametrize(
    ("optimizer", "extra"),
    [
        ("AdamW8bit", {}),
        ("Prodigy", {"learning_rate": 1.0}),
        ("Lion", {}),
        ("AdaFactor", {"optimizer_args": ["relative_step=True"]}),
        ("AdamWScheduleFree", {}),
    ],
)
def test_state_at_an_epochs_end_resumes_exactly(
    tiny_sd1: Path, thumbs: Path, tmp_path: Path, optimizer: str, extra: dict[str, object]
) -> None:
    options = {**SMALL, "optimizer_type": optimizer, "max_train_steps": 6, "shuffle_caption": True, **extra}
    options |= {"train_batch_size": 2}  # four steps an epoch
    whole = train_here(tiny_sd1, thumbs, tmp_path / "whole", **options)
    first = tmp_path / "first"
    saving = {"save_every_n_epochs": 1, "save_state": True}
    assert train_here(tiny_sd1, thumbs, first, **{**options, **saving}).code == 0
    rest = train_here(tiny_sd1, thumbs, tmp_path / "rest", **options, resume=first / "small-000001-state")
    assert [event["step"] for event in rest.of("step")] == [5, 6]
    assert rest.losses == whole.losses[4:]
    assert_same_weights(tmp_path / "rest" / "small.safetensors", tmp_path / "whole" / "small.safetensors")


def test_a_stopped_run_resumes_where_it_stopped(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    control = out / "small.run" / "control"
    control.mkdir(parents=True)
    (control / "stop").touch()
    stopped = train_here(tiny_sd1, thumbs, out, max_train_steps=3, job_dir=out / "small.run")
    assert stopped.code == 0
    assert stopped.of("end")[-1]["status"] == "stopped"
    assert stopped.of("step")[-1]["step"] == 1
    assert (out / "small-step00000001.safetensors").is_file()
    whole = train_here(tiny_sd1, thumbs, tmp_path / "whole", max_train_steps=3)
    resumed = train_here(tiny_sd1, thumbs, out, max_train_steps=3, resume="latest")
    assert by_step(resumed) == by_step(whole)


def test_a_request_left_over_from_an_earlier_run_is_not_taken(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    control = tmp_path / "out" / "small.run" / "control"
    control.mkdir(parents=True)
    (control / "stop").touch()
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", max_train_steps=2)
    assert finished.of("end")[-1]["status"] == "done"


def test_samples_and_saves_leave_the_training_untouched(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 2\n", encoding="utf-8")
    extra = {
        "sample_prompts": prompts,
        "sample_every_n_steps": 1,
        "sample_at_first": True,
        "sample_sampler": "euler_a",
        "save_every_n_steps": 2,
        "save_state": True,
    }
    plain = train_here(tiny_sd1, thumbs, tmp_path / "plain", network_dropout=0.1)
    busy = train_here(tiny_sd1, thumbs, tmp_path / "busy", network_dropout=0.1, **extra)
    assert busy.losses == plain.losses
    assert len(busy.of("sample")) == 5
    assert_same_weights(tmp_path / "busy" / "small.safetensors", tmp_path / "plain" / "small.safetensors")
