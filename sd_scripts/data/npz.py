"""Reading and writing cache files (.npz) so that they are complete or absent."""

import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
"""What reading a torn or foreign file can raise."""

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def read_arrays(path: Path | str) -> Arrays:
    """All arrays of a file. Raises one of DAMAGED where it is torn; pickled content is never loaded."""
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def read_shapes(path: Path | str) -> tuple[Shapes, Arrays]:
    """Shapes of all arrays of a file without their values, and the texts among them. Raises one of DAMAGED."""
    shapes: Shapes = {}
    texts: Arrays = {}
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with np.load(path, allow_pickle=False) as content:
        for name in content.files:
            with content.zip.open(f"{name}.npy") as member:
                shapes[name], _, dtype = headers[np.lib.format.read_magic(member)](member)
            if dtype.kind == "U":
                texts[name] = content[name]
    return shapes, texts


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


class BackgroundWriter:
    """Runs writing work in one thread, in the order it is given, while the caller goes on.

    At most `most` pieces wait, so that memory stays bounded. What a piece raises comes out of a later `submit`, or on
    leaving the context, which waits for all.
    """

    def __init__(self, most: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._waiting: list[Future[None]] = []
        self._most = most

    def submit(self, work: Callable[[], None]) -> None:
        """Do the work later; waits while too much is waiting."""
        while len(self._waiting) >= self._most or (self._waiting and self._waiting[0].done()):
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(work))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._waiting:
                future.result()
