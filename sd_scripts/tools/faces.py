"""Finding faces with the cascades that come with OpenCV, and cutting pictures around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sd_scripts.schema.errors import UserError

_SIDE = 640  # pictures are searched at this size at most: a face for a training picture is large in it
_SMALLEST = 24  # pixels of the searched picture
_TURNS = (0, -30, 30, -60, 60)  # degrees; a cascade finds faces that lean by some 15
_OVERLAP = 0.3
_SURE = 7  # neighbouring hits that make a face
_EYES_BELOW = 0.6  # eyes are in the upper part of a face


@dataclass(frozen=True)
class Found:
    """A face: its centre and size in pixels of the upright picture, and by how many degrees it leans clockwise."""

    x: float
    y: float
    width: float
    height: float
    angle: float = 0.0


@dataclass(frozen=True)
class Cascades:
    """The detectors for faces seen from the front, in their usual and in a stricter variant, and for eyes."""

    faces: tuple[cv2.CascadeClassifier, ...]
    eyes: cv2.CascadeClassifier


def load_cascades() -> Cascades:
    """The detectors. Raises UserError where this OpenCV comes without them."""
    folder = Path(str(cv2.__file__)).parent / "data"
    if not hasattr(cv2, "CascadeClassifier") or not folder.is_dir():
        raise UserError(
            f"OpenCV {cv2.__version__} comes without face detection.",
            hint="Install the version in requirements.txt: pip install opencv-python-headless==4.14.0.94",
        )
    names = ("haarcascade_frontalface_alt2.xml", "haarcascade_frontalface_default.xml", "haarcascade_eye.xml")
    alt, default, eyes = (cv2.CascadeClassifier(str(folder / name)) for name in names)
    return Cascades((alt, default), eyes)


def find_faces(pixels: np.ndarray, cascades: Cascades) -> list[Found]:
    """Faces in uint8 RGB pixels [height, width, 3], the largest first; leaning ones are found by turning."""
    grey = cv2.equalizeHist(cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY))
    height, width = grey.shape
    scale = min(1.0, _SIDE / max(height, width))
    small = cv2.resize(
        grey, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    doubtful: list[Found] = []
    for turn in _TURNS:
        sure: list[Found] = []
        for box, has_eyes in _in_turned(small, turn, cascades):
            face = Found(box.x / scale, box.y / scale, box.width / scale, box.height / scale, box.angle)
            kept = sure if has_eyes else doubtful
            # In a turned picture much looks a little like a face; two eyes make sure.
            if (has_eyes or not turn) and not any(_same(face, other) for other in kept):
                kept.append(face)
        if sure:
            # A picture is leant as a whole: further turns would find the same faces less exactly.
            if not turn:
                sure += [face for face in doubtful if not any(_same(face, other) for other in sure)]
            return _largest_first(sure)
    return _largest_first(doubtful)


def _largest_first(faces: list[Found]) -> list[Found]:
    return sorted(faces, key=lambda face: -max(face.width, face.height))


def _in_turned(grey: np.ndarray, turn: float, cascades: Cascades) -> Iterator[tuple[Found, bool]]:
    """Faces of a grey picture that is turned by `turn` degrees, in its own coordinates, and whether they have eyes."""
    height, width = grey.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1.0)
    turned = grey if not turn else cv2.warpAffine(grey, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    back = cv2.invertAffineTransform(matrix)
    for cascade in cascades.faces:
        boxes = cascade.detectMultiScale(turned, 1.1, _SURE, minSize=(_SMALLEST, _SMALLEST))
        for left, top, wide, high in boxes:
            leans = _lean(turned[top : top + high, left : left + wide], cascades.eyes)
            x, y = back @ np.array([left + wide / 2, top + high / 2, 1])
            yield Found(float(x), float(y), float(wide), float(high), turn + (leans or 0.0)), leans is not None
        if len(boxes):
            return


def _lean(face: np.ndarray, cascade: cv2.CascadeClassifier) -> float | None:
    """Degrees by which the line through two eyes leans clockwise; None where two cannot be seen."""
    height, width = face.shape
    smallest = max(8, width // 8)
    boxes = cascade.detectMultiScale(face, 1.05, 4, minSize=(smallest, smallest))
    eyes = [(x + w / 2, y + h / 2, w) for x, y, w, h in boxes if y + h / 2 < height * _EYES_BELOW]
    pairs = [
        (abs(one[2] - two[2]), one, two)
        for number, one in enumerate(eyes)
        for two in eyes[number + 1 :]
        if abs(one[0] - two[0]) > width * 0.25
    ]
    if not pairs:
        return None
    _, left, right = min(pairs)
    if left[0] > right[0]:
        left, right = right, left
    angle = math.degrees(math.atan2(right[1] - left[1], right[0] - left[0]))
    return angle if abs(angle) <= 30 else None


def _same(one: Found, other: Found) -> bool:
    wide = min(one.x + one.width / 2, other.x + other.width / 2) - max(one.x - one.width / 2, other.x - other.width / 2)
    high = min(one.y + one.height / 2, other.y + other.height / 2) - max(
        one.y - one.height / 2, other.y - other.height / 2
    )
    if wide <= 0 or high <= 0:
        return False
    shared = wide * high
    return shared / (one.width * one.height + other.width * other.height - shared) > _OVERLAP


def upright(pixels: np.ndarray, face: Found) -> np.ndarray:
    """The picture turned around the face's centre so that the face is upright; corners repeat the border."""
    if not face.angle:
        return pixels
    matrix = cv2.getRotationMatrix2D((face.x, face.y), face.angle, 1.0)
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE))


def with_frame(pixels: np.ndarray, face: Found) -> np.ndarray:
    """The picture with a red frame around the face."""
    drawn = np.ascontiguousarray(pixels[..., :3].copy())
    corner = (int(face.x - face.width / 2), int(face.y - face.height / 2))
    other = (int(face.x + face.width / 2), int(face.y + face.height / 2))
    thick = max(1, min(pixels.shape[:2]) // 200)
    return np.asarray(cv2.rectangle(drawn, corner, other, (255, 0, 0), thick))


def enlarge(pixels: np.ndarray, face: Found, scale: float) -> tuple[np.ndarray, Found]:
    """Picture and face resized by `scale`."""
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
    resized = np.asarray(cv2.resize(pixels, size, interpolation=how))
    return resized, Found(face.x * scale, face.y * scale, face.width * scale, face.height * scale, face.angle)


def crop(pixels: np.ndarray, face: Found, size: tuple[int, int]) -> tuple[np.ndarray, Found]:
    """The part of the picture of this (width, height) around the face, moved inward at the edges; smaller if it is."""
    height, width = pixels.shape[:2]
    wide, high = min(size[0], width), min(size[1], height)
    left = min(max(0, round(face.x - wide / 2)), width - wide)
    top = min(max(0, round(face.y - high / 2)), height - high)
    moved = Found(face.x - left, face.y - top, face.width, face.height, face.angle)
    return pixels[top : top + high, left : left + wide], moved
