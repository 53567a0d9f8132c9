"""What a path or hub id holds: a diffusers folder or an original single file, and the parts of the model in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from sd_scripts.models import folder as folders
from sd_scripts.models import original
from sd_scripts.models.original import KEY
from sd_scripts.models.part import Origin, Part
from sd_scripts.models.weights import Opener, open_weights
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import folder_version, identify, single_file_version

NAMES = {
    "sd1": "a Stable Diffusion 1.x model",
    "sd2": "a Stable Diffusion 2.x model",
    "sdxl": "a Stable Diffusion XL model",
    "sdxl_refiner": "the refiner of Stable Diffusion XL, which cannot be trained",
    "sd3": "a Stable Diffusion 3 model",
    "flux": "a Flux model",
}
SD_ALONE, SDXL_ALONE, ANY = ("sd1", "sd2"), ("sdxl",), ("sd1", "sd2", "sdxl")
_WANTED = {
    SD_ALONE: "a Stable Diffusion 1.x or 2.x model",
    SDXL_ALONE: "a Stable Diffusion XL base model",
    ANY: "a Stable Diffusion 1.x, 2.x or XL base model",
}
_WAYS_OUT = {
    SD_ALONE: "Train it with sdxl_train_network.py, sdxl_train.py, sdxl_train_textual_inversion.py or "
    "sdxl_train_control_net_lllite.py, or choose a 1.x or 2.x model.",
    SDXL_ALONE: "Train it with train_network.py, train_db.py, fine_tune.py, train_textual_inversion.py or "
    "train_controlnet.py, or choose an XL base model.",
}


@dataclass
class Source:
    """A model whose kind is known and whose weights are not read yet.

    Attributes:
        version: "sd1", "sd2" or "sdxl".
        prediction: "epsilon", "v_prediction", or "" where nothing says it.
        single_file: an original single file, not a diffusers folder.
        unet: reads the U-Net as a type (None: as it is stored); its names and shapes are those of diffusers' modules.
        text: the same for a text encoder; the first argument is its number, from 1.
        vae: the same for the VAE.
        origin: what else the source holds.
    """

    version: str
    prediction: str
    single_file: bool
    unet: Callable[[torch.dtype | None], Part]
    text: Callable[[int, torch.dtype | None], Part]
    vae: Callable[[torch.dtype | None], Part]
    origin: Origin = field(default_factory=Origin)


def find_source(source: str, versions: tuple[str, ...], want_vae: bool, opener: Opener | None = None) -> Source:
    """What a path or hub id holds.

    Args:
        source: a file, a diffusers folder, or a hub id.
        versions: the kinds of models that are wanted.
        want_vae: refuse what has no VAE.
        opener: reads weight files; None reads each tensor into memory of its own.

    Raises:
        UserError: nothing there, something else there, or damaged weights.
    """
    path = Path(source)
    if path.is_dir():
        return _folder_source(path, versions, want_vae, opener)
    if path.is_file():
        return _file_source(path, versions, want_vae, opener or open_weights)
    if folders.is_hub_id(source):
        # A model of the wrong kind is refused by its configs, before gigabytes are fetched.
        _folder_version(folders.hub_configs(source), source, versions)
        return _folder_source(folders.hub_folder(source), versions, want_vae, opener)
    raise UserError(
        f"There is no model at {source}.",
        key=KEY,
        hint="Give a .safetensors or .ckpt file, a diffusers folder, or a hub id such as owner/model.",
    )


def _folder_version(folder: Path, source: str, versions: tuple[str, ...]) -> str:
    """What a diffusers folder holds, from its configs. Raises UserError when it is none of `versions`."""
    index = folders.read_config(folder, "model_index.json")
    text = folders.read_config(folder / "text_encoder") if (folder / "text_encoder").is_dir() else {}
    unet = folders.read_config(folder / "unet") if (folder / "unet").is_dir() else {}
    version = folder_version(index, unet, text)
    _refuse_others(version, versions, source)
    return version


def _folder_source(folder: Path, versions: tuple[str, ...], want_vae: bool, opener: Opener | None) -> Source:
    version = _folder_version(folder, str(folder), versions)
    parts = ["unet", "text_encoder", *(["text_encoder_2"] if version == "sdxl" else [])]
    for part in [*parts, *(["vae"] if want_vae else [])]:
        folders.read_config(folder / part)
    return Source(
        version=version,
        prediction=folders.prediction_type(folder),
        single_file=False,
        unet=partial(folders.unet_part, folder, opener=opener),
        text=partial(folders.text_part, folder, opener=opener),
        vae=partial(folders.vae_part, folder, opener=opener),
    )


def _file_source(path: Path, versions: tuple[str, ...], want_vae: bool, opener: Opener) -> Source:
    facts = identify(str(path))
    if facts.kind in ("lora", "vae", "embedding", "text_encoder"):
        raise UserError(f"{path} is {facts.detail}, not a base model.", key=KEY, hint="Choose the model it belongs to.")
    weights, name = opener(path, KEY), str(path)
    version = single_file_version(weights.shapes)
    _refuse_others(version, versions, name)
    original.check_complete(weights, version, name, vae=want_vae)
    return Source(
        version=version,
        prediction=facts.prediction or ("v_prediction" if "v_pred" in weights.shapes else ""),
        single_file=True,
        unet=partial(original.unet_part, weights, version, name),
        text=partial(original.text_part, weights, version, name),
        vae=partial(original.vae_part, weights, name, version),
        origin=Origin(original.ballast(weights, version), *weights.counts),
    )


def _refuse_others(version: str, versions: tuple[str, ...], source: str) -> None:
    if version in versions:
        return
    if version in NAMES:
        way_out = _WAYS_OUT[versions] if version in ANY else f"Choose {_WANTED[versions]}."
        raise UserError(f"{source} is {NAMES[version]}.", key=KEY, hint=way_out)
    raise UserError(f"{source} is not a Stable Diffusion model.", key=KEY, hint=f"Choose {_WANTED[versions]}.")
