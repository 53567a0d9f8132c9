"""The metadata file of a data set (`in_json`): captions, tags and sizes by picture, and where each picture lies."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.buckets import Size
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Entries by picture, from a JSON object or from lines of JSON (.jsonl).

    Raises:
        DataError: the file cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            content = {line["image_path"]: line for line in lines}
        else:
            content = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read the metadata file {path}: {error.strerror or error}", key="in_json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} is no metadata file: {error}", key="in_json") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name} is no metadata file: it must be an object by picture", key="in_json")
    for key, entry in content.items():
        if not isinstance(entry, dict):
            raise DataError(f"{path.name}: the entry {key!r} is no object", key="in_json")
    return content


def caption_of_entry(entry: Mapping[str, Any], separator: str) -> str | None:
    """The words of an entry: its caption, its tags, or both with the separator between; None without any."""
    caption, tags = entry.get("caption"), entry.get("tags")
    if tags:
        return f"{caption}{separator} {tags}" if caption else str(tags)
    return str(caption) if caption else None


def size_in(entry: Mapping[str, Any], name: str, key: str, path: Path) -> Size | None:
    """Width and height in an entry under a name; None where it has none. Raises DataError for anything else."""
    value = entry.get(name)
    if value is None or value == []:
        return None
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path.name}: {name} of {key!r} is not a width and a height", key="in_json") from error
    return width, height


def files_by_stem(folder: Path) -> dict[str, str]:
    """Picture files of a folder by stem, then cache files where no picture has the stem. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}", key="train_data_dir") from error
    files: dict[str, str] = {}
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in IMAGE_EXTENSIONS:
            files.setdefault(stem, os.path.join(folder, name))
    for name in names:
        if name.endswith(".npz"):
            files.setdefault(name[:-4], os.path.join(folder, name))
    return files


def locate(key: str, folder: Path | None, files: Mapping[str, str]) -> str | None:
    """The file of an entry: a path, a stem in the folder, or a cache file; None where there is none.

    Args:
        key: what the entry is called.
        folder: the folder of the pictures, if one is given.
        files: what `files_by_stem` found in it.
    """
    if os.path.isfile(key):
        return key
    if key in files:
        return files[key]
    cache = os.path.splitext(key)[0] + ".npz"
    if os.path.isfile(cache):
        return cache
    if folder is not None:
        for name in (key, f"{key}.npz"):
            if os.path.isfile(folder / name):
                return str(folder / name)
    return None
