"""Picture sizes remembered in the folder between runs (`cache_info`): `metadata_cache.json`.

The file has one entry a picture with "caption" and "resolution", as other trainers write it; our "stamp" (bytes, time
of change) says whether the entry still holds.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sd_scripts.data.image import picture_size
from sd_scripts.schema.buckets import Size

FILE_NAME = "metadata_cache.json"


class InfoCache:
    """Sizes of the pictures of one folder. A damaged or foreign file counts as empty."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._entries = content if isinstance(content, dict) else {}
        self._now: dict[str, tuple[Size, list[int]]] = {}
        self.reused = 0

    def size_of(self, path: str) -> Size:
        """Width and height; the picture is opened only if it is new or changed. Raises DataError naming the file."""
        try:
            status = os.stat(path)
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            return picture_size(path)  # says what is wrong with it
        entry = self._entries.get(path)
        if isinstance(entry, dict) and entry.get("stamp") == stamp and len(entry.get("resolution", ())) == 2:
            size = (int(entry["resolution"][0]), int(entry["resolution"][1]))
            self.reused += 1
        else:
            size = picture_size(path)
        self._now[path] = (size, stamp)
        return size

    def save(self, captions: dict[str, str]) -> None:
        """Write the file anew if anything changed; a folder that cannot be written to is left as it is."""
        entries = {
            path: {"caption": captions.get(path, ""), "resolution": list(size), "stamp": stamp}
            for path, (size, stamp) in self._now.items()
        }
        if entries == self._entries:
            return
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".metadata_cache", suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entries, file, ensure_ascii=False)
            os.replace(name, self._path)
