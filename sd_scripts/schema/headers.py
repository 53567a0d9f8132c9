"""What a model file or folder is, told from its header alone: no weights are read, no library is needed.

The page shows it under the field, and the trainer refuses by it what it cannot train.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100 * 1024 * 1024
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
VERSION_NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "Stable Diffusion XL refiner",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "unknown": "unknown model",
}
_REFUSED = {"sdxl_refiner": "it is the refiner of Stable Diffusion XL, which cannot be trained"}
_LORA_MARKS = (
    "lora_down",
    "lora_up",
    "lora_A",
    "lora_B",
    "hada_w1_a",
    "lokr_w1",
    "oft_blocks",
    "dora_scale",
    "lora.down",
)


class HeaderError(Exception):
    """The file is no readable safetensors file; the text says what it is instead."""


@dataclass(frozen=True)
class Header:
    """A safetensors file's header.

    Attributes:
        metadata: the file's own text entries.
        shapes: tensor name -> shape.
        dtypes: tensor name -> type as written there, such as "F16".
        size: bytes of the whole file.
        places: tensor name -> (first byte, number of bytes) in the file.
    """

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    size: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """What a path holds.

    Attributes:
        version: "sd1", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux" or "unknown".
        kind: "checkpoint", "diffusers", "vae", "unet", "text_encoder", "lora", "embedding", "pickle",
            "missing" or "other".
        prediction: "epsilon", "v_prediction", or "" where the files do not say.
        detail: one line for people.
        problem: why it cannot be used at all; empty when nothing is wrong with the file itself.
    """

    version: str = "unknown"
    kind: str = "other"
    prediction: str = ""
    detail: str = ""
    problem: str = ""


def read_safetensors_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        HeaderError: the file is empty, torn, too short for its tensors, a web page, an LFS pointer, or no safetensors.
        OSError: it cannot be opened.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise HeaderError("the file is empty" if not start else "the file is torn (too short)")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES or length + 8 > size:
            raise HeaderError(_impostor(start + handle.read(512)) or "the file is torn, or no safetensors file")
        raw = handle.read(length)
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise HeaderError(_impostor(start + raw[:512]) or "its header is damaged") from error
    return _checked(table, size, length)


def _checked(table: Any, size: int, length: int) -> Header:
    if not isinstance(table, dict):
        raise HeaderError("its header is damaged")
    metadata = table.pop("__metadata__", None) or {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        for name, entry in table.items():
            shapes[name] = tuple(int(number) for number in entry["shape"])
            dtypes[name] = str(entry["dtype"])
            first, last = (int(number) for number in entry["data_offsets"])
            if not 0 <= first <= last:
                raise ValueError(f"{name} has no place")
            places[name] = (first + length + 8, last - first)
            end = max(end, last)
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise HeaderError("its header is damaged") from error
    if end + length + 8 > size:
        raise HeaderError(f"the file is torn: {size:,} bytes of {end + length + 8:,} are there")
    return Header(metadata, shapes, dtypes, size, places)


def _impostor(start: bytes) -> str:
    """What a file that should be weights is instead, or "" when that cannot be told."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights themselves (run git lfs pull, or download the file)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, not a model (the download went wrong, perhaps for lack of a login)"
    if text.startswith((b'{"error', b'{"message', b"access to model", b"entry not found", b"invalid")):
        return "it is an error message of a website, not a model"
    if start.startswith(b"PK\x03\x04"):
        return "it is a zip or .ckpt file with the wrong suffix"
    if start.startswith(b"GGUF"):
        return "it is a GGUF file, which cannot be trained"
    return ""


def identify(path: str) -> ModelFacts:
    """What lies at `path`: a single file, a diffusers folder, or nothing. Never raises for what it finds there."""
    target = Path(path)
    try:
        if target.is_dir():
            return _folder(target)
        if not target.is_file():
            return ModelFacts(kind="missing", problem="there is no such file or folder")
        if target.suffix.lower() in _PICKLES:
            return _pickle(target)
        return _single(read_safetensors_header(target))
    except HeaderError as error:
        return ModelFacts(problem=str(error))
    except OSError as error:
        return ModelFacts(problem=f"it cannot be opened ({error.strerror or error})")


def _pickle(path: Path) -> ModelFacts:
    with open(path, "rb") as handle:
        start = handle.read(520)
    problem = "" if zipfile.is_zipfile(path) else _impostor(start)
    if not problem and not start:
        problem = "the file is empty"
    elif not problem and not zipfile.is_zipfile(path) and not start.startswith(b"\x80"):
        problem = "the file is torn, or no PyTorch file"
    detail = "" if problem else "PyTorch file; what model it is shows when it is loaded"
    return ModelFacts(kind="pickle", detail=detail, problem=problem)


