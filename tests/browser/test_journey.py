"""An old configuration trained to a finished file by the real trainer on the small model; and the page dies midway."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from safetensors import safe_open

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG, SHORT = 2000, 3
PATIENCE = 240_000


def kohya_preset(model: Path, pictures: Path, output: Path, steps: int, name: str) -> dict[str, Any]:
    """A configuration as kohya_ss v22.7 saves it; the learning rate is spelled in a way nothing can read."""
    return {
        "LoRA_type": "Standard",
        "model_list": "custom",
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(pictures),
        "output_dir": str(output),
        "output_name": name,
        "max_resolution": "64,64",
        "enable_bucket": False,
        "learning_rate": 0.001,
        "unet_lr": 0.001,
        "text_encoder_lr": 0.0005,
        "network_dim": 4,
        "network_alpha": 1,
        "max_train_steps": str(steps),
        "epoch": 1,
        "train_batch_size": 1,
        "mixed_precision": "no",
        "save_precision": "float",
        "optimizer": "AdamW",
        "lr_scheduler": "constant",
        "lr_warmup": 0,
        "caption_extension": ".txt",
        "xformers": "none",
        "cache_latents": True,
        "seed": "7",
        "max_data_loader_n_workers": "0",
        "save_every_n_epochs": 0,
        "gradient_checkpointing": False,
    }


def steps_done(visit: Visit, name: str) -> int:
    """The step the table shows."""
    text = visit.job(name).inner_text()
    found = re.search(r"([\d,]+) of [\d,]+", text)
    return int(found[1].replace(",", "")) if found else 0


def wait_for_step(visit: Visit, name: str, step: int) -> int:
    """Wait until the table shows at least this step."""
    end = time.monotonic() + PATIENCE / 1000
    while (done := steps_done(visit, name)) < step:
        state = visit.job(name).inner_text()
        assert "failed" not in state, visit.page.inner_text("#jobs-log")
        assert time.monotonic() < end, state
        visit.page.wait_for_timeout(300)
    return done


@pytest.fixture
def pictures(served: Served, photos: Path) -> Iterator[Path]:
    """The photographs inside the folder that is open to the page."""
    target = served.folder / "photos"
    if not target.exists():
        target.symlink_to(photos)
    yield photos


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shared_root: Path) -> Iterator[Served]:
    """A page that may also read the folder of the shared test models."""
    made = Served(tmp_path_factory.mktemp("journey"), "--allow_folder", str(shared_root))
    made.start()
    yield made
    made.stop()


def test_a_kohya_preset_trains_is_watched_stopped_resumed_and_taken_away(
    chromium: Browser, served: Served, tiny_sd1: Path, pictures: Path
) -> None:
    first = Visit(chromium, served.url)
    page = first.page
    output = served.folder / "out"
    first.open_text(kohya_preset(tiny_sd1, pictures / "missing", output, LONG, "cat"), "old.json")
    expect(page.locator(".k-sheet")).to_contain_text("max_resolution is now called resolution")
    page.keyboard.press("Escape")

    # the mistake is marked beside its field, and stops Start
    expect(page.locator("#lora-train_data_dir-note")).to_contain_text("missing")
    expect(page.locator("#lora-start")).to_be_disabled()
    page.fill("#lora-train_data_dir input", str(pictures))
    expect(page.locator("#lora-start")).to_be_enabled()
    page.click("#lora-start")

    # it runs, and the curve grows
    wait_for_step(first, "cat", 3)
    curve = page.locator("#jobs-curves polyline.k-line")
    before = curve.get_attribute("points")
    wait_for_step(first, "cat", steps_done(first, "cat") + 2)
    assert curve.get_attribute("points") != before
    assert "cat" in page.title()

    # a reload and a second browser see the same
    page.reload()
    page.click("#top-jobs-button")
    seen = wait_for_step(first, "cat", 5)
    second = Visit(chromium, served.url)
    second.page.click("#top-jobs-button")
    assert wait_for_step(second, "cat", seen) >= seen

    # stop in one, see it in the other; then go on from there
    second.job("cat").get_by_role("button", name="Stop and save").click()
    expect(first.job("cat")).to_contain_text("stopped", timeout=PATIENCE)
    stopped_at = steps_done(first, "cat")
    assert 5 <= stopped_at < LONG
    first.job("cat").get_by_role("button", name="Resume").click()
    assert wait_for_step(first, "cat", stopped_at + 2) > stopped_at
    first.job("cat").get_by_role("button", name="Stop and save").click()
    expect(first.job("cat")).to_contain_text("stopped", timeout=PATIENCE)
    second.close()

    # a short one to its end, and the file taken away
    first.page.click("#top-lora-button")
    first.open_text(kohya_preset(tiny_sd1, pictures, output, SHORT, "short"), "short.json")
    page.keyboard.press("Escape")
    expect(page.locator("#lora-plan")).to_contain_text(f"{SHORT} steps")
    page.click("#lora-start")
    expect(first.job("short")).to_contain_text("done", timeout=PATIENCE)
    with page.expect_download() as taken:
        first.job("short").get_by_role("link", name="Download").click()
    target = served.folder / "taken.safetensors"
    taken.value.save_as(target)
    with safe_open(target, "pt") as weights:
        assert weights.metadata()["ss_output_name"] == "short"
        assert any(name.startswith("lora_unet_") for name in weights.keys())  # noqa: SIM118 (no mapping)
    first.close()
    assert first.foreign == [] and first.errors == []


def test_the_training_survives_the_death_of_its_page(
    chromium: Browser, served: Served, tiny_sd1: Path, pictures: Path
) -> None:
    visit = Visit(chromium, served.url)
    visit.open_text(kohya_preset(tiny_sd1, pictures, served.folder / "out", LONG, "survivor"), "survivor.json")
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator("#lora-start")).to_be_enabled()
    visit.page.click("#lora-start")
    before = wait_for_step(visit, "survivor", 2)
    visit.close()

    served.kill()
    folder = next(path for path in (served.folder / "jobs").iterdir() if "survivor" in path.name)
    size = os.path.getsize(folder / "events.jsonl")
    end = time.monotonic() + PATIENCE / 1000
    while os.path.getsize(folder / "events.jsonl") <= size:
        assert time.monotonic() < end, "the trainer ended with its page"
        time.sleep(0.2)

    served.start()
    again = Visit(chromium, served.url)
    again.page.click("#top-jobs-button")
    assert wait_for_step(again, "survivor", before + 2) > before
    again.job("survivor").get_by_role("button", name="Stop and save").click()
    expect(again.job("survivor")).to_contain_text("stopped", timeout=PATIENCE)
    again.close()
    assert again.errors == []
