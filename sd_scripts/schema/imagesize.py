"""Width, height and EXIF orientation of a picture from its header alone: PNG, JPEG, WebP, BMP.

No pixel is decoded, so 100,000 files are a matter of seconds. Other formats and odd files give None and are left to an
image library.
"""

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sd_scripts.schema.filememory import Facts, facts_of
from sd_scripts.schema.filework import READ_FLAGS

_ORIENTATION_TAG = 0x0112
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MAX_EXIF = 1 << 18
_FIRST = 4096  # bytes read at once: enough for most headers, and no more than one page of memory


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Stored width and height in pixels and the EXIF orientation 1..8 in which to show them."""

    width: int
    height: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown: orientations 5 to 8 are turned by a quarter."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def remembered_sizes(folder: str, names: Sequence[str], look: Callable[[str], tuple[int, int] | None]) -> Facts:
    """Sizes of pictures in a folder, as numbers `width << 32 | height`, -1 where `look` gives None.

    Args:
        look: a path -> width and height as shown; asked for pictures that are new or changed since an earlier run.
    """

    def read(path: str) -> tuple[int, str]:
        size = look(path)
        return (-1 if size is None else size[0] << 32 | size[1]), ""

    return facts_of(folder, names, "picture sizes", read)


class _Bytes:
    """Parts of an open file by position; the first ones are there already."""

    __slots__ = ("_handle", "start")

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.start = os.read(handle, _FIRST)

    def at(self, position: int, count: int) -> bytes:
        if position + count <= len(self.start):
            return self.start[position : position + count]
        os.lseek(self._handle, position, os.SEEK_SET)
        return os.read(self._handle, count)


def read_header(path: str | os.PathLike[str]) -> ImageHeader | None:
    """Header of a picture file, None where it is of another format or damaged; OSError if it cannot be opened."""
    handle = os.open(path, READ_FLAGS)
    try:
        file = _Bytes(handle)
        start = file.start[:32]
        if start[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(file, start)
        if start[:2] == b"\xff\xd8":
            return _jpeg(file)
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            return _webp(file, start)
        if start[:2] == b"BM":
            return _bmp(start)
    except (struct.error, IndexError, ValueError):
        return None
    finally:
        os.close(handle)
    return None


def _checked(width: int, height: int, orientation: int = 1) -> ImageHeader | None:
    return ImageHeader(width, height, orientation) if width > 0 and height > 0 else None


def _png(file: _Bytes, start: bytes) -> ImageHeader | None:
    width, height = struct.unpack(">II", start[16:24])
    orientation, position = 1, 33
    while True:
        length, kind = struct.unpack(">I4s", file.at(position, 8))
        if kind in (b"IDAT", b"IEND"):
            return _checked(width, height, orientation)
        if kind == b"eXIf" and length < _MAX_EXIF:
            orientation = _orientation(file.at(position + 8, length))
        position += 12 + length


def _jpeg(file: _Bytes) -> ImageHeader | None:
    orientation, position = 1, 2
    while True:
        head = file.at(position, 4)
        if head[0] != 0xFF:
            return None
        marker = head[1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # filler or a marker without content
            position += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack(">H", head[2:4])[0]
        if marker in _JPEG_SIZES:
            height, width = struct.unpack(">xHH", file.at(position + 4, 5))
            return _checked(width, height, orientation)
        if marker in (0xD9, 0xDA) or length < 2:
            return None
        if marker == 0xE1:
            content = file.at(position + 4, length - 2)
            if content[:6] == b"Exif\0\0" and orientation == 1:
                orientation = _orientation(content[6:])
        position += 2 + length


def _webp(file: _Bytes, start: bytes) -> ImageHeader | None:
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", start[26:30])
        return _checked(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack("<I", start[21:25])[0]
        return _checked((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        return None
    width = int.from_bytes(start[24:27], "little") + 1
    height = int.from_bytes(start[27:30], "little") + 1
    return _checked(width, height, _webp_orientation(file) if start[20] & 0x08 else 1)


def _webp_orientation(file: _Bytes) -> int:
    position = 12
    while True:
        head = file.at(position, 8)
        if len(head) < 8:
            return 1
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF" and length < _MAX_EXIF:
            content = file.at(position + 8, length)
            return _orientation(content[6:] if content[:6] == b"Exif\0\0" else content)
        position += 8 + length + length % 2


def _bmp(start: bytes) -> ImageHeader | None:
    if struct.unpack("<I", start[14:18])[0] == 12:  # OS/2 header: 16-bit sizes
        return _checked(*struct.unpack("<HH", start[18:22]))
    width, height = struct.unpack("<ii", start[18:26])
    return _checked(width, abs(height))


def _orientation(tiff: bytes) -> int:
    """Orientation in an EXIF block, 1 where there is none or it is nonsense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    first = struct.unpack(order + "I", tiff[4:8])[0]
    if first + 2 > len(tiff):
        return 1
    count = struct.unpack(order + "H", tiff[first : first + 2])[0]
    for entry in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack(order + "HHIH", tiff[entry : entry + 10])
        if tag == _ORIENTATION_TAG and kind == 3 and 1 <= value <= 8:
            return int(value)
    return 1
