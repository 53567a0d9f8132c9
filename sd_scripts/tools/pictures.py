"""Pictures of the scripts: read upright, written complete or not at all, worked on by several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from sd_scripts.data.image import load_picture
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker
from sd_scripts.tools.files import replacing

BEST_JPEG = 100
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF"}
_T = TypeVar("_T")


def read(path: Path) -> np.ndarray:
    """uint8 [height, width, 3], or with 4 channels where the picture is transparent anywhere. Raises DataError."""
    picture = load_picture(path, with_mask=True)
    if picture.mask is None or (picture.mask == 1).all():
        return picture.pixels
    return np.dstack([picture.pixels, (picture.mask * 255 + 0.5).astype(np.uint8)])


def save(pixels: np.ndarray, path: Path, **options: Any) -> None:
    """Write uint8 [height, width] or [height, width, 3 or 4]; the ending says the format. JPEG and BMP drop alpha.

    Raises:
        UserError: an ending that is no picture's, or the file cannot be written.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} ends in no picture format.", hint=f"Known are {', '.join(_FORMATS)}.")
    if kind in ("JPEG", "BMP") and pixels.ndim == 3:
        pixels = pixels[..., :3]
    if kind == "JPEG":
        options = {"quality": BEST_JPEG, "subsampling": 0} | options
    with replacing(path) as aside:
        Image.fromarray(np.ascontiguousarray(pixels)).save(aside, format=kind, **options)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Pixels with 3 channels: what is transparent shows white behind it."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.asarray((pixels[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8))


def for_each(items: Sequence[_T], work: Callable[[_T], None], what: str) -> None:
    """Work on every item in threads; the first error stops all."""
    ticker = Ticker(what, len(items))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for number, _ in enumerate(pool.map(work, items)):
                ticker.at(number + 1)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
