"""Pictures with the face's place in their names, maybe turned and cut: `detect_face_rotate.py --help`.

The names `<name>_<x>_<y>_<width>_<height>.png` are what face_crop_aug_range of the trainers reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import DetectFaceOptions
from sd_scripts.tools.common import counted, run, say
from sd_scripts.tools.files import refuse_existing, some_pictures

if TYPE_CHECKING:
    import numpy as np

    from sd_scripts.tools.faces import Cascades, Found

PROG = "detect_face_rotate.py"
OPTIONS = DetectFaceOptions


def pair(text: str | None, key: str, whole: bool) -> tuple[float, float] | None:
    """Width and height from "512,768"; None if not given. Raises UserError for anything else."""
    if not text:
        return None
    try:
        width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{key} is {text!r}, but must be width,height.", key) from error
    if not (0 < width < 1e5 and 0 < height < 1e5) or (whole and (width % 1 or height % 1)):
        raise UserError(f"{key} is {text!r}, but must be two numbers above 0.", key)
    return width, height


def work(options: DetectFaceOptions) -> None:
    """Find the faces and write the pictures that have one. Raises UserError."""
    pictures = some_pictures(options.src_dir, "src_dir")
    if not options.dst_dir:
        raise UserError("dst_dir is missing.", "dst_dir", "Give a folder for the results.")
    size = pair(options.crop_size, "crop_size", True)
    ratio = pair(options.crop_ratio, "crop_ratio", False)
    if options.crop_size and options.crop_ratio:
        raise UserError("crop_size and crop_ratio are both given.", "crop_ratio", "Give one.")
    if options.resize_fit and options.resize_face_size:
        raise UserError("resize_fit and resize_face_size are both on.", "resize_fit", "Give one.")
    if options.resize_fit and size is None:
        raise UserError("resize_fit needs crop_size.", "crop_size", "Give the size to fit.")

    from sd_scripts.tools.faces import load_cascades
    from sd_scripts.tools.pictures import read, save

    cascades = load_cascades()
    written, without = 0, []
    for path in counted(pictures, "pictures searched"):
        pixels = read(path)
        found = wanted(pixels, cascades, options)
        if not found:
            without.append(path.name)
        results = [arranged(pixels, face, options, size, ratio) for face in found]
        targets = [
            target_name(Path(options.dst_dir), path, number if options.multiple_faces else None, face)
            for number, (_, face) in enumerate(results)
        ]
        refuse_existing(targets, options.overwrite)
        for target, (made, _) in zip(targets, results):
            save(made, target)
            written += 1
    say(f"{written} pictures written to {options.dst_dir}")
    if without:
        say(f"{len(without)} pictures have no such face: {', '.join(without[:5])}")


def wanted(pixels: np.ndarray, cascades: Cascades, options: DetectFaceOptions) -> list[Found]:
    """The faces of the sizes asked for: all of them, or the largest."""
    from sd_scripts.tools.faces import find_faces

    low, high = options.min_size or 0, options.max_size or float("inf")
    found = [face for face in find_faces(pixels, cascades) if low <= max(face.width, face.height) <= high]
    return found if options.multiple_faces else found[:1]


def arranged(
    pixels: np.ndarray,
    face: Found,
    options: DetectFaceOptions,
    size: tuple[float, float] | None,
    ratio: tuple[float, float] | None,
) -> tuple[np.ndarray, Found]:
    """The picture turned, resized and cut as asked, and where the face is in it."""
    from sd_scripts.tools.faces import crop, enlarge, upright, with_frame

    if options.rotate:
        pixels = upright(pixels, face)
    if options.debug:
        pixels = with_frame(pixels, face)
    if options.resize_face_size:
        pixels, face = enlarge(pixels, face, options.resize_face_size / max(face.width, face.height))
    if ratio is not None:
        pixels, face = crop(pixels, face, (round(face.width * ratio[0]), round(face.height * ratio[1])))
    if size is not None:
        cut = (int(size[0]), int(size[1]))
        if options.resize_fit:
            # the shorter side fits, the longer one is cut
            pixels, face = enlarge(pixels, face, max(cut[0] / pixels.shape[1], cut[1] / pixels.shape[0]))
        pixels, face = crop(pixels, face, cut)
    return pixels, face


def target_name(folder: Path, source: Path, number: int | None, face: Found) -> Path:
    """Name with centre and size of the face, as training reads it."""
    several = "" if number is None else f"_{number + 1}"
    place = "_".join(f"{round(value):04d}" for value in (face.x, face.y, face.width, face.height))
    return folder / f"{source.stem}{several}_{place}.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
