"""Whole models to disk: a diffusers folder, or one file in the original layout. Written aside, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sd_scripts.models import layout
from sd_scripts.models.build import LoadedModel
from sd_scripts.models.layout import TEXT_FOLDERS, write_json
from sd_scripts.models.replacing import replaced_folder
from sd_scripts.models.tokenizer import build_tokenizers
from sd_scripts.tensorfile import kinds_in_file, write_safetensors, write_torch


def original_state_dict(model: LoadedModel) -> dict[str, Tensor]:
    """The whole model by its original single-file names.

    Tensors are the model's own where both layouts store them alike: on its device, in its types. What else the source
    had (`model.origin.ballast`) is there too; for a model from a folder, what the published files have.
    """
    return layout.with_ballast(_weights(model), model.origin.ballast, model.version)


def _weights(model: LoadedModel) -> dict[str, Tensor]:
    texts = [encoder.state_dict() for encoder in model.text_encoders]
    return layout.original_weights(model.version, model.unet.state_dict(), model.vae.state_dict(), texts)


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
    with replaced_folder(folder) as aside:
        write_configs(model, aside)
        for name, weights in _folder_weights(model).items():
            path = aside / name / layout.weight_file(name, safetensors=safetensors)
            if safetensors:
                write_safetensors(path, weights, {"format": "pt"}, dtype)
            else:
                kinds = kinds_in_file(weights, dtype)
                content = {key: value.detach().to("cpu", kinds[key]).contiguous() for key, value in weights.items()}
                write_torch(path, content)
    return folder


def _linear_in_folder(model: LoadedModel) -> bool:
    """Whether the U-Net's projections run as convolutions here, and as matrices in the published folders."""
    return model.version == "sd2" and model.origin.ballast is not None


def _folder_weights(model: LoadedModel) -> dict[str, dict[str, Tensor]]:
    texts = [encoder.state_dict() for encoder in model.text_encoders]
    unet, vae = model.unet.state_dict(), model.vae.state_dict()
    return layout.folder_weights(model.version, unet, vae, texts, linear=_linear_in_folder(model))


def write_configs(model: LoadedModel, folder: Path) -> None:
    """Write the folder's configs and tokenizer without any weights (also what `from_single_file(config=...)` wants)."""
    configs = {part: _config_of(module, part) for part, module in (("unet", model.unet), ("vae", model.vae))}
    for name, encoder in zip(TEXT_FOLDERS, model.text_encoders, strict=False):
        configs[name] = encoder.config.to_diff_dict() | {"architectures": [type(encoder).__name__]}
    layout.write_configs(folder, model.version, model.prediction_type, configs, linear=_linear_in_folder(model))
    tokenizers = model.tokenizers or build_tokenizers(model.version)
    for name, tokenizer in zip(("tokenizer", "tokenizer_2"), tokenizers, strict=False):
        _write_tokenizer(tokenizer, folder / name)


def _config_of(module: nn.Module, part: str) -> dict[str, Any]:
    known = {key: value for key, value in dict(module.config).items() if key[0] != "_"}
    return {"_class_name": layout.CLASSES[part]} | known


def _write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The tokenizer as newest transformers saves it, and as vocab.json + merges.txt for every older reader."""
    tokenizer.save_pretrained(str(folder))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", vocabulary["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
