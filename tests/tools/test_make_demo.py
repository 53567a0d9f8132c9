"""The demo project: complete, loadable, its form known to the trainer, its base model able to show something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sd_scripts.models.loading import load_sd
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.fields import fields
from sd_scripts.schema.model import ModelOptions
from sd_scripts.tools.demo_model import build_demo_model, thumbnail_vae
from sd_scripts.tools.demo_pictures import SCENES, draw_scene
from sd_scripts.tools.make_demo import make_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a place") / "demo project"
    make_demo(folder, say=lambda text: None)
    return folder


def test_ten_pictures_with_captions_of_several_sizes(demo: Path) -> None:
    (folder,) = (demo / "pictures").iterdir()
    assert folder.name.split("_")[0].isdigit()
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 10
    assert len({picture.with_suffix(".txt").read_text(encoding="utf-8") for picture in pictures}) == 10
    sizes = {Image.open(picture).size for picture in pictures}
    assert len(sizes) >= 3
    assert all(128 <= side <= 192 for size in sizes for side in size)


def test_every_setting_is_an_option_of_the_trainer_and_every_path_is_there(demo: Path) -> None:
    values = json.loads((demo / "demo.json").read_text(encoding="utf-8"))
    assert (values.pop("format"), values.pop("version"), values.pop("tab")) == ("kohya-gui", 1, "lora")
    values.pop("description")
    assert set(values) <= set(fields("train_network"))
    for key in ("pretrained_model_name_or_path", "train_data_dir", "sample_prompts"):
        assert Path(values[key]).exists()


def test_the_base_model_loads(demo: Path) -> None:
    options = ModelOptions(pretrained_model_name_or_path=str(demo / "model"))
    model = load_sd(options, torch.float32)
    assert model.version == "sd1"
    assert sum(weight.numel() for weight in model.unet.parameters()) < 10_000_000


def test_the_vae_shows_the_picture_it_was_given() -> None:
    vae = thumbnail_vae()
    picture = draw_scene(SCENES[0], 1)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        spread = vae.encode(pixels).latent_dist
        back = vae.decode(spread.mean).sample
    assert spread.mean.shape == (1, 4, 16, 16)
    assert spread.std.max() < 1e-3
    small = F.avg_pool2d(pixels, 8)
    torch.testing.assert_close(spread.mean[:, :3] / 10, small, rtol=0, atol=0.02)
    assert (F.avg_pool2d(back, 8) - small).abs().mean() < 0.1
    assert vae.state_dict().keys() == build_tiny("sd1").vae.state_dict().keys()


def test_the_base_model_guesses_noise_from_the_start() -> None:
    """Of a picture at a late timestep nearly all is noise, and the fresh model says so."""
    model = build_demo_model()
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guess = model.unet(noise, torch.tensor([999, 999]), torch.zeros(2, 77, 64)).sample
    plain = build_tiny("sd1").unet(noise, torch.tensor([999, 999]), torch.zeros(2, 77, 64)).sample
    assert F.mse_loss(guess, noise) < 0.1 < F.mse_loss(plain, noise)


def test_the_command_line_makes_it_and_an_older_demo_is_replaced(tmp_path: Path) -> None:
    old = tmp_path / "pictures" / "3_old"
    old.mkdir(parents=True)
    kept = tmp_path / "output" / "mine.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"x")
    command = [sys.executable, "-m", "sd_scripts.tools.make_demo", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert "demo.json made in" in done.stdout
    assert not old.exists() and kept.exists()
