"""Pictures of one kind saved as another beside the originals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import normalise_extension
from sd_scripts.tools.common import say
from sd_scripts.tools.files import find_pictures, folder, refuse_existing


def convert_folder(
    directory: str, in_ext: str, out_ext: str, how: Mapping[str, Any], *, delete_originals: bool, overwrite: bool
) -> None:
    """Save every picture that ends in `in_ext` with another ending; originals go only after their copy is complete.

    Raises:
        UserError: no such pictures, the same kind, a picture that cannot be read, or a file in the way.
    """
    root = folder(directory, "directory")
    ending = normalise_extension(in_ext.strip()).lower()
    if ending in ((".jpg", ".jpeg") if out_ext == ".jpg" else (out_ext,)):
        raise UserError(f"in_ext is {in_ext}, which is what would be written.", "in_ext", "Name another kind, as png.")
    found = [path for path in find_pictures(root) if path.suffix.lower() == ending]
    if not found:
        raise UserError(f"There are no {ending} pictures in {root}.", "in_ext")
    refuse_existing([path.with_suffix(out_ext) for path in found], overwrite)

    from sd_scripts.tools.pictures import for_each, on_white, read, save

    def make(path: Path) -> None:
        pixels = read(path)
        save(on_white(pixels) if out_ext == ".jpg" else pixels, path.with_suffix(out_ext), **how)
        if delete_originals:
            path.unlink()

    for_each(found, make, "pictures written")
    say(f"{len(found)} pictures saved as {out_ext}" + (", the originals deleted" if delete_originals else ""))
