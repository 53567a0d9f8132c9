"""From `--pretrained_model_name_or_path` to modules: folder, hub id, or original single file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL

from sd_scripts.models import folder as folders
from sd_scripts.models import original
from sd_scripts.models.build import (
    LoadedModel,
    filled,
    make_projected_text_encoder,
    make_text_encoder,
    make_unet,
    make_vae,
)
from sd_scripts.models.original import KEY
from sd_scripts.models.source import NAMES, SD_ALONE, SDXL_ALONE, find_source
from sd_scripts.models.tokenizer import load_tokenizers
from sd_scripts.models.weights import open_weights
from sd_scripts.schema.errors import UserError

if TYPE_CHECKING:
    from sd_scripts.schema.model import ModelOptions

Progress = Callable[[str], None]


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
    return _load(options, SD_ALONE, dtype, device, progress)


def load_sdxl(
    options: ModelOptions,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Stable Diffusion XL base model, with both text encoders. Arguments and errors as `load_sd`."""
    return _load(options, SDXL_ALONE, dtype, device, progress)


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
    found = find_source(source, versions, want_vae=not options.vae)
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


def _check_version(version: str, v2: bool, source: str) -> list[str]:
    if v2 and version == "sd1":
        raise UserError(
            f"v2 is set, but {source} is {NAMES[version]}.", key="v2", hint="Switch v2 off, or choose a 2.x model."
        )
    if version == "sd2" and not v2:
        return [f"{source} is {NAMES[version]}; it is trained as such although v2 is not set."]
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
