"""Simplify captions and tags of a metadata file: `python sd_scripts/finetune/clean_captions_and_tags.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sd_scripts.finetune.cleaning import clean_caption, clean_tags
from sd_scripts.finetune.metadata import read_metadata, write_metadata
from sd_scripts.schema.tools_captions import CleanOptions
from sd_scripts.tools.common import run, say

PROG = "clean_captions_and_tags.py"
OPTIONS = CleanOptions
_OLD_ARGUMENTS = 3


def work(options: CleanOptions) -> None:
    """Clean every entry. Raises UserError."""
    metadata = read_metadata(Path(options.in_json))
    changed = lacking = 0
    for key, entry in metadata.items():
        lacking += not (entry.get("tags") or entry.get("caption"))
        for name, clean in (("tags", clean_tags), ("caption", clean_caption)):
            before = entry.get(name)
            if not isinstance(before, str):
                continue
            entry[name] = clean(before)
            changed += entry[name] != before
            if options.debug and entry[name] != before:
                say(f"{key}\nFROM: {before}\nTO:   {entry[name]}")
    write_metadata(Path(options.out_json), metadata)
    say(f"{changed} captions and tag lists of {len(metadata)} entries changed, written to {options.out_json}")
    if lacking:
        say(f"{lacking} entries have neither caption nor tags")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code. Of three paths, as older versions took them, the first is not needed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    paths = [argument for argument in arguments if not argument.startswith("-")]
    if len(paths) == _OLD_ARGUMENTS:
        arguments.remove(paths[0])
    return run(OPTIONS, work, arguments, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
