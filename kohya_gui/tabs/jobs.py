"""The Jobs tab: everything is read from the job folders, by a timer of this page and at its load alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from kohya_gui import job_plan, widgets
from kohya_gui.job_view import JobView
from kohya_gui.prepare.undo import undo_job
from kohya_gui.services import Services
from kohya_gui.tabs import jobs_html as shown
from kohya_gui.tabs import reports
from kohya_gui.tabs.message import channel, join_script, tell, warn
from kohya_gui.tabs.tensorboard import TensorboardBar
from kohya_gui.tools import PREFIX, TOOLS, is_tool
from sd_scripts.schema.errors import UserError

TICK_SECONDS = 1.0
LOG_LINES = 400


@dataclass(frozen=True)
class Looking:
    """What one session looks at, the hash of what it was sent last, part by part, and of the jobs it saw ended."""

    job: str = ""
    chart: str = "loss"
    prompt: int = 0
    pair: tuple[int, ...] = ()
    sent: Mapping[str, int] = field(default_factory=dict)
    ended: int | None = None


class JobsTab:
    """Queue, progress, curves, samples, files and log. One object for all sessions; what a session looks at is its
    state."""

    PARTS = ("status", "table", "curves", "samples", "files", "log")

    def __init__(self, services: Services, tab_of: Mapping[str, str]) -> None:
        """Args:
        services: jobs, folders, words.
        tab_of: command -> name of the training tab that can open a job's values.
        """
        self.services = services
        self.words = services.words
        self.store = services.jobs
        self.tab_of = dict(tab_of)
        self.tensorboard = TensorboardBar(services)
        self._actions: dict[str, Callable[[str], str | None]] = {
            "stop": lambda job: self.store.request(job, "stop"),
            "save": lambda job: self.store.request(job, "save"),
            "sample": lambda job: self.store.request(job, "sample"),
            "kill": lambda job: self.store.kill(job),
            "resume": lambda job: self.store.resume(job).id,
            "again": lambda job: self.store.run_again(job).id,
            "up": lambda job: self.store.move(job, "up"),
            "down": lambda job: self.store.move(job, "down"),
            "remove": lambda job: self.store.remove(job),
            "undo": self._undo,
        }

    # ------------------------------------------------------------------ building

    def build_status(self) -> None:
        """The progress line for the page's head, and the time of the visit; they stand outside the tabs."""
        self.visit = gr.BrowserState(0.0, storage_key="kohya-visit", secret="kohya-visit")
        self.status = widgets.html(
            "",
            elem_id="jobs-status",
            js_on_load="kohya.progress(props.value); watch('value', () => kohya.progress(props.value))",
        )

    def build_away(self) -> None:
        """The line that says what ended since this browser's last visit; stands above the first tab."""
        self.away = widgets.html("", elem_id="jobs-away")

    def build(self) -> None:
        """Make the tab."""
        send = "element.addEventListener('click', (e) => kohya.act(e, trigger))"
        with gr.Column(elem_id="jobs-tab", elem_classes=["k-tab"]):
            self.table = widgets.html("", elem_id="jobs-table", elem_classes=["k-card"], js_on_load=send)
            with gr.Row(elem_classes=["k-halves"]):
                self.curves = widgets.html("", elem_id="jobs-curves", elem_classes=["k-card"], js_on_load=send)
                self.samples = widgets.html("", elem_id="jobs-samples", elem_classes=["k-card"], js_on_load=send)
            self.files = widgets.html("", elem_id="jobs-files", elem_classes=["k-card"])
            with gr.Column(elem_classes=["k-card", "k-log-card"]):
                with gr.Row(elem_classes=["k-bar"]):
                    widgets.html(f"<h2>{self.words('Log')}</h2>", elem_classes=["k-grow"])
                    self.search = gr.Textbox(
                        label=self.words("Search the log"),
                        show_label=False,
                        placeholder=self.words("Search the log"),
                        elem_id="jobs-search",
                        max_lines=1,
                        min_width=0,
                    )
                    gr.Checkbox(True, label=self.words("Follow"), elem_id="jobs-follow", min_width=0)
                    self.tools = widgets.html("", elem_id="jobs-log-tools")
                self.log = widgets.html("", elem_id="jobs-log", js_on_load="watch('value', () => kohya.follow())")
            self.tensorboard.build()
            self.looking = gr.State(Looking())
            self.script = widgets.html(
                value={},
                html_template="",
                elem_classes=["k-channel"],
                js_on_load=join_script("jobs"),
            )
            self.timer = gr.Timer(TICK_SECONDS)

    def wire(self, page: gr.Blocks) -> None:
        """Connect timer, page load and buttons; `page` is the Blocks of the page."""
        parts = [self.status, self.table, self.curves, self.samples, self.files, self.log, self.tools]
        outputs = [self.looking, self.visit, *parts]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
        self.timer.tick(self._tick, [self.looking, self.search], outputs, trigger_mode="once", **quiet)
        self.tensorboard.wire(page)
        page.load(self._first, [self.looking, self.search], outputs, **quiet)
        page.load(self._greet, [self.visit], [self.away, self.visit], **quiet)
        self.search.change(self._tick, [self.looking, self.search], outputs, trigger_mode="always_last", **quiet)
        for part in (self.table, self.curves, self.samples):
            part.click(self._act, [self.looking, self.search], [self.script, *outputs], **quiet)

    # ------------------------------------------------------------------ looking

    def _greet(self, since: Any) -> tuple[str, float]:
        seen = float(since) if isinstance(since, int | float) else 0.0
        return shown.away(self.store.list(), seen, self.words), time.time()

    def _first(self, looking: Looking, search: str) -> list[Any]:
        return self._tick(replace(looking, sent={}), search)

    def _tick(self, looking: Looking, search: str) -> list[Any]:
        """Every part that is not what this session was sent last; the rest is skipped."""
        views = self.store.list()
        chosen = self._chosen(views, looking.job)
        texts = [shown.status(views, self.words), shown.table(views, chosen.id if chosen else "", self.words)]
        texts += self._details(chosen, looking, search)
        sent = {str(number): hash(text) for number, text in enumerate(texts)}
        news = [text if looking.sent.get(name) != sent[name] else gr.skip() for name, text in zip(sent, texts)]
        ended = hash(tuple(view.id for view in views if view.over))
        # what ends under the eyes of this browser is no news at its next visit
        visit = gr.skip() if looking.ended == ended else time.time()
        return [replace(looking, sent=sent, ended=ended), visit, *news]

    def _chosen(self, views: list[JobView], wanted: str) -> JobView | None:
        return next((view for view in views if view.id == wanted), views[0] if views else None)

    def _details(self, view: JobView | None, looking: Looking, search: str) -> list[str]:
        if view is None:
            return [""] * 5
        try:
            found = self.store.curves(view.id)
            text = self.store.log(view.id, tail=LOG_LINES, search=(search or "").strip())
        except UserError:
            # removed by another page between two looks; the next tick shows the list without it
            return [""] * 5
        links = (
            f'<button class="k-link" data-copy="#k-log" data-lines="50">{self.words("Copy the last 50 lines")}</button>'
            " · "
            f'<a class="k-link" href="kohya/log?job={view.id}" download>{self.words("Download")}</a>'
        )
        return [
            shown.curves(view, found, looking.chart, self.words, self._found(view)),
            shown.samples(view, looking.prompt, looking.pair, self.words),
            shown.files(view, self.words),
            shown.log(text),
            links,
        ]

    def _found(self, view: JobView) -> str:
        """What a tool found, if it wrote a table of it."""
        command = str(self.store.spec(view.id).get("command"))
        known = TOOLS.get(command.removeprefix(PREFIX)) if view.tool and view.over else None
        return reports.report(known, view, self.words) if known is not None and known.reports else ""

    # ------------------------------------------------------------------ acting

    def _act(self, event: gr.EventData, looking: Looking, search: str) -> list[Any]:
        asked: dict[str, Any] = dict(event._data or {})
        action, job = str(asked.get("do", "")), str(asked.get("job", ""))
        message: dict[str, Any] = {}
        try:
            if action == "choose":
                looking = replace(looking, job=job, prompt=0, pair=())
            elif action == "chart" and asked.get("chart") in shown.CHARTS:
                looking = replace(looking, chart=str(asked["chart"]))
            elif action == "prompt":
                looking = replace(looking, prompt=int(asked.get("index", 0)))
            elif action == "compare":
                pair = looking.pair or self._ends(job, looking.prompt)
                looking = replace(looking, pair=(*pair[-1:], int(asked.get("step", 0))))
            elif action == "why":
                html = shown.why(self.store.get(job), self.store.spec(job), self.store.log(job, tail=30), self.words)
                message = {"sheet": {"title": self.words("Why it failed"), "html": html}}
            elif action in ("edit", "mend"):
                message = self._edit(job, mend=action == "mend")
            elif action in self._actions:
                made = self._actions[action](job)
                self.store.tick()
                looking = replace(looking, job=made or job)
        except UserError as error:
            warn(self.words.error(error))
        return [channel(**message), *self._tick(looking, search)]

    def _ends(self, job: str, prompt: int) -> tuple[int, ...]:
        """The first and the last step that has a sample of this prompt."""
        steps = [sample.step for sample in self.store.get(job).samples if sample.index == prompt]
        return (steps[0], steps[-1]) if steps else ()

    def _undo(self, job: str) -> None:
        """Put back the files that a tool's job wrote."""
        counts = undo_job(self.store.get(job).folder, self.services.roots)
        tell(
            self.words(
                "{restored} files put back, {removed} taken away, {changed} left because they were changed since.",
                **counts,
            )
        )

    def _edit(self, job: str, *, mend: bool) -> dict[str, Any]:
        """The message that makes the job's training tab open its values."""
        view = self.store.get(job)
        command = str(self.store.spec(job).get("command"))
        tab = self.tab_of.get(job_plan.FINETUNE if command == job_plan.METADATA else command)
        if tab is None and is_tool(command):
            tab = "utilities"
        if tab is None:
            raise UserError("There is no tab for this kind of training.")
        data = {"do": "open_job", "job": job, "go": view.error_key if mend else None}
        return {"top": tab, "send": {"tab": tab, "data": data}}
