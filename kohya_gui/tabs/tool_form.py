"""A small form with its own channel to the page's script: what every utility and preparation has at its top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from kohya_gui import pickers, widgets
from kohya_gui.form import Collected, Form
from kohya_gui.layout import Group, Page
from kohya_gui.services import Services
from kohya_gui.tabs.message import channel, join_script
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import OptionField

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


@dataclass(frozen=True)
class Where:
    """How the script reaches a form: the tab at the top and the buttons of the sub-tabs to open, in order."""

    top: str
    tabs: tuple[str, ...] = ()


class ToolForm:
    """Fields of one utility in two columns, with notes, browse dialogs and completion of paths.

    Its HTML ids begin with `name`, which no training tab and no other form on the page may have.
    """

    def __init__(
        self,
        name: str,
        fields: Mapping[str, OptionField],
        services: Services,
        where: Where,
        *,
        start: Mapping[str, Any] | None = None,
        wide: Sequence[str] = (),
        blanks: Sequence[str] = (),
    ) -> None:
        """Args:
        name: begins the HTML ids.
        fields: the options in reading order.
        services: folders, words.
        where: how to get there.
        start: what the form opens with where that is not the default; the settings may say something else.
        wide: keys of fields that take the whole width.
        blanks: keys of texts in which blanks at the ends count.
        """
        self.name = name
        self.services = services
        self.where = where
        group = Group("", tuple(fields), plain=True, basic=True, wide=frozenset(wide))
        first = {**(start or {}), **services.settings.tool_values(name, fields)}
        self.form = Form(name, fields, (Page("fields", "", (group,)),), services.words, first, services.roots.allows)
        self.group = group
        self.blanks = tuple(blanks)

    @property
    def facts(self) -> dict[str, Any]:
        """What the page's script knows about the fields."""
        place = {"tabs": list(self.where.tabs), "group": "", "top": self.where.top, "basic": True}
        return {key: {**fact, **place} for key, fact in self.form.facts().items()}

    def build(self) -> None:
        """Make fields and channel."""
        assert self.form.inputs  # what stands in the fields is there before they are
        with gr.Column(elem_id=f"{self.name}-form", elem_classes=["k-form", "k-tool-form"]):
            self.form.build_fields(self.group)
        self.refresh = gr.Button("", elem_id=f"{self.name}-refresh", visible="hidden")
        self.channel = widgets.html(
            value={},
            html_template="",
            elem_id=f"{self.name}-channel",
            elem_classes=["k-channel"],
            js_on_load=join_script(self.name),
            server_functions=self._server_functions(),
        )

    def _server_functions(self) -> list[Callable[[dict[str, Any]], Any]]:
        services, facts = self.services, self.form.facts()

        def browse(request: dict[str, Any]) -> dict[str, str]:
            key = str(request.get("key"))
            path = request.get("path") or services.remembered.last_folder(key)
            return pickers.dialog(
                services.roots, services.words, {"path": path, "kind": facts.get(key, {}).get("kind"), "name": ""}
            )

        def complete(request: dict[str, Any]) -> list[str]:
            return pickers.completions(services.roots, request)

        return [browse, complete]

    def wire(self) -> None:
        """Take chosen paths and resets from the script, and show what does not apply."""
        inputs = self.form.inputs
        later = f"() => kohya.later('{self.name}')"
        gr.on([part.change for part in inputs], None, None, None, js=later, api_visibility="private")
        self.refresh.click(self._look, inputs, [self.channel], trigger_mode="always_last", **QUIET)
        self.channel.click(self._act, None, [self.channel, *inputs], **QUIET)

    # ------------------------------------------------------------------ what happens

    def _look(self, *contents: Any) -> dict[str, Any]:
        return channel(fields=self.marks(self.collected(contents)))

    def _act(self, event: gr.EventData) -> list[Any]:
        asked: dict[str, Any] = dict(event._data or {})
        key = str(asked.get("key", ""))
        if asked.get("do") == "pick" and key in self.form.fields:
            path = str(asked.get("file") or "")
            self.services.remembered.use_folder(key, path)
            return [channel(later=True), *self.form.patch({key: path})]
        if asked.get("do") == "reset" and key in self.form.fields:
            start = self.form.start.get(key, self.form.fields[key].default)
            return [channel(later=True), *self.form.patch({key: start})]
        return [channel(), *self.form.patch({})]

    def collected(self, contents: Sequence[Any]) -> Collected:
        """What the form says, blanks at the ends of the texts in which they count included."""
        found = self.form.collect(contents)
        typed = self.form.contents(contents)
        found.values |= {key: str(typed[key]) for key in self.blanks if typed[key]}
        return found

    def values(self, contents: Sequence[Any]) -> dict[str, Any]:
        """What the form says.

        Raises:
            UserError: naming the first field that holds no value of its kind.
        """
        found = self.collected(contents)
        if found.mistakes:
            raise found.mistakes[0]
        return found.values

    def marks(self, found: Collected, wrong: UserError | None = None) -> dict[str, Any]:
        """What stands under the fields: mistakes in red; fields that do not apply are hidden."""
        said = [*found.mistakes, *([wrong] if wrong is not None else [])]
        notes = {
            str(mistake.key): {"say": "error", "text": self.services.words.error(mistake)}
            for mistake in reversed(said)
            if mistake.key in self.form.fields
        }
        changed = self.form.changed(found.values, self.form.start)
        return {"changed": changed, "off": self.form.hidden(found.values), "notes": notes}

    def message(self, contents: Sequence[Any], wrong: UserError | None = None) -> dict[str, Any]:
        """The message that shows the fields as they are now, with what is wrong, and goes to the field meant."""
        more = {"go": wrong.key} if wrong is not None and wrong.key in self.form.fields else {}
        return channel(fields=self.marks(self.collected(contents), wrong), **more)
