"""From `--pretrained_model_name_or_path` to modules: folder, hub id, or original single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL

from sd_scripts.models import folder as folders
from sd_scripts.models import original
from sd_scripts.models.build import (
    LoadedModel,
    Origin,
    Part,
    filled,
    make_projected_text_encoder,
    make_text_encoder,
    make_unet,
    make_vae,
)
from sd_scripts.models.original import KEY
from sd_scripts.models.tokenizer import load_tokenizers
from sd_scripts.models.weights import open_weights
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import folder_version, identify, single_file_version

if TYPE_CHECKING:
    from sd_scripts.schema.model import ModelOptions

Progress = Callable[[str], None]
_NAMES = {
    "sd1": "a Stable Diffusion 1.x model",
    "sd2": "a Stable Diffusion 2.x model",
    "sdxl": "a Stable Diffusion XL model",
    "sdxl_refiner": "the refiner of Stable Diffusion XL, which cannot be trained",
    "sd3": "a Stable Diffusion 3 model",
    "flux": "a Flux model",
}
_SD, _SDXL = ("sd1", "sd2"), ("sdxl",)
_WANTED = {_SD: "a Stable Diffusion 1.x or 2.x model", _SDXL: "a Stable Diffusion XL base model"}
_WAYS_OUT = {
    _SD: "Train it with sdxl_train_network.py, sdxl_train.py, sdxl_train_textual_inversion.py or "
    "sdxl_train_control_net_lllite.py, or choose a 1.x or 2.x model.",
    _SDXL: "Train it with train_network.py, train_db.py, fine_tune.py, train_textual_inversion.py or "
    "train_controlnet.py, or choose an XL base model.",
}


@dataclass
class _Source:
    """A model whose kind is known and whose weights are not read yet."""

    version: str
    prediction: str
    single_file: bool
    unet: Callable[[torch.dtype | None], Part]
    text: Callable[[int, torch.dtype | None], Part]
    vae: Callable[[torch.dtype | None], Part]
    origin: Origin = field(default_factory=Origin)


def load_sd(
    options: ModelOptions,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Stable Diffusion 1.x or 2.x model.

    Local paths are read without ever touching the network.

    Args:
        options: path, `--v2`, `--v_parameterization`, external VAE, tokenizer cache.
        dtype: of the weights, None for as they are stored; the VAE stays float32 with `--no_half_vae`.
        device: where the modules end up.
        progress: called with what is being read.

    Raises:
        UserError: nothing there, something else there, damaged weights, or a contradiction with `--v2`.
    """
    return _load(options, _SD, dtype, device, progress)


