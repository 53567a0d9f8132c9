"""Real photographs prepared in Chromium: folders made, balanced, copied into the form; captions by tool and by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def raw(served: Served, photos: Path) -> Path:
    """A folder of photographs inside the page's folder, one of them without a caption."""
    folder = served.folder / "raw pictures"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(photos / "2_photo", folder)
    (folder / "rocket.txt").unlink()
    return folder


def fill(page: Page, form: str, **texts: str) -> None:
    for key, text in texts.items():
        page.fill(f"#{form}-{key} .k-in", text)


def test_folders_are_prepared_balanced_and_copied_into_the_form(visit: Visit, raw: Path, served: Served) -> None:
    page, target = visit.page, served.folder / "train"
    page.click("#lora-page-preparation-button")
    form = "lora_prep_folders"
    page.click(f"#{form}-dry")
    expect(page.locator(f"#{form}-util_instance_prompt_input .k-note")).to_contain_text("missing")
    fill(
        page,
        form,
        util_instance_prompt_input="ohwx",
        util_class_prompt_input="cat",
        util_training_images_dir_input=str(raw),
        util_training_images_repeat_input="10",
        util_training_dir_output=str(target),
    )
    page.click(f"#{form}-dry")
    expect(page.locator(f"#{form}-result")).to_contain_text("10_ohwx cat")
    assert not target.exists()
    page.click(f"#{form}-start")
    expect(page.locator(f"#{form}-result h2")).to_have_text("What was done")
    assert len(list((target / "img" / "10_ohwx cat").iterdir())) == 7

    page.click(f"#{form}-copy")
    page.click("#lora-page-main-button")
    expect(page.locator("#lora-train_data_dir .k-in")).to_have_value(str(target / "img"))
    expect(page.locator("#lora-output_dir .k-in")).to_have_value(str(target / "model"))
    expect(page.locator("#lora-plan")).to_contain_text("4 pictures")

    page.click("#lora-page-preparation-button")
    page.click("#lora-prep-balance-button")
    fill(page, "lora_prep_balance", folder=str(target / "img"), concept_repeats="100")
    page.click("#lora_prep_balance-start")
    expect(page.locator("#lora_prep_balance-result")).to_contain_text("25_ohwx cat")
    assert (target / "img" / "25_ohwx cat").is_dir()
    page.click("#lora_prep_balance-undo")
    expect(page.locator("#lora_prep_balance-result")).to_contain_text("names back")
    page.click("#lora-prep-folders-button")
    page.click(f"#{form}-undo")
    expect(page.locator(f"#{form}-result")).to_contain_text("undone")
    assert not target.exists() and len(list(raw.iterdir())) == 7


def test_a_tool_captions_as_a_job_that_opens_again_in_its_form(visit: Visit, raw: Path) -> None:
    page, form = visit.page, "tool_basic_caption"
    page.click("#top-utilities-button")
    fill(page, form, images_dir=str(raw), caption_text="a rocket")
    page.click(f"#{form}-dry")
    expect(page.locator(f"#{form}-result")).to_contain_text("New captions")
    page.click(f"#{form}-start")
    expect(page.locator(f"#{form}-result")).to_contain_text("1 captions written")
    assert (raw / "rocket.txt").read_text() == "a rocket"
    page.reload()
    page.click("#top-jobs-button")
    row = visit.job("Basic raw pictures")
    expect(row).to_contain_text("done")
    row.get_by_text("Edit").click()
    expect(page.locator(f"#{form}-caption_text .k-in")).to_have_value("a rocket")
    page.click(f"#{form}-undo")
    expect(page.locator(f"#{form}-result h2")).to_have_text("Undone")
    assert not (raw / "rocket.txt").exists()


def test_captions_by_hand_are_written_as_one_ticks_and_types(visit: Visit, raw: Path) -> None:
    page, form = visit.page, "manual_caption"
    page.click("#top-utilities-button")
    page.click("#utilities-manual_caption-button")
    fill(page, form, images_dir=str(raw), quick_tags_text="ohwx, indoors")
    page.click(f"#{form}-load")
    cat = page.locator(".k-hand", has_text="chelsea.png")
    cat.locator("input[value=ohwx]").click()
    expect(cat.locator(".k-hand-said")).to_have_text("saved")
    assert (raw / "chelsea.txt").read_text() == "ohwx, a close-up of a tabby cat, whiskers"
    cat.locator("textarea").fill("a cat")
    cat.locator("textarea").press("Tab")
    expect(cat.locator("input[value='a cat']")).to_be_checked()
    expect(cat.locator("input[value=ohwx]")).not_to_be_checked()
    page.click(f"#{form}-import")
    expect(page.locator(f"#{form}-quick_tags_text .k-in")).to_have_value("ohwx, indoors, american flag, a cat, spoon")
    assert (raw / "chelsea.txt").read_text() == "a cat"
