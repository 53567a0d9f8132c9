"""Groups of pictures of one shape: `python sd_scripts/tools/group_images.py <pictures> <output> <group size>`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.folders import normalise_extension, parse_class_folder
from sd_scripts.schema.tools import GroupImagesOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing, replacing, some_pictures, write_caption

if TYPE_CHECKING:
    from sd_scripts.tools.grouping import Group

PROG = "group_images.py"
OPTIONS = GroupImagesOptions


def words_of(folder: str) -> str:
    """The words of a folder's name: what follows the repeats in `10_grey cat`, else the whole name."""
    found = parse_class_folder(folder)
    return found[1] if found else folder


def targets_of(groups: Sequence[Group], output: Path) -> list[list[Path]]:
    """A numbered name for every picture, with the ending that it has."""
    return [
        [
            output / f"group-{number:04d}-image-{place:02d}{picture.path.suffix.lower()}"
            for place, picture in enumerate(group.pictures, 1)
        ]
        for number, group in enumerate(groups, 1)
    ]


def others_of(picture: Path, target: Path, left_out: str) -> Iterator[tuple[Path, Path]]:
    """Files of the picture's name with another ending, and where their copies go."""
    for path in sorted(picture.parent.glob(f"{_plain(picture.stem)}.*")):
        if path.suffix.lower() not in (picture.suffix.lower(), left_out) and path.stem == picture.stem:
            yield path, target.with_suffix(path.suffix)


def _plain(stem: str) -> str:
    return "".join(f"[{sign}]" if sign in "[*?" else sign for sign in stem)


def work(options: GroupImagesOptions) -> None:
    """Write the groups. Raises UserError before anything is written where a file is in the way."""
    pictures = some_pictures(options.input_folder, "input_folder", options.include_subfolders)

    from sd_scripts.tools.grouping import groups_of, shapes, write_groups

    groups = groups_of(shapes(pictures), options.group_size)
    targets = targets_of(groups, Path(options.output_folder))
    pairs = [
        (shaped.path, target) for group, names in zip(groups, targets) for shaped, target in zip(group.pictures, names)
    ]
    ending = normalise_extension(options.caption_ext)
    captions = {
        target.with_suffix(ending): words_of(picture.parent.name) for picture, target in pairs if options.caption
    }
    copies: list[tuple[Path, Path]] = []
    if not options.do_not_copy_other_files:
        left_out = ending if options.caption else ""
        copies = [pair for picture, target in pairs for pair in others_of(picture, target, left_out)]
    refuse_existing([*(t for _, t in pairs), *captions, *(target for _, target in copies)], options.overwrite)
    write_groups(groups, targets, options.pad)
    for path, words in captions.items():
        write_caption(path, words)
    for source, target in copies:
        with replacing(target) as aside:
            shutil.copyfile(source, aside)
    say(f"{len(pairs)} pictures in {len(groups)} groups written to {options.output_folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
