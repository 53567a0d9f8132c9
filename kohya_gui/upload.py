"""Pictures and captions that a browser brings: checked, and written beside the others, never over one of them."""

import io
import os
from pathlib import Path

from PIL import Image

from kohya_gui.paths import IMAGE_SUFFIXES, Roots
from kohya_gui.pictures import FORMATS, MOST_PIXELS
from sd_scripts.schema.captions import decode_caption
from sd_scripts.schema.errors import UserError

MOST_BYTES = 64_000_000
MOST_CAPTION_BYTES = 100_000
LONGEST_NAME = 200
MOST_FILES = 200_000
PROJECT = Path(__file__).resolve().parent.parent
_PROGRAM = ("kohya_gui", "sd_scripts", "presets", "localizations", "venv")
CAPTION_SUFFIXES = (".txt", ".caption", ".cap")


def store(roots: Roots, folder: str, name: str, content: bytes) -> Path:
    """Write one file that was dropped into a folder of pictures.

    Args:
        roots: the folders that may be written to.
        folder: where to; it is made if it does not exist.
        name: the file's own name; anything but a plain name is refused.
        content: at most MOST_BYTES of a picture or MOST_CAPTION_BYTES of a caption.
    Returns:
        the new file.
    Raises:
        UserError: saying what is wrong with the place, the name or the content, or that the name is taken.
    """
    if not folder.strip():
        raise UserError("Choose the folder of pictures first.", "train_data_dir")
    plain = name.strip()
    if not plain or plain.startswith(".") or any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in plain):
        raise UserError(f"{name[:100]!r} is no name for a file.")
    if len(os.fsencode(plain)) > LONGEST_NAME:
        raise UserError(f"{plain[:40]}... has a name that is too long.", hint="Rename it.")
    _check(plain, content)
    place = roots.inside(folder)
    if place.is_relative_to(PROJECT) and any(place.is_relative_to(PROJECT / part) for part in _PROGRAM):
        raise UserError(f"{place} holds the program itself.", hint="Choose a folder of your own.")
    target = roots.inside(place / plain)
    _refuse_too_many(place)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            _write(file, target, content)
    except FileExistsError as error:
        raise UserError(f"{plain} is already there; it was left as it is.", hint="Rename the new one.") from error
    except OSError as error:
        raise UserError(f"{plain} cannot be written: {error.strerror}.") from error
    return target


def _refuse_too_many(folder: Path) -> None:
    if folder.is_dir():
        with os.scandir(folder) as scan:
            if sum(1 for _ in zip(range(MOST_FILES), scan)) >= MOST_FILES:
                raise UserError(f"{folder} already holds {MOST_FILES} files.", hint="Choose another folder.")


def _write(file: io.BufferedWriter, target: Path, content: bytes) -> None:
    try:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        # half a picture would be trained on or stop the run
        target.unlink(missing_ok=True)
        raise


def _check(name: str, content: bytes) -> None:
    suffix = Path(name).suffix.lower()
    if suffix in CAPTION_SUFFIXES:
        if len(content) > MOST_CAPTION_BYTES:
            raise UserError(f"{name} is too long for a caption.")
        decode_caption(content, name)
        return
    if suffix not in IMAGE_SUFFIXES:
        known = ", ".join((*IMAGE_SUFFIXES, *CAPTION_SUFFIXES))
        raise UserError(f"{name} is neither a picture nor a caption.", hint=f"Known endings: {known}.")
    if len(content) > MOST_BYTES:
        raise UserError(f"{name} has more than {MOST_BYTES // 1_000_000} MB.", hint="Make it smaller.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{name} has more than {MOST_PIXELS // 1_000_000} million pixels.")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise UserError(f"{name} is an animation.", hint="Save the picture you want from it.")
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not a picture that can be read.") from error
