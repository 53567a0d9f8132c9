"""LoRA files merged, verified and labelled in the browser, with real jobs and real files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from sd_scripts.schema.headers import read_safetensors_header

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def networks(served: Served) -> Path:
    """A folder that is open to the page, with two small LoRA files of Stable Diffusion 1 in it."""
    folder = served.folder / "my networks"
    folder.mkdir()
    for seed, name in enumerate(("cat", "style")):
        draw = torch.Generator().manual_seed(seed)
        tensors = {}
        for block in ("down_blocks_1", "up_blocks_2"):
            layer = f"lora_unet_{block}_attentions_0_transformer_blocks_0_attn2_to_k"
            tensors[f"{layer}.lora_down.weight"] = torch.randn(2, 768, generator=draw)
            tensors[f"{layer}.lora_up.weight"] = torch.randn(640, 2, generator=draw)
            tensors[f"{layer}.alpha"] = torch.tensor(1.0)
        save_file(tensors, str(folder / f"{name}.safetensors"), {"modelspec.title": f"<i>{name}</i>"})
    return folder


def fill(page: Page, form: str, **values: str) -> None:
    for key, text in values.items():
        page.fill(f"#{form}-{key} .k-in", text)


def test_from_two_networks_to_a_verified_and_labelled_one(visit: Visit, networks: Path) -> None:
    page = visit.page
    page.click("#lora-page-tools-button")
    page.locator(".k-tool-links").get_by_role("button", name="Merge LoRA", exact=True).click()
    form = "tool_merge_lora"
    expect(page.locator(f"#{form}-sd_model .k-in")).to_be_focused()
    fill(page, form, lora_a_model=str(networks / "cat.safetensors"), ratio_a="0.7")
    expect(page.locator(f"#{form}-lora_a_model .k-note")).to_have_text("LoRA for Stable Diffusion 1.x, rank 2, 23 kB")
    fill(page, form, ratio_a="0.7")
    page.click(f"#{form}-start")
    expect(page.locator(f"#{form}-result")).to_contain_text("Save to is missing. Say where to save.")
    page.wait_for_timeout(1200)  # the look that the last change asked for does not take the sentence away
    expect(page.locator(f"#{form}-save_to .k-note")).to_have_text("Save to is missing. Say where to save.")
    fill(page, form, lora_b_model=str(networks / "style.safetensors"), ratio_b="0.4")
    fill(page, form, save_to=f"{networks.parent}/")
    page.click(f"#{form}-save_to .k-browse")
    page.locator(".k-row", has_text="my networks").click()
    page.fill(".k-sheet [name=name]", "both")
    page.click(".k-sheet .k-main")
    expect(page.locator(f"#{form}-save_to .k-in")).to_have_value(str(networks / "both"))
    page.click(f"#{form}-dry")
    expect(page.locator(f"#{form}-result")).to_contain_text("both.safetensors")
    page.click(f"#{form}-start")
    expect(page.locator(f"#{form}-result a", has_text="Download")).to_be_visible()
    both = networks / "both.safetensors"
    assert read_safetensors_header(both).shapes

    page.fill("#utilities-search input, #utilities-search textarea", "show all tensors")
    page.click(".k-results .k-result")
    form = "tool_verify_lora"
    expect(page.locator(f"#{form}-show_all_keys .k-in")).to_be_focused()
    fill(page, form, file=str(both))
    page.click(f"#{form}-start")
    drawing = page.get_by_role("img", name="Norm of the change by block")
    expect(drawing).to_be_visible()
    assert drawing.locator("rect").count() == 2
    expect(page.locator(f"#{form}-result table tbody tr")).to_have_count(2)

    page.click("#utilities-metadata-button")
    form = "tool_edit_metadata"
    fill(page, form, model=str(networks / "cat.safetensors"))
    expect(page.locator(f"#{form}-title .k-note")).to_have_text("Now: <i>cat</i>")
    page.click(f"#{form}-dry")
    expect(page.locator(f"#{form}-result .k-notes-table")).to_contain_text("<i>cat</i>")
    page.fill(f"#{form}-result .k-filter", "no such note")
    expect(page.locator(f"#{form}-result [data-row]").first).to_be_hidden()
    fill(page, form, model=str(both), title="Cat & style", more="my.note=1")
    page.click(f"#{form}-start")
    expect(page.locator(f"#{form}-result .k-say-good")).to_be_visible()
    notes = read_safetensors_header(both).metadata
    assert (notes["modelspec.title"], notes["my.note"]) == ("Cat & style", "1")
    page.click(f"#{form}-undo")
    expect(page.locator(f"#{form}-result")).to_contain_text("Undone")
    assert "my.note" not in read_safetensors_header(both).metadata

    page.reload()
    page.click("#top-jobs-button")
    row = visit.job("Merge LoRA both.safetensors")
    expect(row).to_contain_text("done")
    expect(row.locator("a", has_text="Download")).to_be_visible()
    # a result is a whole sentence with a path in it; it does not push the buttons out of sight
    assert (
        page.evaluate(
            "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('#jobs-table'))"
        )
        <= 0
    )
    row.get_by_text("Edit").click()
    expect(page.locator("#tool_merge_lora-ratio_b .k-in")).to_have_value("0.4")
    page.click("#tool_merge_lora-undo")
    expect(page.locator("#tool_merge_lora-result h2")).to_have_text("Undone")
    assert not both.exists()


@pytest.mark.parametrize("width", [800, 400])
def test_tools_fit_on_a_narrow_screen(chromium: Browser, served: Served, width: int) -> None:
    visit = Visit(chromium, served.url, viewport={"width": width, "height": 900})
    page = visit.page
    page.click("#top-utilities-button")
    for shelf, tool in (("lora_tools", "merge_lora"), ("models", "merge_models"), ("metadata", "")):
        page.click(f"#utilities-{shelf}-button")
        if tool:
            page.click(f"#utilities-{tool}-button")
        name = tool or "edit_metadata"
        start = page.locator(f"#tool_{name}-start")
        expect(start).to_be_visible()
        start.hover()
        # white words on the colour of the theme, also under the mouse
        expect(start).to_have_css("background-color", "rgb(67, 56, 202)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    visit.close()
    assert visit.errors == []
