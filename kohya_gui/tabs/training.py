"""THE training tab: toolbar, form, plan, start. Built once per trainer from a `TabSpec`; nothing in here knows LoRA."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from kohya_gui import checks, command, configs, pickers, widgets
from kohya_gui.checks import PlanView
from kohya_gui.counting import Counter
from kohya_gui.forecast import Forecast
from kohya_gui.form import Collected, Form
from kohya_gui.hub_cache import cached
from kohya_gui.layout import Page
from kohya_gui.layout import complete as complete_layout
from kohya_gui.layouts import Layout
from kohya_gui.phrases import phrase
from kohya_gui.services import Services
from kohya_gui.tabs import bench, session
from kohya_gui.tabs import plan as plan_view
from kohya_gui.tabs.config_bar import ConfigBar, FileState, recent_files
from kohya_gui.tabs.dataset import Browsing, DatasetTab
from kohya_gui.tabs.message import channel, join_script, tell, warn
from kohya_gui.tabs.preparation import PreparationTab
from kohya_gui.tabs.remarks import remarks
from kohya_gui.tabs.session import Manner
from kohya_gui.tabs.sources import DEFAULTS, FILE, FORM, PRESET
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import Tab, tab_fields

VIEWS = (phrase("Basic"), phrase("All"), phrase("Changed"))
# why the trainer is not asked for the memory yet
LATER = {"lists": phrase("told once the lists are made"), "model": phrase("told once the model has been fetched")}
COUNTING_PACE = 1.0  # seconds between two looks while pictures are being counted


@dataclass(frozen=True)
class Looker:
    """One session that looks at a tab: its name for questions in the background, and a digest of the marks and notes
    that its page was sent last."""

    who: str = ""
    sent: str = ""


@dataclass(frozen=True)
class TabSpec:
    """What makes one training tab: its name in HTML ids, its title, the command it builds, and where options stand."""

    name: str
    title: str
    command: str
    pages: tuple[Page, ...]
    rest_pages: Mapping[str, str]
    set_by_page: frozenset[str] = frozenset()
    start_preset: str = ""

    @classmethod
    def of(cls, tab: Tab, layout: Layout) -> "TabSpec":
        """What makes this training tab, with this layout."""
        about = (layout.pages, layout.rest_pages, layout.set_by_page, layout.start_preset)
        return cls(tab.name, tab.title, tab.command, *about)


class TrainingTab:
    """One training tab. `build` makes it inside the current `gr.Tab`; sessions share the object, so it holds no
    state."""

    def __init__(self, spec: TabSpec, services: Services) -> None:
        self.spec = spec
        self.services = services
        self.words = services.words
        known = tab_fields(spec.name)
        pages = complete_layout(spec.pages, known, spec.rest_pages, spec.set_by_page)
        self.start_file = starting_point(spec, services)
        self.form = Form(spec.name, known, pages, services.words, self.start_file.values, allowed=services.roots.allows)
        self.bar = ConfigBar(spec.name, self.form, services, self.start_file)
        self.dataset = DatasetTab(spec.name, services)
        wanted = any(page.extra == "preparation" for page in pages)
        self.preparation = PreparationTab(spec.name, services) if wanted else None

    @property
    def facts(self) -> dict[str, Any]:
        """What the page's script knows about this tab's fields and dialogs."""
        return {**self.form.facts(), **self.bar.facts()}

    @property
    def more_facts(self) -> dict[str, dict[str, Any]]:
        """The same of the other forms on this tab, by their names."""
        return self.preparation.facts if self.preparation else {}

    # ------------------------------------------------------------------ building

    def build_memory(self) -> None:
        """Make what the browser keeps; outside the tabs, as a tab that was never opened keeps nothing."""
        self.kept = gr.BrowserState(None, storage_key=f"kohya-{self.spec.name}", secret="kohya-form")

    def build(self) -> None:
        """Make the tab."""
        name = self.spec.name
        self.manner = gr.State(Manner())
        self.looker = gr.State(Looker())
        with gr.Column(elem_id=f"{name}-tab", elem_classes=["k-tab"]), gr.Row(elem_classes=["k-two"]):
            with gr.Column(elem_classes=["k-left"]):
                self.bar.build()
                with gr.Row(elem_classes=["k-bar"]):
                    gr.Textbox(
                        show_label=False,
                        label=self.words("Search any field by name or flag"),
                        placeholder=self.words("Search any field by name or flag"),
                        elem_id=f"{name}-search",
                        elem_classes=["k-search"],
                        max_lines=1,
                        min_width=0,
                    )
                    view = gr.Radio(
                        [(self.words(text), text) for text in VIEWS],
                        value=VIEWS[0],
                        show_label=False,
                        label=self.words("Fields shown"),
                        elem_id=f"{name}-view",
                        elem_classes=["k-switch"],
                        min_width=0,
                    )
                    view.change(None, view, None, js=f"(v) => kohya.view('{name}', v)", api_visibility="private")
                with gr.Column(elem_id=f"{name}-form", elem_classes=["k-form", "k-card"]):
                    links = partial(bench.build_links, self.words)
                    parts: dict[str, Callable[[], None]] = {"dataset": self.dataset.build, "tools": links}
                    if self.preparation:
                        parts["preparation"] = self.preparation.build
                    self.form.build(parts)
            with gr.Column(elem_classes=["k-right"]):
                self._build_plan()
        self._wire()

    def _build_plan(self) -> None:
        name = self.spec.name
        with gr.Column(elem_classes=["k-card", "k-plan"]):
            self.plan_html = widgets.html(f"<h2>{self.words('Plan')}</h2>", elem_id=f"{name}-plan")
            with gr.Row(elem_classes=["k-start"]):
                self.start = gr.Button(
                    self.words("Start training"), variant="primary", elem_id=f"{name}-start", min_width=0, scale=2
                )
                self.queue = gr.Button(self.words("Add to queue"), elem_id=f"{name}-queue", min_width=0, scale=1)
            self.verdict = widgets.html("", elem_id=f"{name}-verdict", elem_classes=["k-quiet"])
            with gr.Row(elem_classes=["k-links"]):
                self.show_command = gr.Button(self.words("Command"), elem_id=f"{name}-command", min_width=0)
                self.show_toml = gr.Button("TOML", elem_id=f"{name}-toml", min_width=0)
                self.show_compare = gr.Button(self.words("Compare"), elem_id=f"{name}-compare", min_width=0)
        self.dataset.build_strip()
        self.refresh = gr.Button("", elem_id=f"{name}-refresh", visible="hidden")
        self.recall = gr.Button("", elem_id=f"{name}-recall", visible="hidden")
        self.greet = gr.Button("", elem_id=f"{name}-greet", visible="hidden")
        self.channel = widgets.html(
            value={},
            html_template="",
            elem_id=f"{name}-channel",
            elem_classes=["k-channel"],
            js_on_load=join_script(name),
            server_functions=self._server_functions(),
        )

    def _server_functions(self) -> list[Callable[[dict[str, Any]], Any]]:
        """What the page's script may call by itself: the browse dialog and completion of typed paths."""
        services, facts = self.services, self.facts

        def browse(request: dict[str, Any]) -> dict[str, str]:
            fact = facts.get(str(request.get("key")), {})
            path = request.get("path") or services.remembered.last_folder(str(request.get("key")))
            asked = {"path": path, "kind": fact.get("kind"), "name": fact.get("name", "")}
            shown = pickers.dialog(services.roots, services.words, asked)
            if fact.get("kind") == "open" and not request.get("path"):
                shown["html"] = recent_files(services, self.spec.name) + shown["html"]
            return shown

        def complete(request: dict[str, Any]) -> list[str]:
            return pickers.completions(services.roots, request)

        return [browse, complete]

    def _wire(self) -> None:
        form, bar = self.form, self.bar
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}
        later = f"() => kohya.later('{self.spec.name}')"
        gr.on([part.change for part in form.inputs], None, None, None, js=later, api_visibility="private")
        shown = [self.plan_html, self.verdict, self.start, self.queue, bar.name_html, self.channel]
        self.refresh.click(
            self._refresh,
            [bar.file, self.manner, self.looker, self.dataset.browsing, *form.inputs],
            [*shown, self.manner, self.looker, self.kept, *self.dataset.outputs],
            trigger_mode="always_last",
            **quiet,
        )
        self.channel.click(self._act, [bar.file, *form.inputs], bar.outputs(self.channel), **quiet)
        for button, waits in ((self.start, False), (self.queue, True)):
            button.click(
                partial(self._launch, waits),
                [bar.file, *form.inputs],
                [self.channel, self.manner, self.looker],
                trigger_mode="once",
                **quiet,
            )
        for button, kind in ((self.show_command, "command"), (self.show_toml, "toml"), (self.show_compare, "compare")):
            button.click(partial(self._show, kind), [bar.file, *form.inputs], [self.channel], **quiet)
        # the page's script asks for one of them when the tab is first looked at: the form that its browser kept, or
        # only the presets of today
        outputs = [self.manner, *bar.outputs(self.channel)]
        self.recall.click(self._recall, [self.kept], outputs, trigger_mode="once", **quiet)
        self.greet.click(partial(bar.preset_update, self.start_file), None, [bar.preset], **quiet)
        bar.wire(self.channel, quiet)
        self.dataset.wire(form, self.channel, quiet)
        if self.preparation:
            self.preparation.wire(form, self.refresh, self.channel, quiet)

    # ------------------------------------------------------------------ what happens

    def _recall(self, kept: Any) -> list[Any]:
        found = session.recall(session.digest(self.start_file), kept, self.form)
        if found is None:
            skipped, message, _, *rest = self.bar.unchanged(channel(later=True))
            return [gr.skip(), skipped, message, self.bar.preset_update(self.start_file), *rest]
        file, contents, manner = found
        return [manner, file, channel(later=True), self.bar.preset_update(file), *self.form.restore(contents)]

    def _look(self, contents: tuple[Any, ...], counter: Counter | None = None) -> tuple[Collected, PlanView]:
        found = self.form.collect(contents)
        services = self.services
        view = checks.plan(
            self.spec.command,
            found.values,
            services.roots,
            history=services.jobs.speeds,
            allow_plugins=services.jobs.allow_plugins,
            counter=counter,
        )
        return found, plan_view.with_mistakes(view, found.mistakes)

    def _forecast(self, found: Collected, view: PlanView, who: str) -> Forecast | None:
        """What the trainer itself says of the run, once nothing else stands in its way; None while it is not asked."""
        planner = self.services.memory
        if planner is None:
            return None
        model = str(view.values.get("pretrained_model_name_or_path") or "")
        preparing = view.plan is not None and bool(view.plan.before)
        absent = not os.path.exists(model) and not cached(model)
        if not view.can_start or view.counting or preparing or absent:
            planner.cancel(who)
            if not view.can_start or view.counting:
                return None
            return Forecast("later", problem=LATER["lists" if preparing else "model"])
        return planner.ask(self.spec.command, self.form.applicable(found.values), who)

    def _fields_message(self, file: FileState, found: Collected, view: PlanView) -> dict[str, Any]:
        changed = self.form.changed(found.values, file.values)
        off = self.form.hidden(found.values)
        notes = plan_view.notes(view, remarks(view, found.values, self.words), self.words)
        bad = {key for key, note in notes.items() if note["say"] == "error"}
        return {"changed": changed, "off": off, "notes": notes, **self.form.summary(changed, off, bad)}

    def _refresh(
        self, file: FileState, manner: Manner, looker: Looker, browsing: Browsing, *contents: Any
    ) -> list[Any]:
        found, view = self._look(contents, self.services.counter)
        looker = looker if looker.who else Looker(uuid.uuid4().hex)
        forecast = self._forecast(found, view, looker.who)
        said = found.values | {str(mistake.key): mistake.message for mistake in found.mistakes}
        manner = session.follow(manner, said, self.bar.is_fresh(file))
        view = checks.with_forecast(session.calm(view, manner), forecast)
        ready = gr.update(interactive=not any(problem.severity == "error" for problem in view.problems))
        fields = self._fields_message(file, found, view)
        # what the script knows already is not sent again
        sent = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
        message: dict[str, Any] = {"looked": True} | ({} if sent == looker.sent else {"fields": fields})
        again = COUNTING_PACE if view.counting else forecast.pace if forecast else None
        if again is not None:
            message["again"] = round(again * 1000)
        return [
            plan_view.card(view, self.spec.name, self.words),
            plan_view.verdict(view, self.words),
            ready,
            ready,
            self.bar.name_text(file, found.values),
            channel(**message),
            manner,
            Looker(looker.who, sent),
            session.keep(session.digest(self.start_file), file, self.form, contents, manner),
            *self.dataset.look(browsing, view.dataset, view.values, counting=view.counting),
        ]

    def _act(self, event: gr.EventData, file: FileState, *contents: Any) -> list[Any]:
        """What the page's script asks for: set or reset fields, take a path, open a text."""
        asked: dict[str, Any] = dict(event._data or {})
        action, key = asked.get("do"), str(asked.get("key", ""))
        if action == "reset":
            known = self.form.fields
            base = {} if asked.get("to") == "default" else file.values
            before = {k: base.get(k, known[k].default) for k in asked.get("keys") or [key] if k in known}
            return self.bar.unchanged(channel(later=True), before)
        if action == "set":
            wanted = {k: v for k, v in dict(asked.get("values") or {}).items() if k in self.form.fields}
            return self.bar.unchanged(channel(later=True, close=True), wanted)
        if action == "pick" and key in self.form.fields:
            path = str(asked.get("file") or "")
            self.services.remembered.use_folder(key, path)
            return self.bar.unchanged(channel(later=True), {key: path})
        if action == "open_job":
            opened = self._open_job(str(asked.get("job", "")), asked.get("go"))
            return self.bar.undoable(opened, file, self.form.collect(contents).values)
        return self.bar.act(asked, file, self.form.collect(contents).values)

    def _open_job(self, job: str, go: str | None) -> list[Any]:
        """Show the values a job was made from; a job that still waits leaves the queue, so that it does not run
        twice."""
        store = self.services.jobs
        try:
            view, values = store.get(job), store.values(job)
            if view.state == "waiting":
                store.remove(job)
                tell(self.words("{name} has left the queue; add it again when it is right.", name=view.name))
        except UserError as error:
            warn(self.words.error(error))
            return self.bar.unchanged()
        opened = FileState(name=self.words("from the job {name}", name=view.name), values=values)
        return self.bar.opened(opened, channel(later=True, go=go))

    def _launch(self, waits: bool, file: FileState, *contents: Any) -> list[Any]:
        """Start or queue; from then on empty fields are spoken of plainly."""
        return [self._make_job(waits, file, contents), Manner(strict=True), Looker()]

    def _make_job(self, waits: bool, file: FileState, contents: tuple[Any, ...]) -> dict[str, Any]:
        found, view = self._look(contents)
        values, planner = self.form.applicable(found.values), self.services.memory
        view = checks.with_forecast(view, planner.known(self.spec.command, values) if planner else None)
        wrong = [problem for problem in view.problems if problem.severity == "error"]
        message: dict[str, Any] = {"fields": self._fields_message(file, found, view)}
        if wrong:
            warn(self.words.said(wrong[0].message))
            first = next((problem.key for problem in wrong if problem.key), None)
            return channel(**message, go=first, later=True)
        store = self.services.jobs
        try:
            made = command.build(
                self.spec.command, values, allow_plugins=store.allow_plugins, allowed=self.services.roots.allows
            )
            job = store.create(made, values, str(values.get("output_name") or file.name or self.spec.title))
            started = store.tick()
        except UserError as error:
            warn(self.words.error(error))
            return channel(**message, go=error.key)
        if waits or job.id not in started:
            tell(
                self.words("{name} is in the queue.", name=job.name)
                if job.id not in started
                else self.words("{name} has started.", name=job.name)
            )
        return channel(**message, top=None if waits else "jobs")

    def _show(self, kind: str, file: FileState, *contents: Any) -> dict[str, Any]:
        found = self.form.collect(contents)
        values = self.form.applicable(found.values)
        words = self.words
        if kind == "compare":
            return self.bar.compare_sheet(FORM, FILE if file.name else DEFAULTS, file, found.values)
        try:
            made = command.build(
                self.spec.command,
                values,
                allow_plugins=self.services.jobs.allow_plugins,
                allowed=self.services.roots.allows,
            )
        except UserError as error:
            return channel(sheet={"title": words("Not yet"), "html": plan_view.sentence(words.error(error))})
        if kind == "toml":
            return channel(sheet={"title": "TOML", "html": plan_view.toml_sheet(made, words)})
        return channel(sheet={"title": words("Command"), "html": plan_view.command_sheet(made, words)})


def starting_point(spec: TabSpec, services: Services) -> FileState:
    """What a tab opens with: the values given at start (demo, config.toml) over the tab's first preset."""
    if services.start_name and services.start_tab == spec.name:
        return FileState(name=services.start_name, values=dict(services.start))
    presets = configs.presets(spec.name)
    chosen = next((preset for preset in presets if preset.name == spec.start_preset), None)
    given = {} if services.start_name else {**services.settings.values(spec.name), **services.start}
    if chosen is None:
        return FileState(values=given)
    values = dict(chosen.values)
    if COMMANDS[spec.command].family != "sdxl":
        # nobody has said yet what their model is, so the model itself does
        values.pop("model_family", None)
    return FileState(name=chosen.name, values={**values, **given}, preset=PRESET + chosen.name)
