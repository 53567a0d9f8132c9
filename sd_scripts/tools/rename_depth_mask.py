"""`name-0000.png` becomes `name.mask`: `python sd_scripts/tools/rename_depth_mask.py <folder>`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import RenameDepthMaskOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import folder, refuse_existing

PROG = "rename_depth_mask.py"
OPTIONS = RenameDepthMaskOptions
_ENDING = "-0000.png"


def work(options: RenameDepthMaskOptions) -> None:
    """Rename the files. Raises UserError before anything is renamed where a name is taken."""
    root = folder(options.folder, "folder")
    found = sorted(path for path in root.iterdir() if path.name.endswith(_ENDING) and path.name != _ENDING)
    if not found:
        raise UserError(f"There are no files named ...{_ENDING} in {root}.", "folder")
    targets = [path.with_name(f"{path.name.removesuffix(_ENDING)}.mask") for path in found]
    refuse_existing(targets, options.overwrite)
    for path, target in zip(found, targets):
        path.replace(target)
    say(f"{len(found)} files renamed")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
