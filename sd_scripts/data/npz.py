"""Reading and writing cache files (.npz) so that they are complete or absent."""

import os
import threading
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
"""What reading a torn or foreign file can raise."""


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises one of DAMAGED where it is torn; pickled content is never loaded."""
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
