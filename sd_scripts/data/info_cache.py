"""Picture sizes remembered in the folder between runs (`cache_info`): `metadata_cache.json`.

The file has one entry a picture with "caption" and "resolution", as other trainers write it; our "stamp" (bytes, time
of change) says whether the entry still holds.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sd_scripts.data.image import picture_size
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.filestamps import read_stamps, stamps_of

FILE_NAME = "metadata_cache.json"
_Entry = tuple[int, int, int, int, str]  # bytes, time of change in ns, width, height, caption


class InfoCache:
    """Sizes of pictures of one folder. A damaged or foreign file counts as empty.

    Nothing is read before the first question, so a folder that is remembered elsewhere costs nothing here.

    Args:
        names: of the pictures, in the order in which `save` gets them.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._asked = False

    @cached_property
    def _entries(self) -> dict[str, _Entry]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((self._folder / FILE_NAME).read_bytes(), object_hook=_compact)
            if isinstance(content, dict):
                return {path: entry for path, entry in content.items() if isinstance(entry, tuple)}
        return {}

    @cached_property
    def _stamps(self) -> dict[str, tuple[int, int]]:
        stamps = read_stamps(stamps_of(str(self._folder), self._names))
        return {name: (length, changed) for name, (length, changed, _) in zip(self._names, stamps)}

    @property
    def exists(self) -> bool:
        """Whether there is a file at all."""
        return (self._folder / FILE_NAME).exists()

    def size_of(self, path: str) -> Size:
        """Width and height; the picture is opened only if it is new or changed. Raises DataError naming the file."""
        self._asked = True
        stamp = self._stamps[os.path.basename(path)]
        entry = self._entries.get(path)
        if entry is not None and entry[:2] == stamp:
            return entry[2:4]
        return picture_size(path)

    def save(self, sizes: Sequence[Sequence[int]], captions: Sequence[str]) -> None:
        """Write the file anew if anything changed; a folder that cannot be written to is left as it is."""
        known = self._asked and self.exists and len(self._entries) == len(self._names)
        if known and all(self._entries.get(path) == entry for path, entry in self._rows(sizes, captions)):
            return
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=".metadata_cache", suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                for number, (path, entry) in enumerate(self._rows(sizes, captions)):
                    file.write(", " if number else "{")
                    file.write(f"{json.dumps(path, ensure_ascii=False)}: {_written(entry)}")
                file.write("}" if self._names else "{}")
            os.replace(name, self._folder / FILE_NAME)

    def _rows(self, sizes: Sequence[Sequence[int]], captions: Sequence[str]) -> Iterator[tuple[str, _Entry]]:
        prefix = os.path.join(self._folder, "")
        for name, (width, height), caption in zip(self._names, sizes, captions):
            yield prefix + name, (*self._stamps[name], width, height, caption)


def _compact(entry: dict[str, Any]) -> Any:
    """The part of an entry that is used; anything else, such as the whole table, stays as it is."""
    size, stamp = entry.get("resolution"), entry.get("stamp")
    if not isinstance(size, list) or len(size) != 2:
        return entry
    if not isinstance(stamp, list) or len(stamp) != 2:
        stamp = [0, 0]
    return int(stamp[0]), int(stamp[1]), int(size[0]), int(size[1]), entry.get("caption", "")


def _written(entry: _Entry) -> str:
    length, changed, width, height, caption = entry
    values = {"caption": caption, "resolution": [width, height], "stamp": [length, changed]}
    return json.dumps(values, ensure_ascii=False)
