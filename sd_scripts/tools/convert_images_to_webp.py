"""Pictures of one kind as WebP: `python sd_scripts/tools/convert_images_to_webp.py <folder> --in_ext png`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools import ToWebpOptions
from sd_scripts.tools.common import run
from sd_scripts.tools.converting import convert_folder

PROG = "convert_images_to_webp.py"
OPTIONS = ToWebpOptions


def work(options: ToWebpOptions) -> None:
    """Convert the pictures without loss. Raises UserError."""
    convert_folder(
        options.directory,
        options.in_ext,
        ".webp",
        {"lossless": True},
        delete_originals=options.delete_originals,
        overwrite=options.overwrite,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
