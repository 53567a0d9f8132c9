"""A full-size model folder that takes no room: real headers, and holes in the place of the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sd_scripts.models.build import make_projected_text_encoder, make_text_encoder, make_unet, make_vae

_MAKE = {
    "unet": (make_unet, "diffusion_pytorch_model"),
    "vae": (make_vae, "diffusion_pytorch_model"),
    "text_encoder": (make_text_encoder, "model"),
    "text_encoder_2": (make_projected_text_encoder, "model"),
}


def hollow_folder(folder: Path, config: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a diffusers folder of `config` (by part) whose float32 weights are holes in sparse files."""
    classes = {}
    for part, (make, stem) in _MAKE.items():
        if part not in config:
            continue
        with torch.device("meta"):
            module = make(config[part])
        inner = folder / part
        inner.mkdir(parents=True)
        (inner / "config.json").write_text(json.dumps(dict(config[part])), encoding="utf-8")
        _hollow_file(inner / f"{stem}.safetensors", module)
        classes[part] = ["diffusers", type(module).__name__]
    xl = "text_encoder_2" in config
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", **classes}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _hollow_file(path: Path, module: nn.Module) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, value in module.state_dict().items():
        size = value.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
