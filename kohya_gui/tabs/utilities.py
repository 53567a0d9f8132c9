"""The Utilities tab: captioning, grouping and preparation, LoRA and model files. Every tool is a record of
`tools.TOOLS`."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from kohya_gui import pickers, tools, widgets
from kohya_gui.services import Services
from kohya_gui.tabs.bench import ToolPanel
from kohya_gui.tabs.folder_panels import BalancePanel, FolderPanel
from kohya_gui.tabs.manual_caption import ManualPanel
from kohya_gui.tabs.message import channel
from kohya_gui.tabs.tool_form import Where
from kohya_gui.tools import SHELVES, Shelf
from sd_scripts.schema.errors import UserError

TOP = "utilities"
# the tools answer past Gradio's events: what is sent to this tab is asked of them, too
_JOIN = "kohya.join('utilities', (_, data) => kohya.call('utilities', data), server)"


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
        self._by_form = {panel.name: panel for panel in self.panels.values()}
        self.manual = ManualPanel(services, Where(TOP, ("utilities-captioning", "utilities-manual_caption")))
        self.folders = FolderPanel(TOP, services, Where(TOP, ("utilities-folders",)))
        self.balance = BalancePanel(TOP, services, Where(TOP, ("utilities-balance",)))

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Name of a form -> what the page's script knows about its fields."""
        forms = [self.manual.fields, self.folders.fields, self.balance.fields]
        return {panel.name: panel.facts for panel in self.panels.values()} | {form.name: form.facts for form in forms}

    # ------------------------------------------------------------------ building

    def build(self) -> None:
        """Make the tab."""
        with gr.Column(elem_id="utilities-tab", elem_classes=["k-tab", "k-utilities"]):
            search = self.words("Search the fields of all tools")
            gr.Textbox(
                show_label=False,
                label=search,
                placeholder=search,
                elem_id="utilities-search",
                elem_classes=["k-search"],
                max_lines=1,
            )
            with gr.Tabs(elem_id="utilities-pages", elem_classes=["k-pages"], overflow_behavior="wrap"):
                for shelf in SHELVES:
                    self._build_shelf(shelf)
                with gr.Tab(self.words("Folder preparation"), elem_id="utilities-folders"), _card():
                    self.folders.build(fills_form=False)
                with gr.Tab(self.words("Dataset balancing"), elem_id="utilities-balance"), _card():
                    self.balance.build()
            widgets.html(
                value={},
                html_template="",
                elem_id="utilities-channel",
                elem_classes=["k-channel"],
                js_on_load=_JOIN,
                server_functions=self._server_functions(),
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

    def _server_functions(self) -> list[Callable[[dict[str, Any]], Any]]:
        """What the page's script may call by itself."""

        def act(request: dict[str, Any]) -> dict[str, Any]:
            return self.act(request)

        def browse(request: dict[str, Any]) -> dict[str, str]:
            panel = self._by_form.get(str(request.get("form")))
            return panel.browse(request) if panel else {"title": "", "html": ""}

        def complete(request: dict[str, Any]) -> list[str]:
            return pickers.completions(self.services.roots, request)

        return [act, browse, complete]

    def wire(self, page: gr.Blocks) -> None:
        """Connect the parts that have events; `page` is the Blocks of the page."""
        del page  # nothing here needs the page's load
        self.manual.wire()
        self.folders.wire()
        self.balance.wire()

    # ------------------------------------------------------------------ what happens

    def act(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to what a tool's panel asks for, or to the wish to open a job's values."""
        panel = self._by_form.get(str(asked.get("form")))
        if panel is not None:
            return panel.act(asked)
        if asked.get("do") != "open_job":
            return channel()
        try:
            return self._open_job(str(asked.get("job", "")), str(asked.get("go") or ""))
        except UserError as error:
            return channel(
                sheet={"title": self.words("This job cannot be opened"), "html": _text(self.words.error(error))}
            )

    def _open_job(self, job: str, key: str) -> dict[str, Any]:
        """The values of a job in its form; one that still waits leaves the queue, so that it does not run twice."""
        store = self.services.jobs
        view, values = store.get(job), store.values(job)
        panel = self.panels[tools.find_tool(str(store.spec(job).get("command"))).name]
        if view.state != "waiting":
            return panel.open_job(values, key)
        store.remove(job)
        said = self.words("{name} has left the queue; add it again when it is right.", name=view.name)
        return panel.open_job(values, key, said)


def _text(said: str) -> str:
    return f"<p>{escape(said)}</p>"


def _card() -> gr.Column:
    return gr.Column(elem_classes=["k-card"])


def _where(shelf: Shelf, name: str) -> Where:
    tabs = [f"utilities-{shelf.name}"] + ([f"utilities-{name}"] if len(shelf.tools) > 1 else [])
    return Where(TOP, tuple(tabs))
