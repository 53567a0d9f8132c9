"""A run killed in the middle and resumed equals, bit for bit, one that was never interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import SCRIPT, Finished, arguments, events_of, launch_environment, train_here
from safetensors.torch import load_file

# Everything that draws random numbers at once, so that a forgotten stream shows.
RANDOM = {
    "cache_latents": False,
    "flip_aug": True,
    "shuffle_caption": True,
    "keep_tokens": 1,
    "caption_tag_dropout_rate": 0.2,
    "caption_dropout_rate": 0.1,
    "token_warmup_step": 6,
    "token_warmup_min": 1,
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "multires_noise_iterations": 3,
    "ip_noise_gamma": 0.05,
    "network_dropout": 0.1,
    "network_args": ["rank_dropout=0.2", "module_dropout=0.1"],
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": 2,
    "lr_warmup_steps": 3,
    "train_batch_size": 1,
}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path))


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def by_step(finished: Finished) -> dict[int, float]:
    """The loss of each step, the last one said where a step was run twice."""
    return {event["step"]: event["loss"] for event in finished.of("step")}


def kill_after(argv: list[str], out: Path, step: int) -> None:
    """Start a trainer and kill -9 it once it has finished this step."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *argv],
        env=launch_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if any(event["kind"] == "step" and event["step"] >= step for event in events_of(out)):
                break
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the trainer ended before it could be killed"


@pytest.mark.parametrize("optimizer", ["AdamW"])
def test_killed_and_resumed_equals_uninterrupted(tiny_sd1: Path, photos: Path, tmp_path: Path, optimizer: str) -> None:
    # 8 batches an epoch in groups of 2: 4 steps an epoch; a state at 5, 10, ... stands inside an epoch.
    options = {**RANDOM, "optimizer_type": optimizer, "max_train_steps": 14}
    saving = {"save_every_n_steps": 5, "save_state": True}
    whole = train_here(tiny_sd1, photos, tmp_path / "whole", **options)
    assert whole.code == 0
    broken = tmp_path / "broken"
    kill_after(arguments(tiny_sd1, photos, broken, **options, **saving), broken, step=7)
    assert (broken / "small-step00000005-state").is_dir()
    assert not (broken / "small.safetensors").exists()
    resumed = train_here(tiny_sd1, photos, broken, **options, **saving, resume="latest")
    assert resumed.code == 0
    assert by_step(resumed) == by_step(whole)
    assert_same_weights(broken / "small.safetensors", tmp_path / "whole" / "small.safetensors")


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
    tiny_sd1: Path, photos: Path, tmp_path: Path, optimizer: str, extra: dict[str, object]
) -> None:
    options = {"optimizer_type": optimizer, "max_train_steps": 12, "shuffle_caption": True, **extra}
    whole = train_here(tiny_sd1, photos, tmp_path / "whole", **options)
    first = tmp_path / "first"
    saving = {"save_every_n_epochs": 1, "save_state": True}
    assert train_here(tiny_sd1, photos, first, **{**options, **saving}).code == 0
    rest = train_here(tiny_sd1, photos, tmp_path / "rest", **options, resume=first / "small-000001-state")
    assert [event["step"] for event in rest.of("step")] == [9, 10, 11, 12]
    assert rest.losses == whole.losses[8:]
    assert_same_weights(tmp_path / "rest" / "small.safetensors", tmp_path / "whole" / "small.safetensors")


def test_a_stopped_run_resumes_where_it_stopped(tiny_sd1: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    control = out / "small.run" / "control"
    control.mkdir(parents=True)
    (control / "stop").touch()
    stopped = train_here(tiny_sd1, photos, out, max_train_steps=3, job_dir=out / "small.run")
    assert stopped.code == 0
    assert stopped.of("end")[-1]["status"] == "stopped"
    assert stopped.of("step")[-1]["step"] == 1
    assert (out / "small-step00000001.safetensors").is_file()
    whole = train_here(tiny_sd1, photos, tmp_path / "whole", max_train_steps=3)
    resumed = train_here(tiny_sd1, photos, out, max_train_steps=3, resume="latest")
    assert by_step(resumed) == by_step(whole)


def test_a_request_left_over_from_an_earlier_run_is_not_taken(tiny_sd1: Path, photos: Path, tmp_path: Path) -> None:
    control = tmp_path / "out" / "small.run" / "control"
    control.mkdir(parents=True)
    (control / "stop").touch()
    finished = train_here(tiny_sd1, photos, tmp_path / "out", max_train_steps=2)
    assert finished.of("end")[-1]["status"] == "done"


def test_samples_and_saves_leave_the_training_untouched(tiny_sd1: Path, photos: Path, tmp_path: Path) -> None:
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
    plain = train_here(tiny_sd1, photos, tmp_path / "plain", network_dropout=0.1)
    busy = train_here(tiny_sd1, photos, tmp_path / "busy", network_dropout=0.1, **extra)
    assert busy.losses == plain.losses
    assert len(busy.of("sample")) == 5
    assert_same_weights(tmp_path / "busy" / "small.safetensors", tmp_path / "plain" / "small.safetensors")
