"""Dataset preparation inside a training tab: the folders, their balance, or Finetune's metadata."""

from typing import Any

import gradio as gr

from kohya_gui.form import Form
from kohya_gui.services import Services
from kohya_gui.tabs.folder_panels import BalancePanel, FolderPanel
from kohya_gui.tabs.list_panel import ListPanel
from kohya_gui.tabs.tool_form import Where


class PreparationTab:
    """The preparation of one training tab. Its forms have channels of their own: `facts` belongs into the page's."""

    def __init__(self, tab: str, services: Services) -> None:
        self.tab = tab
        self.services = services
        self.words = services.words
        where = Where(tab)
        self.folders = FolderPanel(f"{tab}_prep", services, where)
        self.balance = BalancePanel(f"{tab}_prep", services, where)
        self.lists = ListPanel(f"{tab}_prep", services) if tab == "finetune" else None

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Name of a form -> what the page's script knows about its fields."""
        if self.lists is not None:
            return {}
        return {panel.fields.name: panel.fields.facts for panel in (self.folders, self.balance)}

    def build(self) -> None:
        """Make it inside the training tab's page."""
        if self.lists is not None:
            self.lists.build()
            return
        with gr.Tabs(elem_classes=["k-subpages"], overflow_behavior="wrap"):
            with gr.Tab(self.words("Folder preparation"), elem_id=f"{self.tab}-prep-folders"):
                self.folders.build(fills_form=True)
            with gr.Tab(self.words("Dataset balancing"), elem_id=f"{self.tab}-prep-balance"):
                self.balance.build()

    def wire(self, form: Form, refresh: gr.Button, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Connect everything; `form` is the training form that "Copy to the form" fills, `script` its channel."""
        del refresh  # the training form's own change looks at the plan again
        if self.lists is not None:
            self.lists.wire(form, script, quiet)
            return
        self.folders.wire()
        self.balance.wire()
        self.folders.wire_copy(form, script, quiet)
