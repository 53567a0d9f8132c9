"""Pictures from files to pixels: reading, turning, resizing, cropping, augmenting.

Arrays are uint8 RGB [height, width, 3]; masks float32 [height, width] in 0..1; sizes are (width, height).
"""

import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from sd_scripts.schema.buckets import Size, centre_crop, cover
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.imagesize import ImageHeader, read_header

INTERPOLATIONS = {
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "linear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


@dataclass
class Picture:
    """Pixels of one picture and, where asked for, its opacity as a mask."""

    pixels: np.ndarray
    mask: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def crop(self, left: int, top: int, size: Size) -> "Picture":
        """The part of the given size whose corner is at left, top."""
        area = np.s_[top : top + size[1], left : left + size[0]]
        return Picture(self.pixels[area], None if self.mask is None else self.mask[area])

    def resize(self, size: Size, interpolation: str | None = None) -> "Picture":
        """Resized copy; the mask is always averaged. Unchanged where the size is right already."""
        if size == self.size:
            return self
        mask = None if self.mask is None else resize(self.mask, size, "area")
        return Picture(resize(self.pixels, size, interpolation), mask)

    def flip(self) -> "Picture":
        """Mirrored left to right."""
        return Picture(self.pixels[:, ::-1], None if self.mask is None else self.mask[:, ::-1])


def picture_header(path: Path | str) -> ImageHeader:
    """Size and orientation of a picture without decoding it. Raises DataError naming a file that is no picture."""
    try:
        header = read_header(path)
        return header if header is not None else _header_by_library(path)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def picture_size(path: Path | str) -> Size:
    """Width and height of a picture as shown, after EXIF rotation. Raises DataError naming the file."""
    return picture_header(path).size


def _header_by_library(path: Path | str) -> ImageHeader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            width, height = image.size
    return ImageHeader(width, height, orientation if orientation in _TRANSPOSE else 1)


def _unreadable(path: Path | str, error: BaseException) -> DataError:
    return DataError(
        f"cannot read the picture {path}: {error}",
        key="train_data_dir",
        hint="Replace the file or take it out of the folder.",
    )


def load_picture(path: Path | str, *, with_mask: bool = False) -> Picture:
    """Pixels of a picture file, turned upright; transparency is dropped, or kept as a mask if `with_mask`.

    16-bit and float grey values are scaled to 8 bit instead of being cut off. Raises DataError naming the file.
    """
    try:
        orientation = picture_header(path).orientation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                image = _eight_bit(opened)
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        if not with_mask:
            return Picture(np.array(image.convert("RGB"), dtype=np.uint8))
        rgba = np.array(image.convert("RGBA"), dtype=np.uint8)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    return Picture(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].astype(np.float32) / 255)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The same picture in a mode that Pillow converts to RGB without clipping; palettes keep their transparency."""
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and values.max(initial=0) > 255):
        values = values / 257
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8), "L")


def load_mask(path: Path | str) -> np.ndarray:
    """Mask from a picture: its red channel in 0..1, float32 [height, width]."""
    return load_picture(path).pixels[..., 0].astype(np.float32) / 255


def resize(pixels: np.ndarray, size: Size, interpolation: str | None = None) -> np.ndarray:
    """Resized array. Without a chosen interpolation: averaging to shrink, Lanczos to enlarge either side."""
    if interpolation is None:
        shrinks = pixels.shape[1] >= size[0] and pixels.shape[0] >= size[1]
        interpolation = "area" if shrinks else "lanczos"
    if interpolation not in INTERPOLATIONS:
        raise DataError(
            f"resize_interpolation is {interpolation!r}; allowed: {', '.join(INTERPOLATIONS)}",
            key="resize_interpolation",
        )
    return np.asarray(cv2.resize(pixels, size, interpolation=INTERPOLATIONS[interpolation]))


def fit_bucket(
    picture: Picture, bucket: Size, resized: Size, interpolation: str | None = None, rng: random.Random | None = None
) -> Picture:
    """Resize and cut a picture to its bucket: the middle, or a place drawn from `rng` (random crop)."""
    picture = picture.resize(resized, interpolation)
    left, top = centre_crop(picture.size, bucket) if rng is None else random_corner(picture.size, bucket, rng)
    return picture.crop(left, top, bucket)


def random_corner(size: Size, bucket: Size, rng: random.Random) -> Size:
    """Left and top of a random crop; draws for the width if there is room, then for the height."""
    left = rng.randint(0, size[0] - bucket[0]) if size[0] > bucket[0] else 0
    top = rng.randint(0, size[1] - bucket[1]) if size[1] > bucket[1] else 0
    return left, top


@dataclass(frozen=True)
class Face:
    """A face inside a picture: centre and size in pixels."""

    x: int
    y: int
    width: int
    height: int


def face_in_name(path: Path | str) -> Face | None:
    """Face given by a file name `<name>_<cx>_<cy>_<w>_<h>`, else None."""
    parts = Path(path).stem.split("_")
    if len(parts) < 5:
        return None
    try:
        x, y, width, height = (int(part) for part in parts[-4:])
    except ValueError:
        return None
    return Face(x, y, width, height) if x > 0 and width > 0 and height > 0 else None


def crop_at_face(
    picture: Picture,
    face: Face,
    target: Size,
    scale_range: tuple[float, float],
    rng: random.Random,
    random_crop: bool = False,
    interpolation: str | None = None,
) -> Picture:
    """Cut a picture around a face.

    scale_range: how many times as large as the face the crop may be, least and most. The scale is drawn if the range
    leaves room, then the place: near the face, or anywhere with the face likely in the middle if `random_crop`.
    """
    if picture.size == target:
        return picture
    width, height = picture.size
    if width < target[0] or height < target[1]:
        picture = picture.resize(cover(picture.size, target), interpolation)
        face = Face(*(int(v * picture.size[0] / width + 0.5) for v in (face.x, face.y, face.width, face.height)))
        width, height = picture.size
    face_side, side = max(face.width, face.height), min(target)
    at_least = max(target[0] / width, target[1] / height)
    low = min(1.0, max(at_least, side / (face_side * scale_range[1])))
    high = min(1.0, max(at_least, side / (face_side * scale_range[0])))
    scale = low if low >= high else rng.uniform(low, high)
    picture = picture.resize((int(width * scale + 0.5), int(height * scale + 0.5)), interpolation)
    jitter = face_side if scale_range[0] != scale_range[1] and face_side > side // 10 and face_side >= 40 else 0
    corner = []
    for length, wanted, centre in zip(picture.size[::-1], target[::-1], (face.y, face.x)):  # height is drawn first
        centre = int(centre * scale + 0.5)
        start = centre - wanted // 2
        if random_crop:
            reach = max(length - centre, centre)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif jitter:
            start += rng.randint(-jitter // 20, jitter // 20)
        corner.append(max(0, min(start, length - wanted)))
    return picture.crop(corner[1], corner[0], target)


def shift_colours(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """In one of three pictures: turn the hue by up to 16 degrees, or change the gamma by up to 5 percent."""
    if rng.random() > 0.33:
        return pixels
    if rng.random() > 0.5:
        hsv = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + round(rng.uniform(-8, 8))) % 180  # OpenCV's hue counts in steps of two degrees
        return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
    table = (np.arange(256) / 255) ** rng.uniform(0.95, 1.05) * 255
    return np.asarray(np.clip(table + 0.5, 0, 255).astype(np.uint8)[pixels])


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in -1..1."""
    scaled = torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).div_(127.5).sub_(1.0)
    return scaled.permute(2, 0, 1).contiguous()
