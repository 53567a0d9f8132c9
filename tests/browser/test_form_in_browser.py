"""The form as a person uses it: finding, filling, marking, saving. No training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from .conftest import Served, Visit

pytestmark = pytest.mark.browser


def test_search_opens_the_closed_tab_and_focuses_the_field(visit: Visit) -> None:
    page = visit.page
    assert page.locator("#lora-min_snr_gamma").count() == 0
    page.fill("#lora-search input", "min snr")
    page.click(".k-result")
    expect(page.locator("#lora-min_snr_gamma input")).to_be_focused()
    page.fill("#lora-search input", "--huber_c")
    page.keyboard.press("Enter")
    # it does not apply with the usual loss, so it is shown switched off and says why
    expect(page.locator("#lora-huber_c .k-in")).to_be_disabled()
    expect(page.locator("#lora-huber_c-note")).to_contain_text("Applies with")
    expect(page.locator("#lora-loss_type")).to_be_visible()


def test_basic_hides_what_all_shows(visit: Visit) -> None:
    page = visit.page
    shown = page.locator(".k-field:visible")
    assert shown.count() <= 16
    expect(page.locator("#lora-learning_rate")).to_be_visible()
    page.click("#lora-view label:nth-of-type(2)")
    page.click("#lora-page-parameters-button")
    page.locator(".k-group .label-wrap", has_text="Learning rates and schedule").click()
    expect(page.locator("#lora-unet_lr")).to_be_visible()


def test_fields_appear_with_the_choice_they_belong_to(visit: Visit) -> None:
    page = visit.page
    page.click("#lora-view label:nth-of-type(2)")
    page.select_option("#lora-LoRA_type select", "LyCORIS/LoKr")
    page.click("#lora-page-parameters-button")
    for group in ("Network", "LyCORIS"):
        page.locator("#lora-page-parameters .k-group .label-wrap", has_text=group).click()
    expect(page.locator("#lora-factor")).to_be_visible()
    expect(page.locator("#lora-decompose_both")).to_be_visible()
    expect(page.locator("#lora-train_on_input")).to_be_hidden()


def test_a_mistake_is_shown_beside_its_field_and_a_click_leads_there(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-learning_rate input", "fast")
    expect(page.locator("#lora-learning_rate-note")).to_contain_text("must be a number")
    expect(page.locator("#lora-start")).to_be_disabled()
    page.fill("#lora-learning_rate input", "1e-3")
    expect(page.locator("#lora-learning_rate-note")).to_be_empty()
    expect(page.locator("#lora-learning_rate")).to_have_attribute("data-changed", "")
    page.click("#lora-page-folders-button")
    page.locator(".k-problem", has_text="base model").click()
    expect(page.locator("#lora-pretrained_model_name_or_path input")).to_be_focused()


def test_a_change_is_marked_and_undone_with_a_click(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-learning_rate input", "0.5")
    expect(page.locator("#lora-learning_rate .k-reset")).to_have_text("back to 1e-4")
    page.click("#lora-learning_rate .k-reset")
    expect(page.locator("#lora-learning_rate input")).to_have_value("1e-4")
    expect(page.locator("#lora-learning_rate")).not_to_have_attribute("data-changed", "")


def test_a_folder_is_picked_in_the_dialog(visit: Visit, served: Served) -> None:
    page = visit.page
    folder = served.folder / "pictures to pick" / "10_cat"
    folder.mkdir(parents=True, exist_ok=True)
    page.fill("#lora-train_data_dir input", str(folder.parent))
    page.click("#lora-train_data_dir .k-browse")
    page.locator(".k-row", has_text="10_cat").click()
    expect(page.locator(".k-where")).to_contain_text("10_cat")
    page.click(".k-sheet .k-main")
    expect(page.locator("#lora-train_data_dir input")).to_have_value(str(folder))
    page.fill("#lora-train_data_dir input", "/etc")
    page.click("#lora-train_data_dir .k-browse")
    expect(page.locator(".k-sheet .k-said")).to_contain_text("outside")


def test_save_as_and_open_bring_the_same_values(visit: Visit, served: Served) -> None:
    page = visit.page
    page.fill("#lora-output_name input", "kätzchen")
    page.fill("#lora-learning_rate input", "3e-4")
    expect(page.locator("#lora-file")).to_contain_text("2 changes")
    page.click("#lora-saveas")
    page.fill(".k-sheet input[name=name]", str(served.folder / "my file"))
    page.click(".k-sheet .k-main")
    expect(page.locator("#lora-file")).to_have_text("my file.json")
    saved = json.loads((served.folder / "my file.json").read_text(encoding="utf-8"))
    assert saved["output_name"] == "kätzchen" and saved["learning_rate"] == 3e-4
    page.fill("#lora-learning_rate input", "1")
    expect(page.locator("#lora-file")).to_contain_text("1 change")
    page.click("#lora-reload")
    expect(page.locator("#lora-learning_rate input")).to_have_value("3e-4")
    page.fill("#lora-learning_rate input", "4e-4")
    page.keyboard.press("Control+s")
    expect(page.locator("#lora-file")).to_have_text("my file.json")
    assert json.loads((served.folder / "my file.json").read_text(encoding="utf-8"))["learning_rate"] == 4e-4


def test_a_preset_keeps_the_places_the_person_typed(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-output_dir input", "results")
    page.click("#lora-preset input")
    page.get_by_role("option", name="Style (SD 1.5)", exact=True).click()
    expect(page.locator("#lora-file")).to_contain_text("Style")
    expect(page.locator("#lora-output_dir input")).to_have_value("results")


def test_command_and_toml_say_what_will_run(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-learning_rate input", "7e-4")
    page.click("#lora-toml")
    expect(page.locator("#k-toml")).to_contain_text("learning_rate = 0.0007")
    page.keyboard.press("Escape")
    page.click("#lora-command")
    expect(page.locator("#k-command")).to_contain_text("sd_scripts/train_network.py")
    page.keyboard.press("Escape")
    page.click("#lora-compare")
    expect(page.locator(".k-sheet .k-table")).to_contain_text("7e-4")


def test_pictures_are_shown_with_caption_and_bucket(visit: Visit, photos: Path, served: Served) -> None:
    import shutil

    page = visit.page
    folder = served.folder / "photos"
    if not folder.exists():
        shutil.copytree(photos, folder)
    page.fill("#lora-train_data_dir input", str(folder))
    page.click("#lora-page-folders-button")
    expect(page.locator("#lora-dataset figure")).to_have_count(4)
    expect(page.locator("#lora-dataset")).to_contain_text("a cup of coffee")
    page.wait_for_function(
        "[...document.querySelectorAll('#lora-dataset img')].every((i) => i.complete && i.naturalWidth)"
    )
    page.locator("#lora-dataset figure", has_text="tabby cat").click()
    expect(page.locator(".k-sheet ol li")).to_have_count(5)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark"), (390, "light")])
def test_nothing_scrolls_sideways_and_start_is_reachable(
    chromium: Browser, served: Served, width: int, scheme: str
) -> None:
    visit = Visit(chromium, served.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    for tab in ("lora", "jobs", "about"):
        page.click(f"#top-{tab}-button")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
    page.click("#top-lora-button")
    expect(page.locator("#lora-start")).to_be_in_viewport()
    visit.close()


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit.page
    nameless = page.evaluate(
        """[...document.querySelectorAll('input, textarea, select, button')].filter((e) => e.offsetParent &&
        !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.textContent.trim() || e.closest('label')))
        .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_empty_fields_are_asked_for_calmly_until_start_is_pressed(visit: Visit) -> None:
    page = visit.page
    model = page.locator("#lora-pretrained_model_name_or_path")
    expect(model).to_have_attribute("data-say", "needed")
    expect(page.locator("#lora-plan .k-needed")).to_have_count(3)
    page.fill("#lora-output_dir input", "results")
    expect(page.locator("#lora-plan .k-needed")).to_have_count(2)
    page.fill("#lora-output_dir input", "")
    expect(page.locator("#lora-output_dir")).to_have_attribute("data-say", "error")
    page.fill("#lora-output_dir input", "results")
    expect(page.locator("#lora-start")).to_be_enabled()
    page.keyboard.press("Control+Enter")
    expect(model).to_have_attribute("data-say", "error")
    expect(model.locator("input")).to_be_focused()
    expect(page.locator("#lora-start")).to_be_disabled()


