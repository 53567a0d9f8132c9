"""Each training tab in Chromium, from its empty form to a trained file that opens again: real trainers, tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pytest
from playwright.sync_api import Browser, expect
from safetensors import safe_open

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = 240_000
STEPS = 2
# What every tab is told beside its own: a short run on little pictures.
SHORT: dict[str, Any] = {
    "resolution": "64",
    "enable_bucket": False,
    "train_batch_size": "2",
    "max_train_steps": str(STEPS),
    "max_train_epochs": "",
    "learning_rate": "1e-4",
    "mixed_precision": "no",
    "optimizer_type": "AdamW",
    "seed": "7",
    "caption_extension": ".txt",
    "save_every_n_epochs": "",
    "gradient_checkpointing": False,
    "max_data_loader_n_workers": "0",
    "num_cpu_threads_per_process": "1",
}


@dataclass
class Journey:
    """A tab, the model it trains, what is typed besides, and a name that its file must hold."""

    tab: str
    model: str
    holds: str
    typed: Callable[[Path], dict[str, Any]] = field(default=lambda folder: {})


JOURNEYS = [
    Journey("dreambooth", "tiny_sd1_file", "model.diffusion_model.out.2.weight"),
    Journey("lora", "tiny_sd1", "lora_unet_mid_block_attentions_0_proj_in.alpha", lambda folder: {"network_dim": "4"}),
    Journey(
        "textual_inversion",
        "tiny_sd1",
        "emb_params",
        lambda folder: {"token_string": "mycat", "init_word": "cat", "template": "object template"},
    ),
    Journey(
        "finetune",
        "tiny_sd1",
        "model.diffusion_model.out.2.weight",
        # captions are collected and sizes chosen before the training, as one job
        lambda folder: {
            "train_data_dir": str(folder / "photos" / "2_photo"),
            "train_dir": str(folder / "metadata"),
            "enable_bucket": True,
            "resolution": "128",
            "min_bucket_reso": "64",
        },
    ),
    Journey(
        "controlnet",
        "tiny_sd1",
        "input_hint_block.0.weight",
        lambda folder: {
            "train_data_dir": str(folder / "photos" / "2_photo"),
            "conditioning_data_dir": str(folder / "edges"),
        },
    ),
    Journey(
        "lllite",
        "shallow_sdxl",
        "lllite_unet_middle_block_1_transformer_blocks_0_attn1_to_q.up.0.weight",
        lambda folder: {
            "train_data_dir": str(folder / "photos" / "2_photo"),
            "conditioning_data_dir": str(folder / "edges"),
            "network_dim": "8",
            "cond_emb_dim": "8",
        },
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shared_root: Path, photos: Path) -> Iterator[Served]:
    """A page that may read the test models; photographs and their edges lie in its folder."""
    made = Served(tmp_path_factory.mktemp("journeys of tabs"), "--allow_folder", str(shared_root))
    shutil.copytree(photos, made.folder / "photos")
    (made.folder / "edges").mkdir()
    (made.folder / "metadata").mkdir()
    for path in (made.folder / "photos" / "2_photo").glob("*.png"):
        picture = cv2.imread(str(path))
        cv2.imwrite(str(made.folder / "edges" / path.name), cv2.Canny(picture, 80, 160))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def window(chromium: Browser, served: Served) -> Iterator[Visit]:
    """One window for all journeys, as a person keeps one open."""
    made = Visit(chromium, served.url)
    yield made
    made.close()
    assert made.foreign == [] and made.errors == []


def choose(visit: Visit, tab: str, key: str, value: Any) -> None:
    """Find a field by the search box, which opens where it stands, and set it with mouse and keyboard."""
    page = visit.page
    page.fill(f"#{tab}-search input", f"--{key}")
    page.locator(f".k-result[data-go='{key}']").click()
    control = page.locator(f"#{tab}-{key} .k-in")
    expect(control).to_be_focused()
    if isinstance(value, bool):
        control.set_checked(value)
    elif control.evaluate("(e) => e.tagName") == "SELECT":
        control.select_option(value)
    else:
        control.fill(value)


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: journey.tab)
def test_from_the_empty_form_to_a_trained_file(
    journey: Journey, window: Visit, served: Served, request: pytest.FixtureRequest
) -> None:
    page, tab, folder = window.page, journey.tab, served.folder
    name = f"my {tab}"
    page.click(f"#top-{tab}-button")
    expect(page.locator(f"#{tab}-verdict")).to_contain_text(".")
    typed: dict[str, Any] = {
        "pretrained_model_name_or_path": str(request.getfixturevalue(journey.model)),
        "train_data_dir": str(folder / "photos"),
        "output_dir": str(folder / "out"),
        "output_name": name,
        "save_model_as": "safetensors",
        **SHORT,
        **journey.typed(folder),
    }
    for key, value in typed.items():
        choose(window, tab, key, value)
    expect(page.locator(f"#{tab}-plan")).to_contain_text(f"{STEPS} steps")
    assert page.locator(f"#{tab}-plan .k-error").all_inner_texts() == []
    expect(page.locator(f"#{tab}-start")).to_be_enabled()
    page.click(f"#{tab}-start")
    row = window.job(name)
    expect(row).to_contain_text("done", timeout=PATIENCE)
    with safe_open(folder / "out" / f"{name}.safetensors", "pt") as weights:
        assert journey.holds in set(weights.keys())
    if tab == "finetune":
        assert sorted(path.name for path in (folder / "metadata").iterdir()) == ["meta_cap.json", "meta_lat.json"]
