"""Control pictures for the tests: the edges of the training pictures."""

from __future__ import annotations

from pathlib import Path

import cv2


def draw_edges(pictures: Path, folder: Path) -> Path:
    """Write the edges of every PNG in `pictures` under the same name into `folder`, white on black; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(pictures.glob("*.png")):
        grey = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / source.name), cv2.cvtColor(cv2.Canny(grey, 100, 200), cv2.COLOR_GRAY2BGR))
    return folder


def one_picture(pictures: Path, folder: Path, name: str = "coffee") -> Path:
    """A training folder with a single picture and its caption; returns it."""
    folder.mkdir(parents=True)
    for suffix in (".png", ".txt"):
        (folder / f"{name}{suffix}").write_bytes((pictures / f"{name}{suffix}").read_bytes())
    return folder


def blank_like(pictures: Path, folder: Path) -> Path:
    """Black control pictures for every PNG in `pictures`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(pictures.glob("*.png")):
        cv2.imwrite(str(folder / source.name), cv2.imread(str(source)) * 0)
    return folder
