"""Every trainer killed in the middle and resumed equals, bit for bit, one that was never interrupted.

Each killed process runs the trainer's own script.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from all_trainers import TRAINERS, draw_all, options_of
from effects import FEW_BLOCKS
from runs import SCRIPTS, Finished, arguments, events_of, train_here
from safetensors.torch import load_file

# Everything that draws random numbers at once, so that a forgotten stream shows.
RANDOM: dict[str, Any] = {
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
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": 2,
    "lr_warmup_steps": 2,
    "train_batch_size": 1,
    "max_train_steps": 7,
}
# 8 batches an epoch in groups of 2: 4 steps an epoch, so the state at 3 stands inside one.
SAVING = {"save_every_n_steps": 3, "save_state": True}
NETWORK = {"network_dropout": 0.1, "network_args": ["rank_dropout=0.2", "module_dropout=0.1", FEW_BLOCKS]}
# Of the 23 blocks of SDXL two with a few attention layers each.
XL_BLOCKS = "block_dims=" + ",".join("2" if block in (5, 18) else "0" for block in range(23))
XL_NETWORK = {**NETWORK, "network_args": ["rank_dropout=0.2", "module_dropout=0.1", XL_BLOCKS]}
ADAFACTOR = {
    "optimizer_type": "AdaFactor",
    "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"],
    "max_grad_norm": 0,
}
NEVER_DROPPED = {"caption_tag_dropout_rate": None, "caption_dropout_rate": None}
# Each trainer as it is, and then what has a state of its own.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{command: (command, NEVER_DROPPED if "inversion" in command else {}) for command in TRAINERS},
    "train_network": ("train_network", NETWORK),
    "sdxl_train_network": ("sdxl_train_network", XL_NETWORK),
    "sdxl_train_network, captions kept": (
        "sdxl_train_network",
        {
            **{key: None for key in RANDOM if "caption" in key or "token" in key},
            **XL_NETWORK,
            "network_train_unet_only": True,
            "cache_text_encoder_outputs_to_disk": True,
        },
    ),
    "train_db, text encoder stops later": ("train_db", {"stop_text_encoder_training": 5}),
    "train_db, text encoder has stopped": ("train_db", {"stop_text_encoder_training": 2}),
    "fine_tune, text encoder": ("fine_tune", {"train_text_encoder": True, "learning_rate_te": 5e-5}),
    "sdxl_train, blocks and text encoders": (
        "sdxl_train",
        {
            "train_text_encoder": True,
            "learning_rate_te1": 1e-5,
            "learning_rate_te2": 2e-5,
            "block_lr": ",".join(f"{number}e-5" for number in range(23)),
        },
    ),
    "sdxl_train, fused": (
        "sdxl_train",
        {**ADAFACTOR, "fused_backward_pass": True, "gradient_accumulation_steps": 1},
    ),
    "sdxl_train, bf16 rounded": (
        "sdxl_train",
        {"mixed_precision": "bf16", "full_bf16": True, "stochastic_rounding": True, "learning_rate": 1e-5},
    ),
    "sdxl_train, fused and rounded": (
        "sdxl_train",
        {
            **ADAFACTOR,
            "fused_backward_pass": True,
            "gradient_accumulation_steps": 1,
            "mixed_precision": "bf16",
            "full_bf16": True,
            "stochastic_rounding": True,
        },
    ),
}


def kill_after(command: str, argv: list[str], out: Path, step: int) -> None:
    """Start a trainer and kill -9 it once it has finished this step."""
    log = out.with_name("killed.log")
    script = SCRIPTS / f"{command}.py"
    process = forked.start(script, argv, log, environment={"ACCELERATE_USE_CPU": "true"})
    deadline = time.monotonic() + 200
    try:
        while time.monotonic() < deadline and process.is_alive():
            if any(event["kind"] == "step" and event["step"] >= step for event in events_of(out)):
                break
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended before it could be killed: {log.read_text()[-3000:]}"


def by_step(finished: Finished) -> dict[int, float]:
    """The loss of each step, the last one said where a step was run twice."""
    return {event["step"]: event["loss"] for event in finished.of("step")}


@pytest.fixture(scope="module")
def pictures(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for every kind of data set."""
    return draw_all(thumbs, tmp_path_factory.mktemp("pictures"))


EVERYDAY = ("train_network",)
EACH = [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", EACH)
def test_killed_and_resumed_equals_uninterrupted(
    name: str, quick_model: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    command, more = CASES[name]
    folder, options = options_of(command, pictures, **{**RANDOM, **more})
    model = quick_model(command)
    broken = tmp_path / "broken"
    kill_after(command, arguments(model, folder, broken, command, **options, **SAVING), broken, step=4)
    assert (broken / "small-step00000003-state").is_dir()
    assert not (broken / "small.safetensors").exists()
    resumed = train_here(model, folder, broken, command, **options, **SAVING, resume="latest")
    whole = train_here(model, folder, tmp_path / "whole", command, **options)
    assert (whole.code, resumed.code) == (0, 0), (whole.of("error"), resumed.of("error"))
    assert [event["code"] for event in resumed.of("warn") if "state" in event["code"]] == []
    assert len(whole.losses) == 7
    assert by_step(resumed) == by_step(whole)
    one, two = (load_file(str(out / "small.safetensors")) for out in (broken, tmp_path / "whole"))
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
