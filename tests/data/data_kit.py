"""Small folders of real photos for the tests of the data part."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import skimage.data
from PIL import Image

from sd_scripts.data.config import Blueprint, build_blueprint
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.validation import ValidationOptions

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


@lru_cache
def _photo(name: str) -> Image.Image:
    photo = Image.fromarray(getattr(skimage.data, name)())
    photo.thumbnail((256, 256))
    return photo


def save_photo(path: Path, size: tuple[int, int], number: int = 0, **options: Any) -> None:
    """Write one of the sample photos in this size; numbers beyond the photos give other parts of them."""
    photo = _photo(PHOTOS[number % len(PHOTOS)])
    shift = 5 * (number // len(PHOTOS))
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.crop((shift, shift, photo.width, photo.height)).resize(size).save(path, **options)


DATASET_KEYS = set(DatasetOptions.__annotations__)
CAPTION_KEYS = set(CaptionOptions.__annotations__)


HOW = (
    "control_images",
    "requires_control",
    "allow_plugins",
    "command",
    "bucket_step_multiple",
    "cache_text",
)


def blueprint(**values: Any) -> Blueprint:
    """A blueprint from options by name; small sizes and .txt captions unless said otherwise."""
    how = {key: values.pop(key) for key in HOW if key in values}
    values = {"resolution": "64", "min_bucket_reso": 32, "caption_extension": ".txt"} | values
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    dataset = DatasetOptions(**{k: v for k, v in values.items() if k in DATASET_KEYS})
    captions = CaptionOptions(**{k: v for k, v in values.items() if k in CAPTION_KEYS})
    rest = {k: v for k, v in values.items() if k not in DATASET_KEYS | CAPTION_KEYS}
    return build_blueprint(dataset, captions, ValidationOptions(**rest), **how)
