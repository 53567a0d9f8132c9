"""Smaller copies of a folder of pictures: `python sd_scripts/tools/resize_images_to_resolution.py --help`."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import ResizeImagesOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing, replacing, some_pictures

PROG = "resize_images_to_resolution.py"
OPTIONS = ResizeImagesOptions
_INTERPOLATIONS = {"area": "area", "cubic": "cubic", "lanczos4": "lanczos"}
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def sizes(text: str) -> list[tuple[str, int]]:
    """Name and number of pixels of every size in "512x512,384x384". Raises UserError."""
    found = []
    for part in text.lower().replace(" ", "").split(","):
        match = _SIZE.fullmatch(part)
        if match is None or not int(match[1]) * int(match[2]):
            raise UserError(f"max_resolution holds {part!r}.", "max_resolution", "Write 512x512 or 512x512,256x256.")
        found.append((part, int(match[1]) * int(match[2])))
    return list(dict.fromkeys(found))


def target_size(width: int, height: int, most: int, divisible_by: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size to resize to, of at most about `most` pixels, and the size to cut out of its middle."""
    resized = (width, height)
    if width * height > most:
        scale = math.sqrt(most / (width * height))
        resized = (max(1, round(width * scale)), max(1, round(height * scale)))
    cut = (resized[0] - resized[0] % divisible_by, resized[1] - resized[1] % divisible_by)
    return resized, cut


@dataclass(frozen=True)
class Copy:
    """One copy to make."""

    source: Path
    target: Path
    most: int


def plan(options: ResizeImagesOptions) -> tuple[list[Copy], list[tuple[Path, Path]]]:
    """The copies of pictures, and the other files to copy: source and target. Raises UserError."""
    pictures = some_pictures(options.src_img_folder, "src_img_folder")
    target = Path(options.dst_img_folder)
    wanted = sizes(options.max_resolution)
    ending = ".png" if options.save_as_png else ".jpg"
    copies = [
        Copy(picture, target / f"{picture.stem}+{name}{ending}", most) for picture in pictures for name, most in wanted
    ]
    others: list[tuple[Path, Path]] = []
    if options.copy_associated_files:
        stems = {picture.stem for picture in pictures}
        known = set(pictures)
        for path in sorted(Path(options.src_img_folder).iterdir()):
            if path.stem in stems and path not in known and path.is_file():
                others += [(path, target / f"{path.stem}+{name}{path.suffix}") for name, _ in wanted]
    return copies, others


def work(options: ResizeImagesOptions) -> None:
    """Make the copies. Raises UserError before anything is written where one would write over a file."""
    from sd_scripts.data.image import resize
    from sd_scripts.tools.pictures import for_each, read, save

    copies, others = plan(options)
    refuse_existing([copy.target for copy in copies] + [target for _, target in others], options.overwrite)

    def make(copy: Copy) -> None:
        pixels = read(copy.source)
        height, width = pixels.shape[:2]
        resized, cut = target_size(width, height, copy.most, options.divisible_by)
        if not all(cut):
            raise UserError(f"{copy.source} is smaller than divisible_by ({options.divisible_by}).", "divisible_by")
        if resized != (width, height):
            pixels = resize(pixels, resized, _INTERPOLATIONS[options.interpolation])
        left, top = (resized[0] - cut[0]) // 2, (resized[1] - cut[1]) // 2
        save(pixels[top : top + cut[1], left : left + cut[0]], copy.target)

    for_each(copies, make, "pictures written")
    for source, target in others:
        with replacing(target) as aside:
            shutil.copyfile(source, aside)
    say(f"{len(copies)} pictures and {len(others)} other files written to {options.dst_img_folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
