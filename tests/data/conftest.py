"""Fixtures for the tests of the data part."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from data_kit import save_photo


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder("2_sks dog", [(64, 64), ...], captions=[...]) -> the folder, under <tmp>/train."""

    def make(
        name: str,
        sizes: Sequence[tuple[int, int]],
        captions: Sequence[str | None] = (),
        root: str = "train",
        ending: str = ".png",
    ) -> Path:
        place = tmp_path / root / name
        for number, size in enumerate(sizes):
            save_photo(place / f"im{number:02d}{ending}", size, number)
        for number, caption in enumerate(captions):
            if caption is not None:
                (place / f"im{number:02d}.txt").write_text(caption, encoding="utf-8")
        return place

    return make
