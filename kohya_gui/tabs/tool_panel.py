"""Start, Dry run and Undo of a panel, and the job behind them: what the preparations have in common."""

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from kohya_gui import job_plan, widgets
from kohya_gui.job_view import JobView
from kohya_gui.localization import Words
from kohya_gui.prepare.undo import can_undo, undo_job
from kohya_gui.services import Services
from kohya_gui.tabs import results
from kohya_gui.tabs.jobs_html import meter
from kohya_gui.tabs.tool_form import QUIET
from sd_scripts.schema.errors import UserError

TICK_SECONDS = 1.0


def buttons(name: str, words: Words, start: str) -> tuple[gr.Row, tuple[gr.Button, gr.Button, gr.Button]]:
    """A row with Start, Dry run and Undo; `start` is the text of the first, already in the page's language."""
    with gr.Row(elem_classes=["k-start", "k-tool-buttons"]) as row:
        run = gr.Button(start, variant="primary", elem_id=f"{name}-start", min_width=0, scale=0)
        dry = gr.Button(words("Dry run"), elem_id=f"{name}-dry", min_width=0, scale=0)
        undo = gr.Button(words("Undo"), elem_id=f"{name}-undo", min_width=0, scale=0)
    return row, (run, dry, undo)


class Following:
    """The job behind a panel: started, followed with a sentence, and taken back."""

    def __init__(self, name: str, command: str, services: Services) -> None:
        self.name = name
        self.command = command
        self.services = services
        self.words = services.words

    def build(self) -> None:
        """Make the place for what it says."""
        self.result = widgets.html("", elem_id=f"{self.name}-result", elem_classes=["k-result-card"])
        self.job = gr.State("")
        self.timer = gr.Timer(TICK_SECONDS, active=False)

    @property
    def outputs(self) -> list[Any]:
        """What `start` and `refused` update."""
        return [self.result, self.job, self.timer]

    def wire(self, undo: gr.Button) -> None:
        """Follow the job, and take the last one back on a click."""
        self.timer.tick(self._follow, [self.job], [self.result, self.timer], trigger_mode="once", **QUIET)
        undo.click(self._undo, None, [self.result], trigger_mode="once", **QUIET)

    def start(self, values: Mapping[str, Any], title: str) -> list[Any]:
        """Make a job of the values and start it if it may; the updates of `outputs`.

        Raises:
            UserError: if it cannot be made.
        """
        store = self.services.jobs
        job = store.create(job_plan.build(self.command, values), values, title)
        store.tick()
        return [self._follow(job.id)[0], job.id, gr.Timer(active=True)]

    def refused(self, error: UserError) -> list[Any]:
        """The updates of `outputs` that say what stands in the way."""
        return [results.mistake(error, self.words), gr.skip(), gr.skip()]

    def _follow(self, job: str) -> list[Any]:
        try:
            view = self.services.jobs.get(job)
        except UserError as error:
            return [results.mistake(error, self.words), gr.Timer(active=False)]
        return [progress(view, self.words), gr.Timer(active=not view.over)]

    def _undo(self) -> str:
        try:
            return results.undone(undo_job(self._last().folder, self.services.roots), self.words)
        except UserError as error:
            return results.mistake(error, self.words)

    def _last(self) -> JobView:
        """The newest job of this command whose files can be put back."""
        store = self.services.jobs
        for view in sorted(store.list(), key=lambda view: -view.created):
            if store.spec(view.id).get("command") == self.command and can_undo(view.folder):
                if view.over:
                    return view
                raise UserError(f"{view.name} is still at work.", hint="Wait until it is over, or end it in Jobs.")
        raise UserError("There is nothing to undo.")


def progress(view: JobView, words: Words) -> str:
    """How far a tool's job is, or what came of it."""
    jobs = f'<button class="k-link" data-top="jobs">{words("Look at the jobs")}</button>'
    if view.state == "waiting":
        text, kind = words("number {n} in the queue", n=view.position or 1), ""
    elif view.running:
        counted = f" {view.phase_done:,} / {view.phase_of:,}" if view.phase_of and view.phase_done is not None else ""
        text, kind = words(view.phase or "starting") + counted, ""
    elif view.state == "done":
        text, kind = words.said(view.end_reason) or words("done"), "good"
    elif view.error:
        text, kind = f"{words.said(view.error)} {words.said(view.hint)}".strip(), "error"
    else:
        text, kind = words(view.state), ""
    mark = f" k-say-{kind}" if kind else ""
    bar = meter(view) if view.running and view.phase_of else ""
    return f'<p class="k-result-line{mark}" role="status">{bar}{escape(text)} {jobs}</p>'