def load_sdxl(
    options: ModelOptions,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Stable Diffusion XL base model, with both text encoders. Arguments and errors as `load_sd`."""
    return _load(options, _SDXL, dtype, device, progress)


def _load(
    options: ModelOptions,
    versions: tuple[str, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
    progress: Progress | None,
) -> LoadedModel:
    say = progress or (lambda text: None)
    source = str(options.pretrained_model_name_or_path or "")
    if not source:
        raise UserError("No base model is given.", key=KEY, hint="Choose a model file, a model folder or a hub id.")
    say(f"reading {source}")
    found = _find(source, versions, want_vae=not options.vae)
    notes = _check_version(found.version, bool(options.v2), source)
    prediction = _prediction(found.prediction, bool(options.v_parameterization), notes)
    vae_dtype = torch.float32 if options.no_half_vae else dtype
    # One part after the other, each in its final type from the start: at no time is there a second copy.
    say("U-Net")
    unet = filled(make_unet, found.unet(dtype), "U-Net", source).to(device)
    texts = []
    for number in range(1, 3 if found.version == "sdxl" else 2):
        what = f"text encoder {number}" if found.version == "sdxl" else "text encoder"
        say(what)
        make = make_projected_text_encoder if number == 2 else make_text_encoder
        texts.append(filled(make, found.text(number, dtype), what, source).to(device))
    say("VAE")
    if options.vae:
        vae = load_vae(str(options.vae), vae_dtype, found.version)
    else:
        vae = filled(make_vae, found.vae(vae_dtype), "VAE", source)
    return LoadedModel(
        unet=unet,
        text_encoders=texts,
        vae=vae.to(device),
        tokenizers=load_tokenizers(found.version, options.tokenizer_cache_dir),
        version=found.version,
        prediction_type=prediction,
        from_single_file=found.single_file,
        source=source,
        notes=notes,
        origin=found.origin,
    )


def load_vae(source: str, dtype: torch.dtype | None, version: str = "sd1") -> AutoencoderKL:
    """An external VAE: a VAE folder, a pipeline folder, a single file of either layout, or a hub id.

    Args:
        source: path or hub id.
        dtype: of the weights.
        version: of the model that it is for; a single file's configuration follows from it.

    Raises:
        UserError: there is none, or it is not Stable Diffusion's kind.
    """
    path = Path(source)
    if path.is_dir():
        part = folders.vae_part(path, dtype, "vae")
    elif path.is_file() or not folders.is_hub_id(source):
        part = original.vae_part(open_weights(path, "vae"), source, version, dtype, "vae")
    else:
        part = folders.vae_part(folders.hub_folder(source, ("vae",), "vae"), dtype, "vae")
    return filled(make_vae, part, "VAE", source)


def _find(source: str, versions: tuple[str, ...], want_vae: bool) -> _Source:
    path = Path(source)
    if path.is_dir():
        return _folder_source(path, versions, want_vae)
    if path.is_file():
        return _file_source(path, versions, want_vae)
    if folders.is_hub_id(source):
        # A model of the wrong kind is refused by its configs, before gigabytes are fetched.
        _folder_version(folders.hub_configs(source), source, versions)
        return _folder_source(folders.hub_folder(source), versions, want_vae)
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


def _folder_source(folder: Path, versions: tuple[str, ...], want_vae: bool) -> _Source:
    version = _folder_version(folder, str(folder), versions)
    parts = ["unet", "text_encoder", *(["text_encoder_2"] if version == "sdxl" else [])]
    for part in [*parts, *(["vae"] if want_vae else [])]:
        folders.read_config(folder / part)
    return _Source(
        version=version,
        prediction=folders.prediction_type(folder),
        single_file=False,
        unet=partial(folders.unet_part, folder),
        text=partial(folders.text_part, folder),
        vae=partial(folders.vae_part, folder),
    )


def _file_source(path: Path, versions: tuple[str, ...], want_vae: bool) -> _Source:
    facts = identify(str(path))
    if facts.kind in ("lora", "vae", "embedding", "text_encoder"):
        raise UserError(f"{path} is {facts.detail}, not a base model.", key=KEY, hint="Choose the model it belongs to.")
    weights, name = open_weights(path), str(path)
    version = single_file_version(weights.shapes)
    _refuse_others(version, versions, name)
    original.check_complete(weights, version, name, vae=want_vae)
    return _Source(
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
    if version in _NAMES:
        way_out = _WAYS_OUT[versions] if version in (*_SD, *_SDXL) else f"Choose {_WANTED[versions]}."
        raise UserError(f"{source} is {_NAMES[version]}.", key=KEY, hint=way_out)
    raise UserError(f"{source} is not a Stable Diffusion model.", key=KEY, hint=f"Choose {_WANTED[versions]}.")


def _check_version(version: str, v2: bool, source: str) -> list[str]:
    if v2 and version == "sd1":
        raise UserError(
            f"v2 is set, but {source} is {_NAMES[version]}.", key="v2", hint="Switch v2 off, or choose a 2.x model."
        )
    if version == "sd2" and not v2:
        return [f"{source} is {_NAMES[version]}; it is trained as such although v2 is not set."]
    return []


def _prediction(said: str, v_parameterization: bool, notes: list[str]) -> str:
    """The prediction type: the option decides; a file that says v-prediction is believed without it."""
    if said == "v_prediction" and not v_parameterization:
        notes.append("The model says that it predicts v; it is trained so although v_parameterization is not set.")
        return "v_prediction"
    if v_parameterization and said == "epsilon":
        notes.append(
            "v_parameterization is set, but the model says that it predicts noise; it is trained to predict v."
        )
    return "v_prediction" if v_parameterization else "epsilon"