def test_the_form_survives_a_reload_and_has_a_way_back(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-output_name input", "kätzchen")
    page.fill("#lora-learning_rate input", "fast")
    expect(page.locator("#lora-learning_rate")).to_have_attribute("data-say", "error")
    page.wait_for_timeout(500)
    page.reload()
    expect(page.locator("#lora-output_name input")).to_have_value("kätzchen")
    expect(page.locator("#lora-learning_rate input")).to_have_value("fast")
    expect(page.locator("#lora-learning_rate")).to_have_attribute("data-say", "error")
    page.click("#lora-reload")
    expect(page.locator("#lora-output_name input")).to_have_value("")
    expect(page.locator("#lora-learning_rate input")).to_have_value("1e-4")
    expect(page.locator("#lora-file")).to_have_text("Undo Subject (SD 1.5)")
    page.click("#lora-file button")
    expect(page.locator("#lora-output_name input")).to_have_value("kätzchen")


def test_pictures_are_added_and_the_ending_of_captions_mended(visit: Visit, served: Served) -> None:
    page = visit.page
    folder = served.folder / "my pictures" / "5_cat"
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(picture, "PNG")
    page.fill("#lora-train_data_dir input", str(folder))
    expect(page.locator("#lora-train_data_dir")).to_have_attribute("data-say", "error")
    page.click("#lora-page-folders-button")
    with page.expect_file_chooser() as chooser:
        page.click("#lora-dataset [data-add]")
    files = {"a.png": picture.getvalue(), "a.cap": b"a cat", "b.png": b"no picture"}
    kinds: Any = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files.items()]
    chooser.value.set_files(kinds)
    expect(page.locator(".k-sheet")).to_contain_text("b.png is not a picture")
    page.keyboard.press("Escape")
    expect(page.locator("#lora-dataset figure")).to_have_count(1)
    assert sorted(path.name for path in folder.iterdir()) == ["a.cap", "a.png"]
    page.click("#lora-page-main-button")
    mend = page.locator("#lora-plan .k-link", has_text="Use .cap")
    mend.click()
    expect(mend).to_have_count(0)
    expect(page.locator("#lora-plan")).to_contain_text("There is one picture only")


