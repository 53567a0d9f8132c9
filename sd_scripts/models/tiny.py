"""Stable Diffusion in small: the true topology, tokenizer and module names with narrow layers and random weights.

For the demo and the tests. Block types, layer counts and the VAE's factor of 8 are those of the full-size model, so
that every name, file layout and code path is the real one; only the widths are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_text_encoder, make_unet, make_vae
from sd_scripts.models.saving import save_diffusers_folder, save_single_file
from sd_scripts.models.tokenizer import build_tokenizer

UNET_WIDTHS = [32, 64, 96, 96]
VAE_WIDTHS = [32, 64, 96, 96]
TEXT_WIDTH = {"sd1": 64, "sd2": 96}


def tiny_config(version: str) -> dict[str, dict[str, Any]]:
    """The configurations of the small model, in the spelling of the shipped full-size ones.

    Args:
        version: "sd1" or "sd2".
    """
    config = model_config(version)
    width = TEXT_WIDTH[version]
    config["unet"] |= {"block_out_channels": UNET_WIDTHS, "cross_attention_dim": width, "sample_size": 16}
    if version == "sd2":
        # As in the full-size model a head is 64 wide, so the narrow levels have one head.
        config["unet"]["attention_head_dim"] = [max(1, channels // 64) for channels in UNET_WIDTHS]
    config["vae"] |= {"block_out_channels": VAE_WIDTHS, "sample_size": 128}
    config["text_encoder"] |= {
        "hidden_size": width,
        "intermediate_size": width * 4,
        "num_attention_heads": width // 64,
        "projection_dim": width,
    }
    return config


def build_tiny(version: str, seed: int = 0, prediction_type: str = "epsilon") -> LoadedModel:
    """A small model of `version` ("sd1", "sd2") with weights that depend on `seed` only.

    The global random state is left as it was.
    """
    config = tiny_config(version)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = make_unet(config["unet"])
        text_encoder = make_text_encoder(config["text_encoder"])
        vae = make_vae(config["vae"])
    return LoadedModel(
        unet=unet.eval(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        tokenizer=build_tokenizer(version),
        version=version,
        prediction_type=prediction_type,
        source=f"tiny {version}",
    )


def save_tiny(folder: Path, version: str, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write the small model as a diffusers folder and return the folder."""

    return save_diffusers_folder(build_tiny(version, seed, prediction_type), Path(folder))


def save_tiny_single_file(path: Path, version: str, seed: int = 0) -> Path:
    """Write the small model as one file in the original layout and return the path."""

    return save_single_file(build_tiny(version, seed), Path(path))
