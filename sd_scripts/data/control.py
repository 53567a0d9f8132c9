"""Control and mask pictures beside the pictures they belong to: the same shape, so that they can be cut alike."""

import numpy as np

from sd_scripts.data.records import FoundImages
from sd_scripts.schema.buckets import Size, same_shape
from sd_scripts.schema.errors import DataError


def check_shapes(images: FoundImages, sizes: np.ndarray) -> None:
    """Compare the pictures of a subset with their control or mask pictures.

    Args:
        images: with `conditioning`.
        sizes: int32 [n, 2], width and height of the conditioning pictures.

    Raises:
        DataError: naming those of another shape.
    """
    different = [
        number
        for number in np.flatnonzero((images.sizes != sizes).any(axis=1)).tolist()
        if not same_shape(_pair(images.sizes[number]), _pair(sizes[number]))
    ]
    if not different or images.conditioning is None:
        return
    first = "; ".join(
        f"{images.conditioning[number]} is {_text(sizes[number])}, {images[number].path} {_text(images.sizes[number])}"
        for number in different[:5]
    )
    count = "1 mask or control picture has"
    if len(different) > 1:
        count = f"{len(different)} mask or control pictures have"
    raise DataError(f"{count} another shape than the picture: {first}.", key="conditioning_data_dir")


def _pair(row: np.ndarray) -> Size:
    return int(row[0]), int(row[1])


def _text(row: np.ndarray) -> str:
    return f"{row[0]}x{row[1]}"
