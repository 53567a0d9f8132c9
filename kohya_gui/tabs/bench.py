"""A tool on the page: its form, Start, Dry run, Undo, and what came of it. The work is done by a job.

Its HTML is one piece, and what it asks goes past Gradio's events (script.js: `kohya.call`), so that thirty tools cost
the page no more than one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kohya_gui import job_plan, model_kind, pickers, tools, widgets
from kohya_gui.localization import Words
from kohya_gui.prepare.looks import look, notes
from kohya_gui.prepare.undo import can_undo, undo_job
from kohya_gui.services import Services
from kohya_gui.tabs import reports, results
from kohya_gui.tabs.message import channel
from kohya_gui.tabs.tool_form import ToolForm, Where
from kohya_gui.tabs.tool_panel import progress
from kohya_gui.tools import Tool
from sd_scripts.schema.errors import UserError

Asked = Mapping[str, Any]
Message = dict[str, Any]


class ToolPanel:
    """One tool of `tools.TOOLS`. Sessions share the object, so it holds no state."""

    def __init__(self, tool: Tool, services: Services, where: Where) -> None:
        self.tool = tool
        self.services = services
        self.words = services.words
        self.name = f"tool_{tool.name}"
        self.fields = ToolForm(
            self.name,
            tools.tool_fields(tool),
            services,
            where,
            start=tools.start_values(tool),
            wide=tool.wide,
            blanks=tool.blanks,
        )
        self._acts = {"look": self._look, "dry": self._dry, "start": self._start, "follow": self._follow,
                      "undo": self._undo, "pick": self._pick, "reset": self._reset}  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        """What the page's script knows about the fields; also found by the labels that kohya_ss has for them."""
        labels = self.tool.labels
        return {
            key: {**fact, "old": [*labels.get(key, ()), *fact["old"]], "of": self.words(self.tool.title)}
            for key, fact in self.fields.facts.items()
        }

    def build(self) -> None:
        """Make the panel."""
        start = self.fields.form.fill(self.fields.form.start)[0]
        widgets.html(
            {"html": self._html(), "start": start},
            html_template="",
            elem_id=f"{self.name}-bench",
            elem_classes=["k-place"],
            js_on_load=f"kohya.bench('{self.name}', element, props.value)",
        )

    def _html(self) -> str:
        name, words, tool = self.name, self.words, self.tool
        kinds = [("start", words(tool.button), "k-main"), ("dry", words(tool.dry), "")]
        kinds += [] if tool.only_reads else [("undo", words("Undo"), "")]
        row = "".join(
            f'<button type="button" class="k-button {mark}" id="{name}-{what}" data-call="{what}">{text}</button>'
            for what, text, mark in kinds
        )
        return (
            f'<div class="k-tool k-bench" data-tab="{name}"><p class="k-quiet">{words(tool.does)}</p>'
            f'<div id="{name}-form" class="k-form k-tool-form"><div class="k-place"></div></div>'
            f'<div class="k-tool-buttons">{row}</div><div id="{name}-result" class="k-result-card"></div></div>'
        )

    # ------------------------------------------------------------------ what the script asks

    def act(self, asked: Asked) -> Message:
        """The answer to what a button or a change in the form asks for.

        Args:
            asked: `do`, `contents` (what stands in the fields), and for some things key, file, folder or job.
        """
        contents = [asked.get("contents")]
        work = self._acts.get(str(asked.get("do", "")))
        if work is None:
            return channel()
        try:
            return work(asked, contents)
        except UserError as error:
            go = {"go": error.key} if error.key in self.fields.form.fields else {}
            return channel(result=results.mistake(error, self.words), fields=self._marks(contents, error), **go)

    def browse(self, asked: Asked) -> dict[str, str]:
        """One view of the browse dialog."""
        services, key = self.services, str(asked.get("key"))
        path = asked.get("path") or services.remembered.last_folder(key)
        kind = self.fields.form.fields[key].kind if key in self.fields.form.fields else "file"
        typed = str(asked.get("path") or "")
        name = "" if typed.endswith(("/", "\\")) else Path(typed).name
        return pickers.dialog(services.roots, services.words, {"path": path, "kind": kind, "name": name})

    def opened(self, values: Mapping[str, Any]) -> list[Any]:
        """What stands in the form when it shows a job's values."""
        return self.fields.form.fill({**tools.start_values(self.tool), **values})

    def open_job(self, values: Mapping[str, Any], key: str, said: str = "") -> Message:
        """The message that shows a job's values in the form and goes to a field of it."""
        go = key if key in self.fields.form.fields else self.tool.keys[0]
        more = {"result": results.said(said)} if said else {}
        return channel(form=self.name, fill=self.opened(values)[0], go=go, later=True, **more)

    def _values(self, contents: Sequence[Any]) -> dict[str, Any]:
        """What the form says, without what does not apply, every path resolved."""
        found = self.fields.values(contents)
        off = self.fields.form.hidden({**found, **self._switches(found)})
        applies = {key: value for key, value in found.items() if key not in off}
        return tools.resolved(self.tool, applies, self.services.roots)

    def _switches(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The kind of base model as conditions know it, from the form or from the headers of its files."""
        if not self.tool.models:
            return {}
        allowed = self.services.roots.allows
        chosen = values.get("model_family") or "auto"
        named = (str(values.get(key) or "") for key in self.tool.models)
        told = (model_kind.detect(path) for path in named if path and allowed(path))
        family = chosen if chosen != "auto" else next((family for family in told if family), "sd1")
        return dict(zip(model_kind.SWITCHES, model_kind.FAMILIES[family], strict=True))

    def _marks(self, contents: Sequence[Any], wrong: UserError | None = None) -> dict[str, Any]:
        """Marks of changed fields, what does not apply, mistakes, and what the files are that were chosen."""
        found = self.fields.collected(contents)
        marks = self.fields.marks(found, wrong)
        marks["off"] = {
            key: why
            for key, why in self.fields.form.hidden({**found.values, **self._switches(found.values)}).items()
            if key in self.fields.form.fields
        }
        seen = notes(self.tool, found.values, self.services.roots, self.words)
        marks["notes"] = {**{key: note for key, note in seen.items() if key not in marks["off"]}, **marks["notes"]}
        return marks

    # ------------------------------------------------------------------ what happens

    def _look(self, asked: Asked, contents: Sequence[Any]) -> Message:
        return channel(fields=self._marks(contents))

    def _pick(self, asked: Asked, contents: Sequence[Any]) -> Message:
        key, path = str(asked.get("key", "")), str(asked.get("file") or "")
        if key not in self.fields.form.fields:
            return channel()
        if asked.get("folder"):
            path = str(Path(str(asked["folder"])) / Path(path).name)
        self.services.remembered.use_folder(key, path)
        message = self._put(key, path, contents)
        return message | reports.picked(self.tool, key, self.services.roots, path, self.words)

    def _reset(self, asked: Asked, contents: Sequence[Any]) -> Message:
        form, key = self.fields.form, str(asked.get("key", ""))
        if key not in form.fields:
            return channel()
        return self._put(key, form.start.get(key, form.fields[key].default), contents)

    def _put(self, key: str, value: Any, contents: Sequence[Any]) -> Message:
        form = self.fields.form
        shown = {**form.contents(contents), key: widgets.show(form.fields[key], value)}
        return channel(fill=form.restore(shown)[0], later=True)

    def _dry(self, asked: Asked, contents: Sequence[Any]) -> Message:
        values = self._values(contents)
        found = look(self.tool, values, self.words)
        html = (results.look(found, self.words) if found.lines else "") + reports.looked(self.tool, values, self.words)
        return channel(result=html, fields=self._marks(contents))

    def _start(self, asked: Asked, contents: Sequence[Any]) -> Message:
        values = self._values(contents)
        # what the dry run would refuse need not become a failed job
        look(self.tool, values, self.words)
        store = self.services.jobs
        name = Path(str(values.get(self.tool.folder) or "")).name
        job = store.create(job_plan.build(self.tool.command, values), values, f"{self.tool.title} {name}".strip())
        store.tick()
        return self._followed(job.id) | {"fields": self._marks(contents)}

    def _follow(self, asked: Asked, contents: Sequence[Any]) -> Message:
        return self._followed(str(asked.get("job", "")))

    def _followed(self, job: str) -> Message:
        view = self.services.jobs.get(job)
        if not view.over:
            return channel(result=progress(view, self.words), follow=job)
        shown = progress(view, self.words) + results.written(view, self.words)
        return channel(result=shown + reports.report(self.tool, view, self.words), later=True)

    def _undo(self, asked: Asked, contents: Sequence[Any]) -> Message:
        store = self.services.jobs
        for view in sorted(store.list(), key=lambda view: -view.created):
            if store.spec(view.id).get("command") != self.tool.command or not can_undo(view.folder):
                continue
            if not view.over:
                raise UserError(f"{view.name} is still at work.", hint="Wait until it is over, or end it in Jobs.")
            done = undo_job(view.folder, self.services.roots)
            named = results.said(self.words("Undone: {name}", name=view.name))
            return channel(result=results.undone(done, self.words) + named, later=True)
        raise UserError("There is nothing to undo.")


def build_links(words: Words, shelf: str = "lora_tools") -> None:
    """Links to the tools of a shelf, each with what it does."""
    named = [tools.TOOLS[name] for each in tools.SHELVES if each.name == shelf for name in each.tools]
    rows = "".join(
        f'<p><button type="button" class="k-link" data-go="{tool.keys[0]}" data-tab="tool_{tool.name}">'
        f"{words(tool.title)}</button><span>{words(tool.does)}</span></p>"
        for tool in named
    )
    said = words("What can be done with LoRA files; these tools stand under Utilities.")
    widgets.html(f'<div class="k-tool-links"><p class="k-quiet">{said}</p>{rows}</div>')
