"""A whole model in one of the two layouts: which weights a file or a folder holds, under which names, and the configs.

Weights are tensors of any kind, those of modules or lazy ones; nothing is copied that both layouts store alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sd_scripts.models import convert, keymap
from sd_scripts.models.assets import class_defaults, model_config
from sd_scripts.models.vocabulary import tokenizer_files
from sd_scripts.schema.unetnames import UNET_SHAPES

StateDict = Mapping[str, Tensor]

TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_TEXT_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def is_projected(version: str, number: int) -> bool:
    """Whether a text encoder, counted from 1, ends in a projection."""
    return version == "sdxl" and number == 2


def original_weights(version: str, unet: StateDict, vae: StateDict, texts: Sequence[StateDict]) -> dict[str, Tensor]:
    """The weights of a whole model by their original single-file names, from those of its modules."""
    if version == "sd2":
        unet = convert.fit_projections(dict(unet), linear=True)
    parts = {
        keymap.UNET_PREFIX: convert.unet_to_original(unet, UNET_SHAPES[version]),
        keymap.VAE_PREFIX: convert.vae_to_original(vae),
    }
    for number, (prefix, weights) in enumerate(zip(keymap.TEXT_PREFIXES[version], texts, strict=True), start=1):
        if prefix.endswith(".transformer."):
            parts[prefix] = convert.text_to_clip(weights)
        elif is_projected(version, number):
            parts[prefix] = convert.projected_to_openclip(weights)
        else:
            parts[prefix] = convert.text_to_openclip(weights)
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def with_ballast(weights: dict[str, Tensor], ballast: StateDict | None, version: str) -> dict[str, Tensor]:
    """An original file's weights with what its source held beside them.

    Args:
        weights: by original names.
        ballast: of the source; None for a model from a folder, which gets what the published files have.
        version: of the model.
    """
    if ballast is None:
        ballast = convert.text_ballast(weights, version)
    return {name: value for name, value in ballast.items() if name not in weights} | weights


def folder_weights(
    version: str, unet: StateDict, vae: StateDict, texts: Sequence[StateDict], *, linear: bool
) -> dict[str, dict[str, Tensor]]:
    """The weights of a diffusers folder: part -> name -> weight.

    The text encoders' get their `text_model.` level back, which newest transformers leaves out.

    Args:
        version: of the model.
        unet: by its module's names, as the others.
        vae: likewise.
        texts: likewise.
        linear: the U-Net's projections are convolutions there and become matrices, as in the published folders.
    """
    parts = {"unet": convert.fit_projections(dict(unet), linear=True) if linear else dict(unet), "vae": dict(vae)}
    for number, (name, weights) in enumerate(zip(TEXT_FOLDERS, texts, strict=False), start=1):
        rename = convert.projected_from_clip if is_projected(version, number) else convert.text_to_clip
        parts[name] = rename(weights)
    return parts


def weight_file(part: str, *, safetensors: bool) -> str:
    """The name of a part's weight file in a diffusers folder."""
    if part in TEXT_FOLDERS:
        return "model.safetensors" if safetensors else "pytorch_model.bin"
    return f"diffusion_pytorch_model.{'safetensors' if safetensors else 'bin'}"


# ---- configurations


def complete_config(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's configuration with everything that its class knows, as the libraries write it."""
    plain = config.get("text_config", {}) if part in TEXT_FOLDERS else {}
    known = class_defaults("text_encoder" if part in TEXT_FOLDERS else part)
    full = {key: plain.get(key, config.get(key, value)) for key, value in known.items()}
    if part in TEXT_FOLDERS:
        return full | {"model_type": known["model_type"], "architectures": [_TEXT_CLASSES[part]]}
    return {"_class_name": CLASSES[part]} | full


def scheduler_config(version: str, prediction_type: str) -> dict[str, Any]:
    """The noise schedule's config file for a folder of `version` with the given prediction type."""
    return model_config(version)["scheduler"] | {"prediction_type": prediction_type}


def write_configs(
    folder: Path, version: str, prediction: str, configs: Mapping[str, Mapping[str, Any]], *, linear: bool
) -> None:
    """Write a folder's configs without weights and tokenizers.

    Args:
        folder: where; made if missing.
        version: of the model.
        prediction: what its U-Net predicts, "epsilon" or "v_prediction".
        configs: complete configuration of each part.
        linear: as in `folder_weights`.
    """
    write_json(folder / "model_index.json", pipeline_index(version))
    for part, config in configs.items():
        said = {"use_linear_projection": True} if linear and part == "unet" else {}
        write_json(folder / part / "config.json", {**config, **said})
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(version, prediction))


def write_tokenizers(folder: Path, version: str) -> None:
    """Write the tokenizers of a folder, as newest transformers saves them and as older readers want them."""
    for number in (1, 2) if version == "sdxl" else (1,):
        inner = folder / ("tokenizer" if number == 1 else f"tokenizer_{number}")
        inner.mkdir(parents=True, exist_ok=True)
        for name, text in tokenizer_files(version, number).items():
            (inner / name).write_text(text, encoding="utf-8")


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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
