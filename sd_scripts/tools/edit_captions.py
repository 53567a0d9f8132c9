"""One caption for all pictures, words added, words replaced: `edit_captions.py <pictures> --prefix "ohwx man,"`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.caption_edit import CaptionEdit
from sd_scripts.schema.tools_captions import EditCaptionsOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import beside, read_text, some_pictures, write_caption

PROG = "edit_captions.py"
OPTIONS = EditCaptionsOptions


def work(options: EditCaptionsOptions) -> None:
    """Change the captions. Raises UserError."""
    edit = CaptionEdit(
        options.caption_text,
        options.prefix,
        options.postfix,
        options.find_text,
        options.replace_text,
        options.overwrite,
    )
    edit.check()
    pictures = some_pictures(options.images_dir, "images_dir", options.recursive)
    targets = list(dict.fromkeys(beside(picture, options.caption_ext) for picture in pictures))
    ticker, written = Ticker("captions", len(targets)), 0
    for number, path in enumerate(targets, 1):
        made = edit.of(read_text(path))
        if made is not None:
            write_caption(path, made)
            written += 1
        ticker.at(number)
    say(f"{written} captions written, {len(targets) - written} left as they were")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
