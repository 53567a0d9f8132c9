"""Pictures doubled by a network that only repeats latents: what comes out is what the VAE makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_kit import Run
from torch import Tensor, nn

from sd_scripts.models.loading import load_vae
from sd_scripts.tools import latent_upscaler


class Repeat(nn.Module):
    """Every cell four times; `same` leaves the size as it is."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


def saved(path: Path, factor: int = 2) -> Path:
    torch.jit.script(Repeat(factor)).save(str(path))
    return path


def test_pictures_are_doubled(pictures: Path, tiny_sd1: Path, tmp_path: Path, script: Run) -> None:
    Image.open(pictures / "rocket.png").resize((67, 48)).save(pictures / "rocket.png")
    network, out = saved(tmp_path / "net.pt"), tmp_path / "large ones"
    argv = ["--vae_path", tiny_sd1, "--weights", network, "--image_pattern", pictures / "*", "--output_dir", out]
    done = script("tools/latent_upscaler.py", *argv, "--batch_size", 2, "--vae_batch_size", 2, "--debug")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.png"))) == 8
    assert Image.open(out / "rocket.png").size == Image.open(out / "rocket_interpolated.png").size == (128, 96)
    vae = load_vae(str(tiny_sd1), torch.float32)
    pixels = np.array(Image.open(pictures / "rocket.png"))[:, 1:65]
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1).latent_dist.mean
        wanted = vae.decode(Repeat()(latents)).sample[0].clamp(-1, 1).permute(1, 2, 0).numpy()
    found = np.array(Image.open(out / "rocket.png")) / 127.5 - 1
    assert np.abs(found - wanted).max() < 0.02


def test_it_refuses_in_one_sentence(
    pictures: Path, tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(1)}, weights)
    pattern, out = str(pictures / "*.png"), str(tmp_path / "out")
    base = ["--output_dir", out, "--vae_path", str(tiny_sd1)]
    for more, words in (
        (["--image_pattern", pattern], "weights is missing"),
        (["--image_pattern", pattern, "--weights", str(weights)], "no TorchScript file"),
        (["--image_pattern", pattern, "--weights", str(saved(tmp_path / "same.pt", 1))], "not [1, 4, 16, 16]"),
        (["--image_pattern", pattern, "--weights", "none.pt"], "There is no file"),
        (["--image_pattern", str(pictures / "*.gif"), "--weights", str(weights)], "No picture fits"),
    ):
        assert latent_upscaler.main([*base, *more]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert not Path(out).exists()
