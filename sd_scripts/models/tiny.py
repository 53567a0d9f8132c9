"""Stable Diffusion in small: the true topology, tokenizer and module names with narrow layers and random weights.

For the demo and the tests. Block types, layer counts and the VAE's factor of 8 are those of the full-size model, so
that every name, file layout and code path is the real one; only the widths are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_text_encoders, make_unet, make_vae
from sd_scripts.models.saving import save_diffusers_folder, save_single_file
from sd_scripts.models.tokenizer import build_tokenizers

# Levels whose widths differ in the full-size model differ here, so that the same residual blocks have a shortcut.
UNET_WIDTHS = {"sd1": [32, 64, 96, 96], "sd2": [32, 64, 96, 96], "sdxl": [32, 64, 32]}
VAE_WIDTHS = [32, 64, 96, 96]
TEXT_WIDTHS = {"sd1": [64], "sd2": [96], "sdxl": [32, 64]}
HEAD_WIDTH = 64  # as in the full-size models, so that narrow levels have one head
SIZE_WIDTH = 6 * 256  # SDXL's six sizes, embedded
# What a shallow model keeps of rows of equal layers: of SDXL's 1, 2 and 10 transformer blocks and the 32 layers of its
# second text encoder, and of the others' two residual blocks a level. (Versions 1 and 2 are told by their text layers.)
SHALLOW: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {"unet": {"transformer_layers_per_block": [1, 1, 2]}, "text_encoder_2": {"num_hidden_layers": 3}},
    "sd1": {"unet": {"layers_per_block": 1}},
    "sd2": {"unet": {"layers_per_block": 1}},
}


def tiny_config(version: str, shallow: bool = False) -> dict[str, dict[str, Any]]:
    """The configurations of the small model, in the spelling of the shipped full-size ones.

    Args:
        version: "sd1", "sd2" or "sdxl".
        shallow: of rows of equal layers only the first few, for what their number has no part in. Such a model can be
            a folder only: of a single file the layers are known beforehand.
    """
    config = model_config(version)
    widths = TEXT_WIDTHS[version]
    unet = {"block_out_channels": UNET_WIDTHS[version], "cross_attention_dim": sum(widths), "sample_size": 16}
    config["unet"] |= unet
    if version != "sd1":
        config["unet"]["attention_head_dim"] = [max(1, width // HEAD_WIDTH) for width in UNET_WIDTHS[version]]
    if version == "sdxl":
        config["unet"]["projection_class_embeddings_input_dim"] = widths[1] + SIZE_WIDTH
    config["vae"] |= {"block_out_channels": VAE_WIDTHS, "sample_size": 128}
    for name, fewer in SHALLOW[version].items() if shallow else ():
        config[name] |= fewer
    for name, width in zip(("text_encoder", "text_encoder_2"), widths, strict=False):
        config[name] |= {
            "hidden_size": width,
            "intermediate_size": width * 4,
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "projection_dim": width,
        }
    return config


def build_tiny(version: str, seed: int = 0, prediction_type: str = "epsilon", shallow: bool = False) -> LoadedModel:
    """A small model of `version` ("sd1", "sd2", "sdxl") with weights that depend on `seed` (and `shallow`) only.

    The global random state is left as it was.
    """
    config = tiny_config(version, shallow)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = make_unet(config["unet"])
        text_encoders = make_text_encoders(config)
        vae = make_vae(config["vae"])
    return LoadedModel(
        unet=unet.eval(),
        text_encoders=[encoder.eval() for encoder in text_encoders],
        vae=vae.eval(),
        tokenizers=build_tokenizers(version),
        version=version,
        prediction_type=prediction_type,
        source=f"tiny {version}",
    )


def save_tiny(
    folder: Path, version: str, seed: int = 0, prediction_type: str = "epsilon", shallow: bool = False
) -> Path:
    """Write the small model as a diffusers folder and return the folder."""

    return save_diffusers_folder(build_tiny(version, seed, prediction_type, shallow), Path(folder))


def save_tiny_single_file(path: Path, version: str, seed: int = 0) -> Path:
    """Write the small model as one file in the original layout and return the path."""

    return save_single_file(build_tiny(version, seed), Path(path))
