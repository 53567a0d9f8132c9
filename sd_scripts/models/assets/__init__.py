"""Data that ships with the trainers: CLIP's byte-pair merges and the configurations of the known base models."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from typing import Any


def model_config(version: str) -> dict[str, dict[str, Any]]:
    """Configurations of the parts ("unet", "vae", "text_encoder", "scheduler", "tokenizer") of a full-size base model.

    Args:
        version: "sd1", "sd2", or "sdxl", which also has "text_encoder_2" and "tokenizer_2".

    Returns:
        A fresh dictionary in the spelling of diffusers' and transformers' config files; the caller may change it.
    """
    text = resources.files(__name__).joinpath("configs", f"{version}.json").read_text(encoding="utf-8")
    return json.loads(text)


def clip_merges() -> list[tuple[str, str]]:
    """The 48,894 byte-pair merges of CLIP's tokenizer, most frequent first (from OpenCLIP, MIT; see clip/LICENSE)."""
    packed = resources.files(__name__).joinpath("clip", "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        merges.append((left, right))
    return merges


def class_defaults(part: str) -> dict[str, Any]:
    """What the configuration of a "unet", "vae" or "text_encoder" says where nothing else is given, complete."""
    text = resources.files(__name__).joinpath("configs", "classes.json").read_text(encoding="utf-8")
    return json.loads(text)[part]


def tokenizer_pipeline() -> dict[str, Any]:
    """What a `tokenizer.json` of CLIP's says, but for vocabulary and merges."""
    return json.loads(resources.files(__name__).joinpath("clip", "tokenizer.json").read_text(encoding="utf-8"))
