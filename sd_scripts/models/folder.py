"""The parts of a diffusers folder, and hub ids as folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sd_scripts.models import convert
from sd_scripts.models.original import KEY, check_channels
from sd_scripts.models.part import Part
from sd_scripts.models.weights import Opener, open_part
from sd_scripts.schema.errors import UserError

UNET_STEMS = ("diffusion_pytorch_model",)
TEXT_STEMS = ("model", "pytorch_model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def read_config(folder: Path, name: str = "config.json", key: str | None = KEY) -> dict[str, Any]:
    """A JSON config of a model folder. Raises UserError when it is missing or damaged."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The model folder is incomplete: {folder / name} is missing.", key=key) from error
    except ValueError as error:
        raise UserError(f"{folder / name} is damaged: {error}.", key=key) from error
    return value


def unet_part(folder: Path, dtype: torch.dtype | None = None, opener: Opener | None = None) -> Part:
    """The U-Net of a diffusers folder, read as `dtype`. Raises UserError."""
    config = read_config(folder / "unet")
    check_channels(config.get("in_channels", 4), str(folder))
    return Part(config, open_part(folder / "unet", UNET_STEMS, opener=opener).below("", dtype))


def text_part(folder: Path, number: int = 1, dtype: torch.dtype | None = None, opener: Opener | None = None) -> Part:
    """A text encoder of a diffusers folder, whichever transformers version wrote it; `number` counts from 1.

    Raises:
        UserError: it is missing or damaged.
    """
    inner = folder / ("text_encoder" if number == 1 else f"text_encoder_{number}")
    config = read_config(inner)
    # A config of a whole CLIP model keeps the text half one level down.
    config = {**config, **config.get("text_config", {})}
    config = {name: value for name, value in config.items() if name not in ("text_config", "vision_config")}
    weights = open_part(inner, TEXT_STEMS, opener=opener)
    plain = weights.take([name for name in weights.shapes if not name.startswith(("vision_model.", "visual_"))], dtype)
    if number == 1:
        return Part(config, convert.text_from_clip(plain))
    # SDXL's published config carries CLIP's old wrong mark; with it the pooled output is looked for at the highest id,
    # which is not the end mark once tokens have been added.
    config |= {"bos_token_id": 49406, "eos_token_id": 49407}
    return Part(config, convert.projected_from_clip(plain))


def vae_folder(folder: Path) -> Path:
    """Where a folder has its VAE: under `vae`, or it is the VAE itself."""
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def vae_part(
    folder: Path, dtype: torch.dtype | None = None, key: str | None = KEY, opener: Opener | None = None
) -> Part:
    """The VAE of a VAE folder, or of a pipeline folder that has one under `vae`, read as `dtype`. Raises UserError."""
    inner = vae_folder(folder)
    config = read_config(inner, key=key)
    return Part(config, convert.vae_from_old_diffusers(open_part(inner, UNET_STEMS, key, opener).below("", dtype)))


def prediction_type(folder: Path) -> str:
    """What the folder's scheduler says the U-Net predicts: "epsilon" (also when it says nothing) or "v_prediction"."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return "epsilon"
    return str(read_config(path.parent, path.name).get("prediction_type", "epsilon"))


def is_hub_id(name: str) -> bool:
    """Whether `name` looks like `owner/model` and not like a path."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".safetensors", ".ckpt", ".pt", ".bin"))


def hub_configs(name: str, key: str | None = KEY) -> Path:
    """The local copy of a hub model's configs alone: enough to tell what it is. Errors as `hub_folder`."""
    from huggingface_hub import snapshot_download

    with hub_errors(name, key):
        return Path(snapshot_download(name, allow_patterns=_configs(_PARTS)))


def hub_folder(name: str, parts: tuple[str, ...] = _PARTS, key: str | None = KEY) -> Path:
    """The local copy of a hub model's configs and weights, downloaded when it is not in the cache yet.

    Half-precision variants and files for other programs stay on the hub where full safetensors files exist.

    Raises:
        UserError: the machine is offline and the model not cached, or the hub does not have it or refuses it.
    """
    from huggingface_hub import snapshot_download

    stems = [f"{part}/*.safetensors" for part in parts] + ["diffusion_pytorch_model.safetensors"]
    variants = ["*.fp16.*", "*.bf16.*", "*non_ema*"]
    with hub_errors(name, key):
        wanted = [*_configs(parts), *stems]
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=variants))
        if not _has_weights(folder, ".safetensors"):
            older = [pattern.replace("safetensors", "bin") for pattern in stems]
            snapshot_download(name, allow_patterns=older, ignore_patterns=variants)
        if not _has_weights(folder, ".safetensors") and not _has_weights(folder, ".bin"):
            snapshot_download(name, allow_patterns=[*stems])
    return folder


def _configs(parts: tuple[str, ...]) -> list[str]:
    return ["model_index.json", "config.json", "scheduler/*.json", *(f"{part}/*.json" for part in parts)]


@contextmanager
def hub_errors(name: str, key: str | None) -> Iterator[None]:
    """What the hub's library raises, as one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"There is no file or folder {name}, and as a hub id it cannot be fetched: the hub is not reachable.",
            key=key,
            hint="Check the path, or give the model as a local file while offline.",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"There is no file or folder {name}, and the hub does not give it out: {reason}",
            key=key,
            hint="Check the name; some models want you to accept their terms and to log in first.",
        ) from error


def _has_weights(folder: Path, suffix: str) -> bool:
    return any(folder.glob(f"*{suffix}")) or any(folder.glob(f"*/*{suffix}"))
