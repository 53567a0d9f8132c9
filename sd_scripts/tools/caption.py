"""The same caption beside every picture: `caption.py <folder> --caption_text "a photo of a cat"`."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_captions import CaptionOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import beside, folder, read_text, write_caption

PROG = "caption.py"
OPTIONS = CaptionOptions


def matching(root: Path, patterns: str) -> list[Path]:
    """Files directly in a folder that fit one of the patterns, whatever the case of their letters."""
    wanted = [pattern.strip().lower() for pattern in patterns.split(",") if pattern.strip()]
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    return [root / name for name in names if any(fnmatch.fnmatchcase(name.lower(), one) for one in wanted)]


def text_of(options: CaptionOptions) -> str:
    """The caption. Raises UserError unless exactly one of text and file is given."""
    if (options.caption_text is None) == (options.caption_file is None):
        raise UserError("Exactly one of caption_text and caption_file must be given.", "caption_text")
    if options.caption_text is not None:
        return options.caption_text
    found = read_text(Path(str(options.caption_file)))
    if found is None:
        raise UserError(f"There is no file {options.caption_file}.", "caption_file")
    return found


def work(options: CaptionOptions) -> None:
    """Write the captions. Raises UserError."""
    text = text_of(options)
    root = folder(options.image_folder, "image_folder")
    pictures = matching(root, options.file_pattern)
    if not pictures:
        raise UserError(f"No file in {root} fits {options.file_pattern}.", "file_pattern")
    targets = list(dict.fromkeys(beside(picture, options.caption_file_ext) for picture in pictures))
    todo = [path for path in targets if options.overwrite or not path.exists()]
    for path in todo:
        write_caption(path, text)
    say(f"{len(todo)} captions written, {len(targets) - len(todo)} were there already")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
