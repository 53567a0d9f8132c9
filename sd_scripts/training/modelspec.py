"""The `modelspec.*` notes (Stability's model specification 1.0.1) that a trained file carries beside `ss_*`."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata as package_metadata
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.saving import SavingOptions

SPECIFICATION = "1.0.1"
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"
ADAPTERS = {"lora": "lora", "textual_inversion": "textual-inversion", "lllite": "control-net-lllite"}
UNTITLED = {"lora": "LoRA", "textual_inversion": "TextualInversion", None: "Checkpoint"}
_LARGEST_THUMBNAIL = 1 << 20
_OPTIONAL = (
    "author",
    "description",
    "license",
    "tags",
    "usage_hint",
    "merged_from",
    "trigger_phrase",
    "preprocessor",
    "is_negative_embedding",
)


def implementation_version() -> str:
    """Name and version of the program that trained, for `modelspec.implementation_version`."""
    try:
        return f"kohya-gui/{package_metadata.version('kohya-gui')}"
    except package_metadata.PackageNotFoundError:
        return "kohya-gui"


def architecture(kind: Mapping[str, bool]) -> str:
    """The base architecture's name."""
    if kind.get("is_sdxl"):
        return "stable-diffusion-xl-v1-base"
    if kind.get("v2"):
        return "stable-diffusion-v2-768-v" if kind.get("v_param") else "stable-diffusion-v2-512"
    return "stable-diffusion-v1"


def default_resolution(kind: Mapping[str, bool]) -> tuple[int, int]:
    """Width and height that the base model was made for."""
    side = 1024 if kind.get("is_sdxl") else 768 if kind.get("v2") and kind.get("v_param") else 512
    return side, side


def modelspec(
    saving: SavingOptions,
    kind: Mapping[str, bool],
    *,
    timestamp: float,
    resolution: Sequence[int] | str | None = None,
    clip_skip: int | None = None,
    min_timestep: int | None = None,
    max_timestep: int | None = None,
    adapter: str | None = "lora",
) -> dict[str, str]:
    """All `modelspec.*` entries for one file.

    Args:
        saving: gives the `metadata_*` texts and the output name.
        kind: the family's facts (v2, v_param, is_sdxl).
        timestamp: when the file is written, in unix seconds.
        resolution: trained size (w, h) or `512` or `512,768`; None for the base model's own.
        clip_skip, min_timestep, max_timestep: as trained with, None when not given.
        adapter: `lora`, `textual_inversion`, `lllite`, or None for a whole model.

    Raises:
        UserError: for a thumbnail that cannot be used.
    """
    suffix = f"/{ADAPTERS[adapter]}" if adapter else ""
    diffusers_layout = adapter == "lora" and not kind.get("is_sdxl")
    title = saving.metadata_title or saving.output_name or f"{UNTITLED.get(adapter, 'LoRA')}@{timestamp}"
    width, height = _size(resolution) or default_resolution(kind)
    entries = {
        "sai_model_spec": SPECIFICATION,
        "architecture": architecture(kind) + suffix,
        "implementation": "diffusers" if diffusers_layout else GENERATIVE_MODELS,
        "implementation_version": implementation_version(),
        "title": title,
        "resolution": f"{width}x{height}",
        "date": datetime.fromtimestamp(int(timestamp)).isoformat(),
        "prediction_type": "v" if kind.get("v_param") else "epsilon",
    }
    for name in _OPTIONAL:
        value = getattr(saving, f"metadata_{name}")
        if value is not None:
            entries[name] = str(value)
    if saving.metadata_thumbnail:
        entries["thumbnail"] = thumbnail(saving.metadata_thumbnail)
    if min_timestep is not None or max_timestep is not None:
        low = 0 if min_timestep is None else min_timestep
        high = 1000 if max_timestep is None else max_timestep
        entries["timestep_range"] = f"{low},{high}"
    if clip_skip is not None:
        entries["encoder_layer"] = str(clip_skip)
    return {f"modelspec.{name}": value for name, value in entries.items()}


def thumbnail(source: str) -> str:
    """A data URL of a picture file; a data URL is handed on. Raises UserError for anything else."""
    if source.startswith("data:"):
        return source
    path = Path(source)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not path.is_file() or not kind.startswith("image/"):
        raise UserError(f"metadata_thumbnail '{source}' is no picture file.", "metadata_thumbnail")
    if path.stat().st_size > _LARGEST_THUMBNAIL:
        raise UserError(
            f"metadata_thumbnail '{source}' is larger than 1 MB.", "metadata_thumbnail", hint="Make it smaller."
        )
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _size(resolution: Sequence[int] | str | None) -> tuple[int, int] | None:
    """(w, h) from a pair, `512`, or `512,768`."""
    if resolution is None or resolution == "":
        return None
    parts = resolution.split(",") if isinstance(resolution, str) else list(resolution)
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[-1])
