"""Around the writing of a model: what a job is told of it, and what goes wrong as one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.report import report


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Around the writing of a file that is complete or absent. Raises UserError where the disk refuses."""
    with _refusals(path), report.writing(path):
        yield


@contextmanager
def written_folder(folder: Path) -> Iterator[Callable[[Path], None]]:
    """Around the writing of a folder that is complete or absent.

    Yields what is to be called with the new folder just before it takes its place: its files are told then.

    Raises:
        UserError: the disk refuses.
    """
    with _refusals(folder), ExitStack() as told:

        def tell(aside: Path) -> None:
            for path in sorted(aside.rglob("*")):
                if path.is_file():
                    told.enter_context(report.writing(folder / path.relative_to(aside)))

        yield tell


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def size_text(path: Path) -> str:
    """The size of a file or folder in words, such as `2.1 GB`."""
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    size = sum(inner.stat().st_size for inner in files)
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