def test_what_does_not_apply_is_shown_switched_off_with_the_reason(visit: Visit) -> None:
    page = visit.page
    page.click("#lora-view label:nth-of-type(2)")
    page.select_option("#lora-LoRA_type select", "LyCORIS/LoKr")
    page.click("#lora-page-parameters-button")
    line = page.locator(".k-group", has_text="LyCORIS").locator(".k-more [data-more]").first
    page.locator(".k-group .label-wrap", has_text="LyCORIS").click()
    line.click()
    off = page.locator(".k-grid[data-all] .k-field[data-off]").first
    expect(off.locator(".k-in")).to_be_disabled()
    expect(off.locator(".k-note")).to_contain_text("Applies with")


def test_a_section_goes_back_to_the_opened_file_at_once(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-network_dim input", "48")
    page.fill("#lora-seed input", "7")
    page.locator("#lora-grid-0 [data-undo][data-to=file]").click()
    expect(page.locator("#lora-network_dim input")).to_have_value("16")
    expect(page.locator("#lora-seed input")).to_have_value("42")


def test_the_language_is_chosen_in_the_head_and_the_form_stays(visit: Visit) -> None:
    page = visit.page
    page.fill("#lora-output_name input", "kätzchen")
    page.select_option(".k-language", "de")
    expect(page.locator("html")).to_have_attribute("lang", "de")
    expect(page.locator("#lora-start")).to_have_text("Training starten")
    expect(page.locator("#lora-output_name input")).to_have_value("kätzchen")
    # what is said while the page is used is in that language too
    expect(page.locator("#lora-verdict")).to_contain_text("Vor dem Start fehlen noch")


def test_the_last_tab_is_open_again(visit: Visit) -> None:
    page = visit.page
    page.click("#top-finetune-button")
    expect(page.locator("#finetune-verdict")).to_contain_text(".")
    page.wait_for_timeout(1500)  # a page left while it waits for an answer complains in the console
    page.reload()
    expect(page.locator("#finetune-form")).to_be_visible()
