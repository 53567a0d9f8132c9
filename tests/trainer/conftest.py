"""Makes the helpers beside the tests importable; small pictures and small runs for all of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from effects import Probe


@pytest.fixture(scope="session")
def tiny_sdxl(shallow_sdxl: Path) -> Path:
    """The small SDXL model of nearly all tests here; one whole run of each trainer is on `deep_sdxl`."""
    return shallow_sdxl


@pytest.fixture(scope="session")
def quick_model(tiny_sd1: Path, shallow_sd1: Path, shallow_sdxl: Path) -> Callable[[str], Path]:
    """The model with the fewest layers that a trainer takes: for what is run with every trainer."""

    def chosen(command: str) -> Path:
        if command.startswith("sdxl"):
            return shallow_sdxl
        return tiny_sd1 if command.endswith("XTI") else shallow_sd1  # XTI has words for each of the 16 layers

    return chosen


@pytest.fixture(scope="session")
def thumbs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four photographs at 96x80 pixels, with their captions, in `2_photo/`. Read-only."""
    folder = tmp_path_factory.mktemp("thumbs")
    (folder / "2_photo").mkdir()
    for source in sorted((photos / "2_photo").glob("*.png")):
        Image.open(source).resize((96, 80)).save(folder / "2_photo" / source.name)
        (folder / "2_photo" / f"{source.stem}.txt").write_bytes(source.with_suffix(".txt").read_bytes())
    return folder


@pytest.fixture(scope="session")
def probe(
    tiny_sd1: Path, tiny_sd2: Path, tiny_sd2_v: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Probe:
    """Small runs on the tiny models "sd1", "sd2" and "sd2_v"."""
    models = {"sd1": tiny_sd1, "sd2": tiny_sd2, "sd2_v": tiny_sd2_v}
    return Probe(models, thumbs, tmp_path_factory.mktemp("probe"))
