"""Edges of a picture, as control picture: `python sd_scripts/tools/canny.py --input a.png --output edges.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import CannyOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing, some_pictures

PROG = "canny.py"
OPTIONS = CannyOptions


def work(options: CannyOptions) -> None:
    """Draw the edges. Raises UserError."""
    for key, value in (("input", options.input), ("output", options.output)):
        if not value:
            raise UserError(f"{key} is missing.", key, f"Give --{key}.")
    source, target = Path(str(options.input)), Path(str(options.output))
    if source.is_dir():
        # PNG, as edges suffer from JPEG; the same stem, so that training finds the control picture.
        jobs = [(path, target / f"{path.stem}.png") for path in some_pictures(str(source), "input")]
    elif source.is_file():
        jobs = [(source, target)]
    else:
        raise UserError(f"There is no picture {source}.", "input")
    refuse_existing([path for _, path in jobs], options.overwrite)

    import cv2

    from sd_scripts.tools.pictures import for_each, read, save

    def draw(job: tuple[Path, Path]) -> None:
        grey = cv2.cvtColor(read(job[0])[..., :3].copy(), cv2.COLOR_RGB2GRAY)
        save(cv2.Canny(grey, options.thres1, options.thres2), job[1])

    for_each(jobs, draw, "pictures written")
    say(f"edges of {len(jobs)} pictures written to {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
