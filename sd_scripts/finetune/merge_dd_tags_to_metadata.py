"""Collect tag files into a metadata file: `python sd_scripts/finetune/merge_dd_tags_to_metadata.py --help`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.finetune.metadata import merge_texts
from sd_scripts.schema.tools_captions import MergeTagsOptions
from sd_scripts.tools.common import run

PROG = "merge_dd_tags_to_metadata.py"
OPTIONS = MergeTagsOptions


def work(options: MergeTagsOptions) -> None:
    """Merge the tags. Raises UserError."""
    merge_texts(
        "tags",
        options.train_data_dir,
        options.out_json,
        options.in_json,
        options.caption_extension,
        full_path=options.full_path,
        recursive=options.recursive,
        debug=options.debug,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
