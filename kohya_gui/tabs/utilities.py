"""The Utilities tab: captioning, grouping and preparation. Every tool is a record of `tools.TOOLS`."""

from typing import Any

import gradio as gr

from kohya_gui import tools, widgets
from kohya_gui.services import Services
from kohya_gui.tabs.folder_panels import BalancePanel, FolderPanel
from kohya_gui.tabs.manual_caption import ManualPanel
from kohya_gui.tabs.message import channel, join_script, tell, warn
from kohya_gui.tabs.tool_form import QUIET, Where
from kohya_gui.tabs.tool_panel import ToolPanel
from kohya_gui.tools import SHELVES, Shelf
from sd_scripts.schema.errors import UserError

TOP = "utilities"


class UtilitiesTab:
    """All tools that belong to no training tab. `facts` belongs into the page's facts."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.words = services.words
        self.panels = {
            name: ToolPanel(tools.TOOLS[name], services, _where(shelf, name))
            for shelf in SHELVES
            for name in shelf.tools
        }
        self.manual = ManualPanel(services, Where(TOP, ("utilities-captioning", "utilities-manual_caption")))
        self.folders = FolderPanel(TOP, services, Where(TOP, ("utilities-folders",)))
        self.balance = BalancePanel(TOP, services, Where(TOP, ("utilities-balance",)))

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Name of a form -> what the page's script knows about its fields."""
        forms = [panel.fields for panel in self.panels.values()]
        forms += [self.manual.fields, self.folders.fields, self.balance.fields]
        return {form.name: form.facts for form in forms}

    # ------------------------------------------------------------------ building

    def build(self) -> None:
        """Make the tab."""
        with gr.Column(elem_id="utilities-tab", elem_classes=["k-tab", "k-utilities"]):
            with gr.Tabs(elem_id="utilities-pages", elem_classes=["k-pages"], overflow_behavior="wrap"):
                for shelf in SHELVES:
                    self._build_shelf(shelf)
                with gr.Tab(self.words("Folder preparation"), elem_id="utilities-folders"), _card():
                    self.folders.build(fills_form=False)
                with gr.Tab(self.words("Dataset balancing"), elem_id="utilities-balance"), _card():
                    self.balance.build()
            self.channel = widgets.html(
                value={},
                html_template="",
                elem_id="utilities-channel",
                elem_classes=["k-channel"],
                js_on_load=join_script(TOP),
            )

    def _build_shelf(self, shelf: Shelf) -> None:
        with gr.Tab(self.words(shelf.title), elem_id=f"utilities-{shelf.name}"):
            if len(shelf.tools) == 1:
                self.panels[shelf.tools[0]].build()
                return
            with gr.Tabs(elem_classes=["k-subpages"], overflow_behavior="wrap"):
                for name in shelf.tools:
                    with gr.Tab(self.words(tools.TOOLS[name].title), elem_id=f"utilities-{name}"):
                        self.panels[name].build()
                if shelf.manual:
                    with gr.Tab(self.words("Manual"), elem_id="utilities-manual_caption"):
                        self.manual.build()

    def wire(self, page: gr.Blocks) -> None:
        """Connect everything; `page` is the Blocks of the page."""
        del page  # nothing here needs the page's load
        for panel in self.panels.values():
            panel.wire()
        self.manual.wire()
        self.folders.wire()
        self.balance.wire()
        inputs = [part for panel in self.panels.values() for part in panel.fields.form.inputs]
        self.channel.click(self._act, None, [self.channel, *inputs], **QUIET)

    # ------------------------------------------------------------------ what happens

    def _act(self, event: gr.EventData) -> list[Any]:
        asked: dict[str, Any] = dict(event._data or {})
        chosen, message = "", channel()
        values: dict[str, Any] = {}
        if asked.get("do") == "open_job":
            try:
                chosen, values = self._job(str(asked.get("job", "")))
                # the form's own channel may not be made yet: its sub-tab opens by going there
                panel = self.panels[chosen]
                message = channel(form=panel.name, go=str(asked.get("go") or panel.tool.keys[0]))
            except UserError as error:
                warn(self.words.error(error))
        updates = [panel.opened(values) if name == chosen else panel.left() for name, panel in self.panels.items()]
        return [message, *(item for part in updates for item in part)]

    def _job(self, job: str) -> tuple[str, dict[str, Any]]:
        """The tool and the values of a job; one that still waits leaves the queue, so that it does not run twice."""
        store = self.services.jobs
        view, values = store.get(job), store.values(job)
        tool = tools.find_tool(str(store.spec(job).get("command")))
        if view.state == "waiting":
            store.remove(job)
            tell(self.words("{name} has left the queue; add it again when it is right.", name=view.name))
        return tool.name, values


def _card() -> gr.Column:
    return gr.Column(elem_classes=["k-card"])


def _where(shelf: Shelf, name: str) -> Where:
    tabs = [f"utilities-{shelf.name}"] + ([f"utilities-{name}"] if len(shelf.tools) > 1 else [])
    return Where(TOP, tuple(tabs))
