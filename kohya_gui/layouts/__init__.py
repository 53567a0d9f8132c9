"""Where each option stands on each training tab: one module a tab, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass

from kohya_gui.layout import Page
from kohya_gui.layouts import controlnet, dreambooth, finetune, lllite, lora, shared, textual_inversion

__all__ = ["LAYOUTS", "Layout"]


@dataclass(frozen=True)
class Layout:
    """A training tab's pages.

    `rest_pages` says where options stand that no page names, `set_by_page` which options are no fields; a form opens
    with the preset `start_preset`.
    """

    pages: tuple[Page, ...]
    rest_pages: Mapping[str, str]
    set_by_page: frozenset[str]
    start_preset: str = ""


LAYOUTS: dict[str, Layout] = {
    "dreambooth": Layout(
        dreambooth.PAGES, dreambooth.REST_PAGES, shared.SET_BY_PAGE, "Subject with prior preservation (SD 1.5)"
    ),
    "lora": Layout(lora.PAGES, lora.REST_PAGES, shared.SET_BY_PAGE, "Subject (SD 1.5)"),
    "textual_inversion": Layout(
        textual_inversion.PAGES, textual_inversion.REST_PAGES, shared.SET_BY_PAGE, "Object (SD 1.5)"
    ),
    "finetune": Layout(finetune.PAGES, finetune.REST_PAGES, shared.SET_BY_PAGE, "Captioned set (SD 1.5)"),
    "controlnet": Layout(
        controlnet.PAGES,
        controlnet.REST_PAGES,
        shared.SET_BY_PAGE,
        "Edges or another control (SD 1.5)",
    ),
    "lllite": Layout(lllite.PAGES, lllite.REST_PAGES, shared.SET_BY_PAGE, "Edges or another control (SDXL)"),
}
"""Training tab -> what stands where on it."""
