"""Take tags out of the tag files of a folder: `python sd_scripts/tools/cleanup_captions.py <folder> -e .txt`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import normalise_extension
from sd_scripts.schema.tools_captions import CleanupOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import folder, read_text, write_caption

PROG = "cleanup_captions.py"
OPTIONS = CleanupOptions

LOOKS = (
    "1boy", "1girl", "solo", "realistic", "artist name", "makeup", "lips", "red lips", "breasts", "medium breasts",
    "dark skin", "dark-skinned female", "black hair", "blonde hair", "brown hair", "blue eyes", "brown eyes",
)  # fmt: skip
"""Tags that say how a person looks: left out, these looks become part of the word that is trained."""


def without(text: str, tags: Sequence[str]) -> str:
    """The tags of a text that are not among `tags`; upper and lower case, blanks and underscores count alike."""
    removed = {_plain(tag) for tag in tags}
    return ", ".join(tag.strip() for tag in text.split(",") if tag.strip() and _plain(tag) not in removed)


def _plain(tag: str) -> str:
    return tag.strip().lower().replace("_", " ")


def work(options: CleanupOptions) -> None:
    """Rewrite the files that change. Raises UserError."""
    root = folder(options.folder_path, "folder_path")
    ending = normalise_extension(options.extension)
    files = sorted(path for path in root.iterdir() if path.name.endswith(ending) and path.is_file())
    if not files:
        raise UserError(f"There are no {ending} files in {root}.", "extension")
    changed = 0
    for path in files:
        before = read_text(path) or ""
        after = without(before, options.keywords or LOOKS)
        if after != before:
            write_caption(path, after)
            changed += 1
    say(f"{changed} of {len(files)} files changed")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
