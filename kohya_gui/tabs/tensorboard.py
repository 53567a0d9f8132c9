"""TensorBoard in the Jobs tab: a folder of logs, start, stop, and a link that opens it."""

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from kohya_gui import widgets
from kohya_gui.services import Services
from kohya_gui.tabs.message import warn
from kohya_gui.tensorboard import Board
from sd_scripts.schema.errors import UserError

ADDRESS = "kohya/tensorboard/"


class TensorboardBar:
    """One line of the Jobs tab. What runs belongs to the whole page, so every session shows the same."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.words = services.words
        self.board = services.tensorboard

    def build(self) -> None:
        """Make the line."""
        with gr.Row(elem_classes=["k-bar", "k-card"], elem_id="jobs-tensorboard"):
            self.folder = gr.Textbox(
                label=self.words("Log folder for TensorBoard"),
                placeholder=self.words("Empty: the folder of the newest job with logs"),
                elem_id="tensorboard-folder",
                max_lines=1,
                scale=3,
            )
            self.start = gr.Button(self.words("Start TensorBoard"), elem_id="tensorboard-start", min_width=0, scale=0)
            self.stop = gr.Button(self.words("Stop TensorBoard"), elem_id="tensorboard-stop", min_width=0, scale=0)
            self.said = widgets.html("", elem_id="tensorboard-said", elem_classes=["k-quiet"])

    def wire(self, page: gr.Blocks) -> None:
        """Connect the buttons and the load of the page."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.start.click(self._start, [self.folder], [self.said], trigger_mode="once", **quiet)
        self.stop.click(self._stop, None, [self.said], **quiet)
        page.load(self._look, None, [self.said], **quiet)

    def _look(self) -> str:
        return self._html(self.board.running())

    def _start(self, folder: str) -> Iterator[str]:
        words = self.words
        yield f"<span>{words('TensorBoard is starting.')}</span>"
        try:
            yield self._html(self.board.start((folder or "").strip() or self.newest_logs()))
        except UserError as error:
            warn(words.error(error))
            yield f"<span>{escape(words.error(error))}</span>"

    def _stop(self) -> str:
        self.board.stop()
        return self._html(None)

    def newest_logs(self) -> str:
        """The log folder of the newest job that has one; "" for none."""
        store = self.services.jobs
        for view in sorted(store.list(), key=lambda view: -view.created):
            found = str(store.values(view.id).get("logging_dir") or "").strip()
            if found:
                return found
        return ""

    def _html(self, board: Board | None) -> str:
        words = self.words
        if board is None:
            return f"<span>{words('TensorBoard is not running.')}</span>"
        if not board.ready:
            return f"<span>{words('TensorBoard is starting.')}</span>"
        shown = words("shows {folder}", folder=board.folder)
        return f'<a class="k-link" href="{ADDRESS}" target="_blank">{words("Open TensorBoard")}</a>, {escape(shown)}'
