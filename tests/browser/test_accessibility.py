"""axe-core and the accessibility tree: every tab and sub-tab with all its groups open, light and dark."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from sd_scripts.schema.tabs import TABS

from .conftest import Served, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TRAINING = list(TABS)
OTHERS = ["utilities", "jobs", "settings", "about"]
# Rules on the structure of a page and its controls; colours are looked at in both schemes.
RUN = """(options) => axe.run(document, options).then((found) => found.violations.map((each) => ({
  id: each.id, impact: each.impact, where: each.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)) })))"""
WHOLE: dict[str, Any] = {"resultTypes": ["violations"]}
COLOURS: dict[str, Any] = {"resultTypes": ["violations"], "runOnly": {"type": "rule", "values": ["color-contrast"]}}
CONTROLS = {
    *("button", "checkbox", "combobox", "link", "listbox", "menuitem", "option", "radio", "searchbox", "slider"),
    *("spinbutton", "switch", "tab", "textbox"),
}
OPEN_ALL = """() => {
  for (const each of document.querySelectorAll('.k-group > .label-wrap, .k-form details:not([open])'))
  if (each.offsetParent && !each.matches('.open')) each.matches('details') ? each.open = true : each.click(); }"""
SUBTABS = """(seen) => [...document.querySelectorAll('#top [role=tabpanel] [role=tab]')]
  .filter((tab) => tab.offsetParent && !seen.includes(tab.id)).map((tab) => tab.id)"""
# Sub-tabs that were opened stay in the page; shown all at once, one look is enough.
SHOW_ALL = "#top-%s [role=tabpanel] { display: block !important }"


def axe_source() -> str:
    """axe-core's script, from the package that carries it."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["light", "dark"])
def looked(request: pytest.FixtureRequest, chromium: Browser, served: Served) -> Iterator[Visit]:
    """A window with axe in it."""
    made = Visit(chromium, served.url, color_scheme=request.param, reduced_motion="reduce")
    made.page.evaluate(axe_source())
    made.page.evaluate("axe.configure({})")
    yield made
    made.close()
    assert made.errors == []


def violations(page: Page, options: dict[str, Any]) -> list[str]:
    """What is seriously wrong with the page as it stands."""
    found = page.evaluate(RUN, options)
    return [json.dumps(each) for each in found if each["impact"] in ("serious", "critical")]


def nameless(page: Page) -> list[str]:
    """Controls in the accessibility tree that a screen reader could only call by their kind."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        f"{node['role']['value']} {node.get('properties', [])}"[:200]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in CONTROLS
        and not str(node.get("name", {}).get("value", "")).strip()
    ]


def open_everything(page: Page) -> None:
    """Every sub-tab, also those inside others, and every group on them."""
    seen: list[str] = []
    page.evaluate(OPEN_ALL)
    while fresh := page.evaluate(SUBTABS, seen):
        page.click(f"#{fresh[-1]}")  # the innermost, as it goes away with the one around it
        page.wait_for_timeout(50)
        page.evaluate(OPEN_ALL)
        seen.append(fresh[-1])


@pytest.mark.parametrize("tab", [*TRAINING, *OTHERS])
def test_nothing_serious_and_every_control_named(tab: str, looked: Visit) -> None:
    page = looked.page
    dark = page.evaluate("document.body.classList.contains('dark')")
    page.click(f"#top-{tab}-button")
    if tab in TRAINING:
        expect(page.locator(f"#{tab}-verdict")).to_contain_text(".")
        page.locator(f"#{tab}-view label").nth(1).click()
    page.wait_for_timeout(200)
    if not dark:
        open_everything(page)
        style = page.add_style_tag(content=SHOW_ALL % tab)
        page.wait_for_timeout(200)
    found = [*violations(page, COLOURS if dark else WHOLE), *nameless(page)]
    if not dark:
        style.evaluate("(element) => element.remove()")
    assert found == []
