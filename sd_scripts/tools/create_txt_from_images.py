"""Captions from file names: `cat_01.jpg` gets `cat_01.txt` with `cat` in it. `create_txt_from_images.py <folder>`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_captions import TextFromNamesOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import beside, some_pictures, write_caption

PROG = "create_txt_from_images.py"
OPTIONS = TextFromNamesOptions


def work(options: TextFromNamesOptions) -> None:
    """Write the captions. Raises UserError."""
    pictures = some_pictures(options.folder_path, "folder_path")
    written = 0
    for picture in pictures:
        path = beside(picture, ".txt")
        if options.overwrite or not path.exists():
            write_caption(path, picture.stem.partition("_")[0])
            written += 1
    say(f"{written} captions written, {len(pictures) - written} were there already")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
