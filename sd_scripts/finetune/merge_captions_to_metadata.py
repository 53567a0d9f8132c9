"""Collect caption files into a metadata file: `python sd_scripts/finetune/merge_captions_to_metadata.py --help`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.finetune.metadata import merge_texts
from sd_scripts.schema.tools_captions import MergeCaptionsOptions
from sd_scripts.tools.common import run

PROG = "merge_captions_to_metadata.py"
OPTIONS = MergeCaptionsOptions


def work(options: MergeCaptionsOptions) -> None:
    """Merge the captions. Raises UserError."""
    merge_texts(
        "caption",
        options.train_data_dir,
        options.out_json,
        options.in_json,
        options.caption_extention or options.caption_extension,
        full_path=options.full_path,
        recursive=options.recursive,
        debug=options.debug,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
