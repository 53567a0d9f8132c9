"""The toolbar in a real Chromium: presets of one's own, two configurations side by side, dropped files, keyboard."""

from __future__ import annotations

import json
import struct
from typing import Any

from playwright.sync_api import Page, expect

from .conftest import Served, Visit

DROP = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  const drop = new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector('.k-left').dispatchEvent(drop);
}"""


def drop(page: Page, name: str, content: bytes) -> None:
    """Let go of a file over the form, as a file manager does."""
    page.evaluate(DROP, [list(content), name])


def saved(tab: str, **values: Any) -> bytes:
    return json.dumps({"format": "kohya-gui", "version": 1, "tab": tab, **values}).encode()


def test_a_preset_of_ones_own_is_saved_compared_renamed_deleted_and_brought_back(visit: Visit, served: Served) -> None:
    page, sheet = visit.page, visit.page.locator(".k-sheet")
    page.fill("#lora-learning_rate input", "7e-4")
    page.fill("#lora-output_name input", "kitten")
    page.click("#lora-presets")
    sheet.locator("summary").first.click()
    sheet.get_by_label("Name", exact=True).fill("Mine")
    sheet.get_by_label("What it is for").fill("For <b>kittens</b>.")
    page.keyboard.press("Enter")
    expect(sheet.locator("[role=status]")).to_contain_text("Mine is saved")
    expect(sheet).to_contain_text("For <b>kittens</b>.")
    (path,) = (served.folder / "user_presets" / "lora").glob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["learning_rate"] == 7e-4 and "output_name" not in kept

    sheet.locator("[data-ask=compare][data-right='own:Mine']").click()
    expect(sheet.locator(".k-diff")).to_contain_text("kitten")
    sheet.get_by_label("Right").select_option("defaults")
    row = sheet.locator("tr", has_text="--learning_rate")
    expect(row).to_contain_text("2e-6")
    row.get_by_role("button", name="Take this value").click()
    expect(row).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#lora-learning_rate input")).to_have_value("2e-6")

    page.click("#lora-preset input")
    page.get_by_role("option", name="Yours: Mine").click()
    expect(page.locator("#lora-learning_rate input")).to_have_value("7e-4")
    expect(page.locator("#lora-output_name input")).to_have_value("kitten")
    page.click("#lora-presets")
    sheet.locator("[data-ask=preset_renaming]").click()
    sheet.get_by_label("New name").fill("Ours")
    page.keyboard.press("Enter")
    expect(sheet.locator("[role=status]")).to_contain_text("It is called Ours now")
    sheet.locator("[data-ask=preset_delete]").click()
    expect(sheet.locator("[role=status]")).to_contain_text("Ours is deleted")
    assert not list(path.parent.glob("*.json"))
    sheet.get_by_role("button", name="Undo").click()
    expect(sheet.locator("[role=status]")).to_contain_text("Ours is back")
    assert [each.name for each in path.parent.glob("*.json")] == ["Ours.json"]


def test_files_let_go_over_the_form_open_where_they_belong(visit: Visit) -> None:
    page = visit.page
    notes = {"ss_network_dim": "12", "ss_network_module": "networks.lora", "ss_learning_rate": "0.0003"}
    header = json.dumps({"__metadata__": notes}).encode()
    drop(page, "cat.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 1000)
    expect(page.locator(".k-sheet")).to_contain_text("settings were taken from cat.safetensors")
    page.keyboard.press("Escape")
    expect(page.locator("#lora-network_dim input")).to_have_value("12")
    drop(page, "words.json", saved("textual_inversion", token_string="mycat4", train_batch_size=3))
    expect(page.locator("#textual_inversion-token_string input")).to_have_value("mycat4")
    expect(page.locator("#textual_inversion-file")).to_contain_text("words.json")
    expect(page.locator("#lora-network_dim input")).to_be_hidden()


def test_the_keyboard_and_the_memory_of_the_browser_on_another_tab(visit: Visit, served: Served) -> None:
    page = visit.page
    page.click("#top-finetune-button")
    page.fill("#finetune-learning_rate input", "9e-6")
    expect(page.locator("#finetune-file")).to_contain_text("1 change")
    page.keyboard.press("Control+s")
    page.fill(".k-sheet input[name=name]", str(served.folder / "tune"))
    page.keyboard.press("Enter")
    expect(page.locator("#finetune-file")).to_have_text("tune.json")
    page.fill("#finetune-learning_rate input", "8e-6")
    expect(page.locator("#finetune-file")).to_contain_text("1 change")
    page.keyboard.press("Control+s")
    expect(page.locator("#finetune-file")).to_have_text("tune.json")
    assert json.loads((served.folder / "tune.json").read_text(encoding="utf-8"))["learning_rate"] == 8e-6
    page.fill("#finetune-learning_rate input", "7e-6")
    expect(page.locator("#finetune-file")).to_contain_text("1 change")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#finetune-verdict")).to_contain_text("to mend before it can start")
    page.reload()
    page.click("#top-finetune-button")
    expect(page.locator("#finetune-learning_rate input")).to_have_value("7e-6")
    expect(page.locator("#finetune-file")).to_contain_text("tune.json, 1 change")
    page.click("#finetune-open")
    expect(page.locator(".k-sheet")).to_contain_text("Opened last")
    page.locator(".k-sheet .k-row", has_text="tune.json").first.click()
    expect(page.locator("#finetune-learning_rate input")).to_have_value("8e-6")
