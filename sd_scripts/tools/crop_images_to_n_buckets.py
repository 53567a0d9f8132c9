"""Pictures cropped bucket by bucket: `crop_images_to_n_buckets.py <pictures> <output> <pictures in a bucket>`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.tools import CropBucketsOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing, some_pictures

PROG = "crop_images_to_n_buckets.py"
OPTIONS = CropBucketsOptions


def work(options: CropBucketsOptions) -> None:
    """Write the crops. Raises UserError before anything is written where a file is in the way."""
    pictures = some_pictures(options.input_dir, "input_dir")

    from sd_scripts.tools.grouping import groups_of, shapes, write_groups

    output = Path(options.output_dir)
    groups = groups_of(shapes(pictures), options.batch_size)
    targets = [
        [
            output / (shaped.path.name if options.use_original_name else f"bucket-{number:04d}-{place:02d}.png")
            for place, shaped in enumerate(group.pictures, 1)
        ]
        for number, group in enumerate(groups, 1)
    ]
    refuse_existing([target for names in targets for target in names], options.overwrite)
    write_groups(groups, targets, pad=False)
    for number, group in enumerate(groups, 1):
        say(f"bucket {number}: {len(group.pictures)} pictures of {group.ratio:.3f} : 1")
    say(f"{len(pictures)} pictures written to {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
