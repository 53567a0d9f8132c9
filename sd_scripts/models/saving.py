"""Whole models to disk: a diffusers folder, or one file in the original layout. Written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sd_scripts.models import convert, keymap
from sd_scripts.models.build import LoadedModel, scheduler_config
from sd_scripts.models.tokenizer import build_tokenizers

TEXT_FOLDERS = ("text_encoder", "text_encoder_2")


def original_state_dict(
    model: LoadedModel, dtype: torch.dtype | None = None, *, contiguous: bool = True
) -> dict[str, Tensor]:
    """The whole model by its original single-file names, on the CPU.

    Args:
        model: of any version.
        dtype: of the floating point weights; None keeps each as it is.
        contiguous: lay every tensor out as a file needs it.
    """
    weights = _weights(model)
    ballast = model.origin.ballast
    if ballast is None:
        ballast = convert.text_ballast(weights, model.version)
    weights = {key: _for_file(value, dtype, contiguous) for key, value in weights.items()}
    return weights | {key: value for key, value in ballast.items() if key not in weights}


def _weights(model: LoadedModel) -> dict[str, Tensor]:
    """The weights of all modules by original names, sharing their memory where both layouts store them alike."""
    unet = model.unet.state_dict()
    if model.version == "sd2":
        unet = convert.fit_projections(unet, linear=True)
    parts = {
        keymap.UNET_PREFIX: convert.unet_to_original(unet, keymap.UNET_SHAPES[model.version]),
        keymap.VAE_PREFIX: convert.vae_to_original(model.vae.state_dict()),
    }
    for prefix, encoder in zip(keymap.TEXT_PREFIXES[model.version], model.text_encoders, strict=True):
        if prefix.endswith(".transformer."):
            parts[prefix] = convert.text_to_clip(encoder.state_dict())
        elif isinstance(encoder, CLIPTextModelWithProjection):
            parts[prefix] = convert.projected_to_openclip(encoder.state_dict())
        else:
            parts[prefix] = convert.text_to_openclip(encoder.state_dict())
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def _for_file(value: Tensor, dtype: torch.dtype | None, contiguous: bool = True) -> Tensor:
    value = value.detach().to("cpu")
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value.contiguous() if contiguous else value


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, flush it to the disk, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(dict(tensors), str(aside), metadata=dict(metadata) if metadata else None)
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        # safetensors creates its files readable by the owner only.
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save_single_file(
    model: LoadedModel,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the whole model as one safetensors file in the original layout.

    Returns:
        `path`.
    """
    write_tensors(original_state_dict(model, dtype), path, metadata)
    return path


def save_diffusers_folder(model: LoadedModel, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Write the whole model as a diffusers pipeline folder that old and new versions of the libraries read alike.

    The text encoder's weights get their `text_model.` level back, which newest transformers leaves out.

    Returns:
        `folder`. An existing folder there is replaced only after the new one is complete.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write_configs(model, aside)
        parts: dict[str, tuple[str, Mapping[str, Tensor]]] = {
            "unet": ("diffusion_pytorch_model", model.unet.state_dict()),
            "vae": ("diffusion_pytorch_model", model.vae.state_dict()),
        }
        for name, encoder in zip(TEXT_FOLDERS, model.text_encoders, strict=False):
            projected = isinstance(encoder, CLIPTextModelWithProjection)
            rename = convert.projected_from_clip if projected else convert.text_to_clip
            parts[name] = ("model", rename(encoder.state_dict()))
        for name, (stem, weights) in parts.items():
            tensors = {key: _for_file(value, dtype) for key, value in weights.items()}
            write_tensors(tensors, aside / name / f"{stem}.safetensors", {"format": "pt"})
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.replace(folder, old)
            os.replace(aside, folder)
            shutil.rmtree(old)
        else:
            os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_configs(model: LoadedModel, folder: Path) -> None:
    """Write the folder's configs and tokenizer without any weights (also what `from_single_file(config=...)` wants)."""
    _write_json(folder / "model_index.json", pipeline_index(model.version))
    _write_json(folder / "unet" / "config.json", _config_of(model.unet, "UNet2DConditionModel"))
    _write_json(folder / "vae" / "config.json", _config_of(model.vae, "AutoencoderKL"))
    for name, encoder in zip(TEXT_FOLDERS, model.text_encoders, strict=False):
        _write_json(
            folder / name / "config.json", encoder.config.to_diff_dict() | {"architectures": [type(encoder).__name__]}
        )
    scheduler = scheduler_config(model.version, model.prediction_type)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    tokenizers = model.tokenizers or build_tokenizers(model.version)
    for name, tokenizer in zip(("tokenizer", "tokenizer_2"), tokenizers, strict=False):
        _write_tokenizer(tokenizer, folder / name)


def pipeline_index(version: str) -> dict[str, Any]:
    """What `model_index.json` says of a folder of `version`: which class of which library reads which part."""
    shared: dict[str, Any] = {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if version != "sdxl":
        return shared | {
            "_class_name": "StableDiffusionPipeline",
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
    return shared | {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }


def _config_of(module: nn.Module, name: str) -> dict[str, Any]:
    return {"_class_name": name} | {key: value for key, value in dict(module.config).items() if key[0] != "_"}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The tokenizer as newest transformers saves it, and as vocab.json + merges.txt for every older reader."""
    tokenizer.save_pretrained(str(folder))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write_json(folder / "vocab.json", vocabulary["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
