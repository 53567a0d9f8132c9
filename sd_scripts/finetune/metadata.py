"""Metadata files: a JSON object with an entry for every picture, as the fine-tuning trainers read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.tools.common import say
from sd_scripts.tools.files import beside, read_text, some_pictures, write_text

_NAMED = 3
Metadata = dict[str, dict[str, Any]]


def read_metadata(path: Path, key: str = "in_json") -> Metadata:
    """Entries by picture. Raises DataError naming a file that is missing or no metadata."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"The metadata file {path} cannot be read: {error.strerror or error}.", key) from error
    except ValueError as error:
        raise DataError(f"{path} is no metadata file: {error}.", key) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no metadata file: it must be an object with an entry for every picture.", key)
    for name, entry in content.items():
        if not isinstance(entry, dict):
            raise DataError(f"{path} is no metadata file: the entry {name!r} is no object.", key)
    return content


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Write all entries, complete or not at all: two blanks of indent, signs beyond ASCII escaped."""
    write_text(path, json.dumps(metadata, indent=2))


def open_metadata(in_json: str | None, out_json: str) -> Metadata:
    """Entries to add to: those of in_json, else of an out_json that exists, else none."""
    if in_json is not None:
        return read_metadata(Path(in_json))
    if Path(out_json).is_file():
        say(f"adding to {out_json}")
        return read_metadata(Path(out_json), "out_json")
    return {}


def check_keys(full_path: bool, recursive: bool) -> None:
    """Names alone cannot tell pictures of several folders apart. Raises UserError."""
    if recursive and not full_path:
        raise UserError("recursive needs full_path.", "recursive", "Give --full_path as well.")


def key_of(picture: Path, full_path: bool) -> str:
    """A picture's key: its path as given, or its name without ending."""
    return str(picture) if full_path else picture.stem


def merge_texts(
    name: str,
    train_data_dir: str,
    out_json: str,
    in_json: str | None,
    extension: str,
    *,
    full_path: bool,
    recursive: bool,
    debug: bool,
) -> None:
    """Put the text beside every picture into its entry under `name`; pictures without one are left as they are.

    Raises:
        UserError: no pictures, no text at all, or a file that cannot be read or written.
    """
    check_keys(full_path, recursive)
    pictures = some_pictures(train_data_dir, "train_data_dir", recursive)
    metadata = open_metadata(in_json, out_json)
    missing: list[str] = []
    for picture in pictures:
        text = read_text(beside(picture, extension))
        key = key_of(picture, full_path)
        if text is None:
            missing.append(picture.name)
            continue
        metadata.setdefault(key, {})[name] = text
        if debug:
            say(f"{key} {text}")
    if len(missing) == len(pictures):
        raise DataError(
            f"None of {len(pictures)} pictures in {train_data_dir} has a {extension} file.",
            "caption_extension",
            "Is the ending right?",
        )
    write_metadata(Path(out_json), metadata)
    say(f"the {name} of {len(pictures) - len(missing)} pictures merged into {out_json} ({len(metadata)} entries)")
    if missing:
        names = ", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else "")
        say(f"{len(missing)} pictures have no {extension} file and were left as they are: {names}")
