"""Pictures of one kind as JPEG: `python sd_scripts/tools/convert_images_to_hq_jpg.py <folder> --in_ext webp`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools import ToJpegOptions
from sd_scripts.tools.common import run
from sd_scripts.tools.converting import convert_folder

PROG = "convert_images_to_hq_jpg.py"
OPTIONS = ToJpegOptions


def work(options: ToJpegOptions) -> None:
    """Convert the pictures; transparency becomes white. Raises UserError."""
    convert_folder(
        options.directory,
        options.in_ext,
        ".jpg",
        {"quality": options.quality},
        delete_originals=options.delete_originals,
        overwrite=options.overwrite,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
