"""Every flag about noise and loss changes what a run learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effects import Probe, shows
from PIL import Image

# flag -> (its value, what else must be on for it to matter, model)
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "noise_offset": (0.3, {}, "sd1"),
    "noise_offset_random_strength": (True, {"noise_offset": 0.3}, "sd1"),
    "adaptive_noise_scale": (0.5, {"noise_offset": 0.3}, "sd1"),
    "multires_noise_iterations": (4, {}, "sd1"),
    "multires_noise_discount": (0.8, {"multires_noise_iterations": 4}, "sd1"),
    "ip_noise_gamma": (0.4, {}, "sd1"),
    "ip_noise_gamma_random_strength": (True, {"ip_noise_gamma": 0.4}, "sd1"),
    "zero_terminal_snr": (True, {}, "sd2_v"),
    "min_timestep": (990, {}, "sd1"),
    "max_timestep": (10, {}, "sd1"),
    "min_snr_gamma": (0.001, {}, "sd1"),
    "scale_v_pred_loss_like_noise_pred": (True, {"v_parameterization": True}, "sd2_v"),
    "v_pred_like_loss": (0.5, {}, "sd1"),
    "debiased_estimation_loss": (True, {}, "sd1"),
    "loss_type": ("huber", {}, "sd1"),
    "huber_schedule": ("constant", {"loss_type": "huber"}, "sd1"),
    "huber_c": (0.5, {"loss_type": "huber"}, "sd1"),
    "huber_scale": (0.25, {"loss_type": "huber"}, "sd1"),
}


@shows(*CASES)
@pytest.mark.parametrize("flag", CASES)
def test_changes_the_first_loss(probe: Probe, flag: str) -> None:
    value, needed, model = CASES[flag]
    before = probe.base(model, **needed)
    after = probe.trained(model, **needed, **{flag: value})
    assert len(before.losses) == len(after.losses) == 1
    assert abs(after.losses[0] - before.losses[0]) > 1e-5


@shows("seed")
def test_the_same_seed_gives_the_same_run_and_another_one_another(probe: Probe) -> None:
    assert probe().losses == probe.base().losses
    assert probe(seed=8).losses != probe.base().losses
    drawn = [probe(seed=None).of("start")[0]["seed"] for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.fixture
def masks(thumbs: Path, tmp_path: Path) -> Path:
    """Black masks: nothing of any picture is to be learned."""
    for picture in (thumbs / "2_photo").glob("*.png"):
        size = Image.open(picture).size
        Image.new("RGB", size, (0, 0, 0)).save(tmp_path / picture.name)
    return tmp_path


@shows("masked_loss", "conditioning_data_dir")
@pytest.mark.parametrize("cached", [True, False])
def test_masks_count_only_with_masked_loss(probe: Probe, masks: Path, cached: bool) -> None:
    common = {"cache_latents": cached, "conditioning_data_dir": masks}
    without = probe.trained(**common)
    assert without.losses[0] == pytest.approx(probe.base(cache_latents=cached).losses[0], rel=1e-6)
    assert probe.trained(**common, masked_loss=True).losses == [0.0]


@shows("alpha_mask")
def test_transparent_parts_are_not_learned(probe: Probe, thumbs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1_clear"
    folder.mkdir()
    for picture in (thumbs / "2_photo").glob("*.png"):
        pixels = np.dstack([np.asarray(Image.open(picture)), np.zeros((80, 96), np.uint8)])
        Image.fromarray(pixels, "RGBA").save(folder / picture.name)
    assert probe.trained(data=tmp_path).losses[0] > 0
    assert probe.trained(data=tmp_path, alpha_mask=True).losses == [0.0]


@shows("prior_loss_weight", "reg_data_dir")
def test_regularisation_pictures_count_as_much_as_asked(probe: Probe, thumbs: Path, tmp_path: Path) -> None:
    shutil.copytree(thumbs, tmp_path / "reg")
    options = {"reg_data_dir": tmp_path / "reg", "max_train_steps": 4, "learning_rate": 1e-9}
    full = probe.trained(**options)
    weighed = probe.trained(**options, prior_loss_weight=0.0)
    assert full.of("start")[0]["repeats_images"] == 2 * probe.base().of("start")[0]["repeats_images"]
    lost = [after == 0 for after in weighed.losses]
    assert any(lost) and not all(lost)
    kept = [pair for pair in zip(full.losses, weighed.losses) if pair[1]]
    assert all(before == pytest.approx(after, rel=1e-3) for before, after in kept)