def single_file_version(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The model family of an original single file, from tensor names and shapes."""
    if any(key.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for key in shapes):
        return "flux"
    if any("joint_blocks." in key for key in shapes):
        return "sd3"
    if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
        return "sdxl_refiner"
    if any(key.startswith("conditioner.embedders.") for key in shapes):
        return "sdxl"
    width = next((shapes[key][1] for key in shapes if key.endswith("attn2.to_k.weight") and len(shapes[key]) == 2), 0)
    known = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}.get(width)
    if known:
        return known
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        return "sd2"
    return "sd1" if any(key.startswith("cond_stage_model.transformer.") for key in shapes) else "unknown"


def _prediction(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    named = metadata.get("modelspec.prediction_type", "")
    if named in ("epsilon", "v"):
        return "v_prediction" if named == "v" else "epsilon"
    # Empty marker tensors of newer single files.
    return "v_prediction" if "v_pred" in shapes else ""


def _single(header: Header) -> ModelFacts:
    shapes = header.shapes
    if any(mark in key for key in shapes for mark in _LORA_MARKS):
        base = header.metadata.get("ss_base_model_version", "")
        return ModelFacts(kind="lora", detail="a LoRA" + (f" for {base}" if base else ""))
    version = single_file_version(shapes)
    prediction = _prediction(header.metadata, shapes)
    if any(key.startswith("model.diffusion_model.") for key in shapes):
        whole = any(key.startswith(("cond_stage_model.", "conditioner.")) for key in shapes)
        missing = "" if whole else ", without text encoder"
        detail = VERSION_NAMES[version] + " file" + missing
        return ModelFacts(version, "checkpoint" if whole else "unet", prediction, detail, _REFUSED.get(version, ""))
    if version in ("flux", "sd3"):
        return ModelFacts(version, "unet", prediction, VERSION_NAMES[version] + " file")
    if "decoder.conv_in.weight" in shapes or "first_stage_model.decoder.conv_in.weight" in shapes:
        return ModelFacts("unknown", "vae", "", "a VAE file")
    if any(key.startswith("down_blocks.") for key in shapes):
        return ModelFacts(version, "unet", prediction, VERSION_NAMES[version] + " U-Net of a diffusers folder")
    if len(shapes) <= 4 and any(key in shapes for key in ("emb_params", "clip_l", "clip_g")):
        return ModelFacts(kind="embedding", detail="a textual inversion embedding")
    if any("encoder.layers." in key or "resblocks." in key for key in shapes):
        return ModelFacts(kind="text_encoder", detail="a text encoder")
    return ModelFacts(detail=f"{len(shapes)} tensors of an unknown kind")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def folder_version(index: Mapping[str, Any], unet: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """The model family of a diffusers folder, from its model_index.json and the configs of U-Net and text encoder."""
    pipeline = str(index.get("_class_name", ""))
    if "Flux" in pipeline:
        return "flux"
    if "StableDiffusion3" in pipeline:
        return "sd3"
    if "XL" in pipeline or "text_encoder_2" in index:
        return "sdxl_refiner" if unet.get("cross_attention_dim") == 1280 else "sdxl"
    known = {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(unet.get("cross_attention_dim", 0))
    if known:
        return known
    layers = text.get("num_hidden_layers")
    return {12: "sd1", 23: "sd2", 24: "sd2"}.get(layers, "unknown") if isinstance(layers, int) else "unknown"


def _folder(folder: Path) -> ModelFacts:
    index = _json(folder / "model_index.json")
    if not index:
        if (folder / "config.json").is_file() and _json(folder / "config.json").get("_class_name") == "AutoencoderKL":
            return ModelFacts(kind="vae", detail="a VAE folder")
        return ModelFacts(problem="the folder holds no model_index.json, so it is no diffusers model")
    version = folder_version(index, _json(folder / "unet/config.json"), _json(folder / "text_encoder/config.json"))
    prediction = str(_json(folder / "scheduler/scheduler_config.json").get("prediction_type", "epsilon"))
    known = version in ("sd1", "sd2", "sdxl")
    needed = ("unet", "vae", "text_encoder", *(("text_encoder_2",) if version == "sdxl" else ())) if known else ()
    gone = [part for part in needed if not (folder / part / "config.json").is_file()]
    problem = f"the folder is incomplete: {', '.join(gone)} missing" if gone else _REFUSED.get(version, "")
    said = ", v-prediction" if prediction == "v_prediction" else ""
    return ModelFacts(version, "diffusers", prediction, f"{VERSION_NAMES[version]} folder{said}", problem)
