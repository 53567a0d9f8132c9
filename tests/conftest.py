"""Fixtures that several areas share: small models on disk and four real photographs with captions."""

from __future__ import annotations

import os

# Before anything imports torch: many test processes share a small machine, and no test may reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ["KOHYA_GUI_CACHE"] = "off"  # nothing of a test goes into the user's cache folder

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

PHOTOS = {
    "astronaut": "a portrait of an astronaut in an orange suit, american flag",
    "coffee": "a cup of coffee on a wooden table, spoon",
    "chelsea": "a close-up of a tabby cat, whiskers",
    "rocket": "a rocket on a launch pad at night, floodlights",
}


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all worker processes of one test run share. Treat what lies there as read-only."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    root.mkdir(parents=True, exist_ok=True)
    return root


def made_once(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    """`root/name`, made by the first process that asks for it."""
    target = root / name
    with FileLock(str(root / f"{name}.lock")):
        if not target.exists():
            make(target)
    return target


@pytest.fixture(scope="session")
def tiny_sd1(shared_root: Path) -> Path:
    """A small Stable Diffusion 1 model as a diffusers folder."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "tiny sd1", lambda path: save_tiny(path, "sd1"))


@pytest.fixture(scope="session")
def shallow_sd1(shared_root: Path) -> Path:
    """A model of version 1 with half as many layers, for what their number has no part in: quicker."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "shallow sd1", lambda path: save_tiny(path, "sd1", shallow=True))


@pytest.fixture(scope="session")
def tiny_sd2(shared_root: Path) -> Path:
    """A small Stable Diffusion 2 model as a diffusers folder (epsilon prediction)."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "tiny sd2", lambda path: save_tiny(path, "sd2"))


@pytest.fixture(scope="session")
def tiny_sd2_v(shared_root: Path) -> Path:
    """A small Stable Diffusion 2 model as a diffusers folder whose scheduler says v-prediction."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "tiny sd2 v", lambda path: save_tiny(path, "sd2", prediction_type="v_prediction"))


@pytest.fixture(scope="session")
def tiny_sd1_file(shared_root: Path) -> Path:
    """The same small Stable Diffusion 1 model as one file in the original layout."""
    from sd_scripts.models.tiny import save_tiny_single_file

    return made_once(shared_root, "tiny_sd1.safetensors", lambda path: save_tiny_single_file(path, "sd1"))


@pytest.fixture(scope="session")
def tiny_sd2_file(shared_root: Path) -> Path:
    """The same small Stable Diffusion 2 model as one file in the original layout."""
    from sd_scripts.models.tiny import save_tiny_single_file

    return made_once(shared_root, "tiny_sd2.safetensors", lambda path: save_tiny_single_file(path, "sd2"))


@pytest.fixture(scope="session")
def deep_sdxl(shared_root: Path) -> Path:
    """A small Stable Diffusion XL model as a diffusers folder, with as many layers as the large one."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "tiny sdxl", lambda path: save_tiny(path, "sdxl"))


@pytest.fixture(scope="session")
def tiny_sdxl(deep_sdxl: Path) -> Path:
    """The model of SDXL that an area's tests use; some areas take `shallow_sdxl` instead."""
    return deep_sdxl


@pytest.fixture(scope="session")
def shallow_sdxl(shared_root: Path) -> Path:
    """A Stable Diffusion XL model with few equal layers in a row, for what their number has no part in: quicker."""
    from sd_scripts.models.tiny import save_tiny

    return made_once(shared_root, "shallow sdxl", lambda path: save_tiny(path, "sdxl", shallow=True))


@pytest.fixture(scope="session")
def tiny_sdxl_file(shared_root: Path) -> Path:
    """The same small Stable Diffusion XL model as one file in the original layout."""
    from sd_scripts.models.tiny import save_tiny_single_file

    return made_once(shared_root, "tiny_sdxl.safetensors", lambda path: save_tiny_single_file(path, "sdxl"))


@pytest.fixture(scope="session")
def photos(shared_root: Path) -> Path:
    """A training folder `<root>/photos` with `2_photo/` in it: four CC0 photographs of scikit-image and captions."""

    def make(target: Path) -> None:
        import skimage.data
        from PIL import Image

        part = target.with_name("photos.part") / "2_photo"
        part.mkdir(parents=True, exist_ok=True)
        for name, caption in PHOTOS.items():
            Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(part / f"{name}.png")
            (part / f"{name}.txt").write_text(caption, encoding="utf-8")
        part.parent.rename(target)

    return made_once(shared_root, "photos", make)
