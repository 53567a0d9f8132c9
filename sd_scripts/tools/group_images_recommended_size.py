"""Which group size changes pictures least: `group_images_recommended_size.py <pictures> <smallest> <largest>`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import GroupSizeOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import some_pictures

PROG = "group_images_recommended_size.py"
OPTIONS = GroupSizeOptions


def work(options: GroupSizeOptions) -> None:
    """Try every size by the pictures' headers; ties go to the larger size, which fills batches better."""
    if options.max_group < options.min_group:
        raise UserError(f"max_group ({options.max_group}) is below min_group ({options.min_group}).", "max_group")
    pictures = some_pictures(options.input_folder, "input_folder", options.include_subfolders)

    from sd_scripts.tools.grouping import groups_of, shapes

    shaped = shapes(pictures)
    # beyond the number of pictures there is one group, whatever the size
    largest = min(options.max_group, max(options.min_group, len(shaped)))
    costs: dict[int, float] = {}
    for size in range(options.min_group, largest + 1):
        costs[size] = sum(group.change for group in groups_of(shaped, size)) / len(shaped)
        rest = len(shaped) % size
        word = "added" if options.pad else "cut off"
        say(f"{size}: {costs[size]:.2%} {word}" + (f", {rest} in the last group" if rest else ""))
    best = min(costs, key=lambda size: (len(shaped) % size > 0, round(costs[size], 6), -size))
    say(f"Recommended group size: {best}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
