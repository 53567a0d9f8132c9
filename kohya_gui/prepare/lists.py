"""What Finetune's preparation would write: lists of pictures with captions and training sizes, and encoded pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kohya_gui.localization import Words
from kohya_gui.metadata_steps import metadata_files
from kohya_gui.paths import Roots
from kohya_gui.pictures import open_safely
from kohya_gui.prepare.folders import free_space
from kohya_gui.prepare.look import Look
from kohya_gui.prepare.looks import pictures_in
from sd_scripts.schema.buckets import Bucketer, Bucketing
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import normalise_extension
from sd_scripts.schema.imagesize import read_header
from sd_scripts.schema.values import parse_resolution

_LATENT_BYTES = 4 * 4 / 64
"""Bytes of the encoded picture for each of its pixels: four numbers of four bytes for 8 by 8 pixels."""


def check_places(values: Mapping[str, Any], roots: Roots) -> None:
    """See that the preparation reads and writes inside the allowed folders.

    Raises:
        UserError: naming the field, if a place is missing or lies elsewhere.
    """
    for key, what in (("train_data_dir", "The folder with the pictures"), ("train_dir", "The folder for the lists")):
        if not values.get(key):
            raise UserError(f"{what} is missing.", key, "Choose a folder.")
    for key in ("train_data_dir", "train_dir"):
        roots.inside(str(values[key]), key)
    for key in ("pretrained_model_name_or_path", "vae"):
        text = str(values.get(key) or "")
        if text and Path(text).expanduser().exists() and not roots.allows(text):
            raise UserError(f"{text!r} lies outside the folders open to the page.", key, "Choose a model inside them.")


def look_at_lists(full: Mapping[str, Any], words: Words) -> Look:
    """The dry run: counts of pictures, captions and sizes, and what is written where.

    Args:
        full: all values of the Finetune form, defaults filled in.
        words: the language.

    Raises:
        UserError: what the preparation would refuse, as far as it can be known without doing it.
    """
    files = metadata_files(full)
    if files is None:
        raise UserError("No lists are made with these settings.", "train_dir", "A list of one's own is given already.")
    folder = Path(str(full["train_data_dir"]))
    pictures = pictures_in(folder, False, "train_data_dir")
    ending = normalise_extension(str(full.get("caption_extension") or ".caption"))
    found = sum(path.with_name(path.stem + ending).is_file() for path in pictures)
    lines = [(words("Pictures"), f"{len(pictures):,}")]
    if full["create_caption"]:
        if not found and not Path(files[0]).exists():
            raise UserError(
                f"None of {len(pictures)} pictures in {folder} has a {ending} file.",
                "caption_extension",
                "Is the ending right?",
            )
        text = words("{n} found, {m} missing", n=f"{found:,}", m=f"{len(pictures) - found:,}")
        lines += [(words("Captions"), text), (words("List of captions"), _state(files[0], words))]
    if not full["create_buckets"]:
        return Look(tuple(lines))
    sizes = _sizes(pictures, full)
    pixels = sum(width * height * count for (width, height), count in sizes.items())
    there = sum(path.with_suffix(".npz").exists() for path in pictures)
    lines.append((words("List of sizes"), _state(files[1], words)))
    text = words("{n} files, about {size} MB", n=f"{len(pictures):,}", size=f"{pixels * _LATENT_BYTES / 1e6:,.1f}")
    lines.append((words("Encoded pictures"), text))
    if there:
        lines.append((words("Written over"), words("{n} encoded pictures, kept for Undo", n=f"{there:,}")))
    lines.append((words("Free disk space"), f"{free_space(folder) / 1e9:,.1f} GB"))
    rows = [(f"{width} × {height}", f"{count:,}") for (width, height), count in sorted(sizes.items())]
    return Look(tuple(lines), (words("Training size"), words("Pictures")), tuple(rows))


def _state(path: str, words: Words) -> str:
    if Path(path).exists():
        return words("{path} is there: it is written anew, the old one is kept for Undo", path=path)
    return words("{path} is made", path=path)


def _sizes(pictures: Sequence[Path], full: Mapping[str, Any]) -> Counter[tuple[int, int]]:
    """How many pictures get each training size."""
    rule = Bucketing(
        parse_resolution(str(full.get("resolution") or "512,512")),
        True,
        int(full["min_bucket_reso"]),
        int(full["max_bucket_reso"]),
        int(full["bucket_reso_steps"]),
        bool(full.get("bucket_no_upscale")),
    )
    bucketer = Bucketer(rule)
    sizes: Counter[tuple[int, int]] = Counter()
    for path in pictures:
        header = read_header(path)
        width, height = bucketer.select(*(header.size if header else open_safely(path).size)).bucket
        sizes[(width // 8 * 8, height // 8 * 8)] += 1
    return sizes
