"""Every field of every training tab, filled in on the page, saved, opened again after a reload: the same values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from kohya_gui import widgets
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.tabs import TABS, tab_fields

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SUBTABS = """([tab, seen]) => [...document.querySelectorAll(`#${tab}-pages [role=tab]`)]
  .filter((each) => each.offsetParent && each.id.startsWith(`${tab}-page-`) && !seen.includes(each.id))
  .map((each) => each.id)"""
OPEN = """(tab) => { for (const each of document.querySelectorAll(`#${tab}-form .k-group > .label-wrap`))
  if (each.offsetParent && !each.matches('.open')) each.click(); }"""
OPENED = """(tab) => [...document.querySelectorAll(`#${tab}-form .k-group`)]
  .every((each) => !each.offsetParent || each.querySelector('.k-field'))"""
# All fields but those of groups in which nothing applies; these are not offered.
SHOWN = """(tab) => Object.values(kohya.facts[tab]).filter((each) => each.grid >= 0
  && !document.getElementById(each.group)?.dataset.is?.includes('none')).length"""
# As the keyboard would: what stands in the field changes, and the page is told.
FILL = """([tab, wanted]) => Object.entries(wanted).filter(([key, content]) => {
  const input = document.querySelector(`#${tab}-${key} .k-in`);
  if (!input || input.disabled) return false;
  if (input.type === 'checkbox') input.checked = content; else input.value = content;
  input.dispatchEvent(new Event('input', { bubbles: true }));
  return true; }).map(([key]) => key)"""
READ = """([tab, keys]) => Object.fromEntries(keys.map((key) => {
  const input = document.querySelector(`#${tab}-${key} .k-in`);
  return [key, input && (input.type === 'checkbox' ? input.checked : input.value)]; }))"""
# What chooses the kind of base model or of training hides other fields; it stays as it is.
STEERS = ("model_family",)


@pytest.fixture(scope="module")
def window(chromium: Browser, served: Served) -> Iterator[Visit]:
    """One window for all tabs."""
    made = Visit(chromium, served.url)
    yield made
    made.close()
    assert made.errors == []


def other(option: OptionField) -> Any:
    """A value that is allowed and not the default."""
    if option.choices and not option.type.startswith("list"):
        return next((each for each in option.choices if each not in (option.default, option.off, None, "")), None)
    low = option.minimum or 0
    high = low + 5 if option.maximum is None else option.maximum
    made = {"bool": not option.default, "str": "abc", "list[str]": ["a=1"], "list[float]": [0.5]}
    made |= dict.fromkeys(("int", "int_or_float"), int(min(low + 3, high)))
    return made.get(option.type, float(low + (high - low) / 3))


def open_everything(page: Page, tab: str) -> None:
    """The long form with all sub-tabs and groups made."""
    page.locator(f"#{tab}-view label").nth(1).click()
    seen: list[str] = []
    while fresh := page.evaluate(SUBTABS, [tab, seen]):
        page.click(f"#{fresh[-1]}")  # the innermost, as it goes away with the one around it
        seen.append(fresh[-1])
        page.wait_for_timeout(50)
        page.evaluate(OPEN, tab)
        page.wait_for_function(OPENED, arg=tab)


@pytest.mark.parametrize("tab", TABS)
def test_every_field_comes_back(tab: str, window: Visit, served: Served) -> None:
    page, fields = window.page, tab_fields(tab)
    page.click(f"#top-{tab}-button")
    expect(page.locator(f"#{tab}-verdict")).to_contain_text(".")
    open_everything(page, tab)
    made = page.locator(f"#{tab}-form .k-field[id^='{tab}-']").count()
    assert made == page.evaluate(SHOWN, tab)
    wanted = {key: widgets.show(option, other(option)) for key, option in fields.items() if key not in STEERS}
    filled = page.evaluate(FILL, [tab, wanted])
    assert len(filled) > 0.6 * len(fields), sorted(set(fields) - set(filled))
    expect(page.locator(f"#{tab}-file")).to_contain_text("changes")
    page.click(f"#{tab}-saveas")
    page.fill(".k-sheet input[name=name]", str(served.folder / f"all of {tab}"))
    page.click(".k-sheet .k-main")
    expect(page.locator(f"#{tab}-file")).to_have_text(f"all of {tab}.json")
    saved = json.loads((served.folder / f"all of {tab}.json").read_text(encoding="utf-8"))
    secret = {key for key in filled if fields[key].kind == "secret"}
    assert not secret & set(saved)
    kept = [key for key in filled if key not in secret]
    assert page.evaluate(READ, [tab, kept]) == {key: wanted[key] for key in kept}

    page.evaluate("localStorage.clear()")
    page.reload()
    page.click(f"#top-{tab}-button")
    expect(page.locator(f"#{tab}-verdict")).to_contain_text(".")
    page.click(f"#{tab}-open")
    page.locator(".k-sheet .k-row", has_text=f"all of {tab}.json").first.click()
    expect(page.locator(f"#{tab}-file")).to_have_text(f"all of {tab}.json")
    page.keyboard.press("Escape")
    open_everything(page, tab)
    found = page.evaluate(READ, [tab, kept])
    assert {key: found[key] for key in kept if found[key] != wanted[key]} == {}
