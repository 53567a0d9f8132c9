"""Two processes of `accelerate launch` on this machine: one result, written once; and what happens when one dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from effects import FEW_BLOCKS, SMALL
from runs import Finished, arguments, events_of, launch, launch_command, launch_environment
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture
def three(thumbs: Path, tmp_path: Path) -> Path:
    """Three pictures: two processes cannot share them evenly."""
    folder = tmp_path / "three" / "1_photo"
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "rocket"):
        for ending in (".png", ".txt"):
            shutil.copy(thumbs / "2_photo" / f"{name}{ending}", folder)
    return folder.parent


def test_two_processes_train_save_sample_and_resume(tiny_sd1: Path, three: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {thing} --w 64 --h 64 --s 2 --d 1\n" for thing in ("cat", "dog", "boat")))
    options: dict[str, Any] = {
        **SMALL,
        "network_train_unet_only": None,
        "network_dropout": 0.1,
        "network_args": [FEW_BLOCKS, "module_dropout=0.3"],
        "flip_aug": True,
        "cache_latents": None,
        "max_train_steps": 5,
        "save_every_n_steps": 3,
        "save_state": True,
        "sample_prompts": prompts,
        "sample_every_n_steps": 3,
    }
    whole = launch(tiny_sd1, three, tmp_path / "whole", processes=2, **options)
    assert whole.code == 0, whole.console[-3000:]
    start = whole.of("start")[0]
    assert (start["processes"], start["steps_per_epoch"], start["total_epochs"]) == (2, 2, 3)
    assert [event["step"] for event in whole.of("step")] == [1, 2, 3, 4, 5], "only the first process tells"
    made = [(event["prompt"], event["process"]) for event in whole.of("sample")]
    assert made == [("a cat", 0), ("a boat", 0), ("a dog", 1)], "each process makes its share"
    assert {Path(event["path"]) for event in whole.of("sample")} == set((tmp_path / "whole" / "sample").iterdir())
    assert sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors")) == [
        "small-step00000003.safetensors",
        "small.safetensors",
    ]
    assert whole.console.count("step 5/5") == 1
    rest = launch(
        tiny_sd1, three, tmp_path / "rest", processes=2, **options, resume=tmp_path / "whole/small-step00000003-state"
    )
    assert rest.code == 0, rest.console[-3000:]
    assert rest.losses == whole.losses[3:]
    one, two = (load_file(str(tmp_path / name / "small.safetensors")) for name in ("whole", "rest"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def until(done: Any, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def rank_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK") if "train_network.py" in " ".join(process.cmdline()) else None
    except psutil.Error:
        return None


@pytest.mark.parametrize("victim", ["1", "0"])
def test_a_dead_process_ends_the_run_with_a_sentence(tiny_sd1: Path, thumbs: Path, tmp_path: Path, victim: str) -> None:
    out = tmp_path / "out"
    argv = arguments(tiny_sd1, thumbs, out, **{**SMALL, "max_train_steps": 100000, "save_every_n_steps": 100000})
    log = (tmp_path / "console.log").open("w")
    launched = subprocess.Popen(
        launch_command(argv, processes=2),
        env=launch_environment(),
        stdout=log,
        stderr=log,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        until(lambda: out.exists() and any(event["kind"] == "step" for event in events_of(out)))
        children = psutil.Process(launched.pid).children(recursive=True)
        found = [child for child in children if rank_of(child) == victim]
        assert len(found) == 1
        found[0].send_signal(signal.SIGKILL)
        code = launched.wait(timeout=90)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
        log.close()
    assert code != 0
    if victim == "0":
        return  # the one that tells is gone; its launcher says so on the console
    finished = Finished(code, out, events_of(out))
    assert finished.error["code"] in ("process", "terminated")
    assert finished.error["message"] in (
        "Another process of this run ended early, so this one ends too.",
        "The run was ended from outside.",
    )
    assert finished.of("end")[-1]["status"] == "failed"


CLASS = """
import torch

class Pictures:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        latents = torch.full((1, 4, 8, 8), (0.1, 1e25)[index])
        return {"captions": ["thing"], "latents": latents, "image_keys": [("fine", "too large")[index]]}
"""


def test_what_breaks_in_one_process_stops_both(
    tiny_sd1: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is infinite in one process only; the other must not wait for its gradients."""
    (tmp_path / "uneven_pictures.py").write_text(CLASS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = {**SMALL, "train_data_dir": None, "dataset_class": "uneven_pictures.Pictures", "allow_plugins": True}
    run = launch(tiny_sd1, thumbs, tmp_path / "out", processes=2, **options)
    assert run.code != 0
    assert run.error["code"] == "nan"
    assert "fine" in run.error["message"] and "too large" in run.error["message"]
    assert run.of("end")[-1]["status"] == "failed"
