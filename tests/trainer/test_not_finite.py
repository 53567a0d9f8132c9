"""A run whose numbers break stops at once, says where and with which pictures, and keeps the last good weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from effects import Probe
from safetensors.torch import load_file

from sd_scripts.models.tiny import build_tiny
from sd_scripts.training import loss


def all_finite(path: Path) -> bool:
    return all(bool(torch.isfinite(value.float()).all()) for value in load_file(str(path)).values())


def test_a_rate_that_is_far_too_high(probe: Probe) -> None:
    run = probe(learning_rate=1e30, optimizer_type="SGD", max_grad_norm=0, max_train_steps=8, save_every_n_steps=1)
    assert run.code == 3
    assert run.error["code"] == "nan"
    ended = run.of("end")[-1]
    assert (ended["status"], run.of("start")[0]["total_steps"]) == ("failed", 8)
    assert f"step {ended['step'] + 1}" in run.error["message"]
    assert ".png" in run.error["message"]
    assert not (run.out / "small.safetensors").exists()
    kept = sorted(run.out.glob("*.safetensors"))
    assert kept and all(all_finite(path) for path in kept)


def poison(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """The loss of one step becomes NaN, or only its gradient does."""
    count = [0]
    whole = loss.per_sample

    def broken(*args: Any, **values: Any) -> torch.Tensor:
        count[0] += 1
        made = whole(*args, **values)
        if count[0] != step:
            return made
        if what == "loss":
            return made * float("nan")
        made.register_hook(lambda gradient: gradient * float("inf"))
        return made

    monkeypatch.setattr(loss, "per_sample", broken)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_weights_before_the_bad_step_are_kept(probe: Probe, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    poison(monkeypatch, 3, what)
    run = probe(max_train_steps=5)
    assert run.code == 3
    assert run.error["message"].startswith(f"The {what} became NaN or infinite at step 3; the batch was ")
    named = {name for name in ("astronaut", "coffee", "chelsea", "rocket") if f"{name}.png" in run.error["message"]}
    assert len(named) == 1
    assert [event["step"] for event in run.of("step")] == [1, 2]
    kept, good = load_file(str(run.out / "small-step00000002.safetensors")), probe.base(max_train_steps=2).out
    assert all(torch.equal(value, kept[name]) for name, value in load_file(str(good / "small.safetensors")).items())


def test_a_poisoned_cache_is_encoded_again(probe: Probe, thumbs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "2_photo"
    folder.mkdir()
    for file in (thumbs / "2_photo").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    first = probe.trained(data=tmp_path, cache_latents_to_disk=True, max_train_steps=4)
    for file in folder.glob("*.npz"):
        arrays = dict(np.load(file))
        arrays = {name: value * np.nan if value.dtype.kind == "f" else value for name, value in arrays.items()}
        np.savez(file, **arrays)
    again = probe.trained(data=tmp_path, cache_latents_to_disk=True, max_train_steps=4)
    assert again.losses == first.losses


def test_a_vae_that_gives_nan_is_one_sentence(probe: Probe, tmp_path: Path) -> None:
    vae = build_tiny("sd1").vae
    with torch.no_grad():
        vae.quant_conv.bias.fill_(float("nan"))
    vae.save_pretrained(tmp_path / "vae")
    for cached in (True, False):
        run = probe(vae=tmp_path / "vae", cache_latents=cached)
        assert run.code == 2
        assert run.error["key"] == "no_half_vae"
        assert ".png" in run.error["message"]
