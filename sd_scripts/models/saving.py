"""Whole models to disk: a diffusers folder, or one file in the original layout. Written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sd_scripts.models import convert, keymap
from sd_scripts.models.build import LoadedModel, scheduler_config
from sd_scripts.models.tokenizer import build_tokenizers
from sd_scripts.schema.unetnames import UNET_SHAPES
from sd_scripts.tensorfile import flush_folder, kinds_in_file, write_safetensors, write_torch

TEXT_FOLDERS = ("text_encoder", "text_encoder_2")


def original_state_dict(model: LoadedModel) -> dict[str, Tensor]:
    """The whole model by its original single-file names.

    Tensors are the model's own where both layouts store them alike: on its device, in its types. What else the source
    had (`model.origin.ballast`) is there too; for a model from a folder, what the published files have.
    """
    weights = _weights(model)
    ballast = model.origin.ballast
    if ballast is None:
        ballast = convert.text_ballast(weights, model.version)
    return {name: value for name, value in ballast.items() if name not in weights} | weights


def _weights(model: LoadedModel) -> dict[str, Tensor]:
    unet = model.unet.state_dict()
    if model.version == "sd2":
        unet = convert.fit_projections(unet, linear=True)
    parts = {
        keymap.UNET_PREFIX: convert.unet_to_original(unet, UNET_SHAPES[model.version]),
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


def save_single_file(
    model: LoadedModel,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    epoch: int = 0,
    step: int = 0,
) -> Path:
    """Write the whole model as one file in the original layout, complete or not at all.

    Args:
        model: of any version.
        path: `.ckpt` writes a pickle of `state_dict`, `epoch` and `global_step`; other suffixes safetensors.
        dtype: of the weights in the file; None keeps each as it is.
        metadata: text entries; a .ckpt has no place for them.
        epoch: finished epochs of this training; what the source counted is added.
        step: finished steps, likewise.

    Returns:
        `path`.

    Raises:
        OSError: the disk refuses.
    """
    tensors = original_state_dict(model)
    # The schedule's numbers would be spoiled by a cast; programs that find them use them.
    unchanged = set(model.origin.ballast or ())
    if path.suffix != ".ckpt":
        write_safetensors(path, tensors, metadata, dtype, unchanged)
        return path
    kinds = kinds_in_file(tensors, dtype, unchanged)
    content = {name: value.detach().to("cpu", kinds[name]).contiguous() for name, value in tensors.items()}
    counts = {"epoch": model.origin.epoch + epoch, "global_step": model.origin.step + step}
    write_torch(path, {"state_dict": content, **counts})
    return path


def save_diffusers_folder(
    model: LoadedModel, folder: Path, dtype: torch.dtype | None = None, *, safetensors: bool = True
) -> Path:
    """Write the whole model as a diffusers pipeline folder that old and new versions of the libraries read alike.

    The text encoder's weights get their `text_model.` level back, which newest transformers leaves out.

    Args:
        model: of any version.
        folder: an existing folder there is replaced only after the new one is complete.
        dtype: of the weights in the files; None keeps each as it is.
        safetensors: write .safetensors files; else PyTorch's .bin.

    Returns:
        `folder`.

    Raises:
        OSError: the disk refuses.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write_configs(model, aside)
        for name, weights in _folder_weights(model).items():
            text = name in TEXT_FOLDERS
            if safetensors:
                stem = "model" if text else "diffusion_pytorch_model"
                write_safetensors(aside / name / f"{stem}.safetensors", weights, {"format": "pt"}, dtype)
            else:
                kinds = kinds_in_file(weights, dtype)
                content = {key: value.detach().to("cpu", kinds[key]).contiguous() for key, value in weights.items()}
                write_torch(aside / name / f"{'pytorch_model' if text else 'diffusion_pytorch_model'}.bin", content)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.replace(folder, old)
            os.replace(aside, folder)
            shutil.rmtree(old)
        else:
            os.replace(aside, folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _linear_in_folder(model: LoadedModel) -> bool:
    """Whether the U-Net's projections run as convolutions here, and as matrices in the published folders."""
    return model.version == "sd2" and model.origin.ballast is not None


def _folder_weights(model: LoadedModel) -> dict[str, Mapping[str, Tensor]]:
    unet = model.unet.state_dict()
    parts: dict[str, Mapping[str, Tensor]] = {
        "unet": convert.fit_projections(unet, linear=True) if _linear_in_folder(model) else unet,
        "vae": model.vae.state_dict(),
    }
    for name, encoder in zip(TEXT_FOLDERS, model.text_encoders, strict=False):
        projected = isinstance(encoder, CLIPTextModelWithProjection)
        rename = convert.projected_from_clip if projected else convert.text_to_clip
        parts[name] = rename(encoder.state_dict())
    return parts


def write_configs(model: LoadedModel, folder: Path) -> None:
    """Write the folder's configs and tokenizer without any weights (also what `from_single_file(config=...)` wants)."""
    _write_json(folder / "model_index.json", pipeline_index(model.version))
    unet = _config_of(model.unet, "UNet2DConditionModel")
    linear = {"use_linear_projection": True} if _linear_in_folder(model) else {}
    _write_json(folder / "unet" / "config.json", unet | linear)
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
