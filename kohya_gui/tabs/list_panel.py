"""Finetune's lists made now, without a training: the same programs that a training would run first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import widgets
from kohya_gui.form import Form
from kohya_gui.job_plan import METADATA
from kohya_gui.prepare.lists import check_places, look_at_lists
from kohya_gui.services import Services
from kohya_gui.tabs import results
from kohya_gui.tabs.message import channel
from kohya_gui.tabs.tool_panel import Following, buttons
from sd_scripts.schema.errors import UserError


class ListPanel:
    """Prepare now, Dry run, Undo for what stands in the Finetune form. Sessions share the object."""

    def __init__(self, name: str, services: Services) -> None:
        self.name = f"{name}_lists"
        self.services = services
        self.words = services.words
        self.following = Following(self.name, METADATA, services)

    def build(self) -> None:
        """Make the panel."""
        said = self.words(
            "Collects captions, chooses sizes and encodes the pictures now, as the fields under Before the training "
            "say. Switch them off there afterwards, or the training does it once more."
        )
        with gr.Column(elem_classes=["k-tool"]):
            widgets.html(f'<p class="k-quiet">{said}</p>')
            _, (self.run, self.dry, self.undo) = buttons(self.name, self.words, self.words("Prepare now"))
            self.following.build()

    def wire(self, form: Form, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Connect the buttons; `form` is the Finetune form, `script` its channel."""

        def values(contents: Sequence[Any]) -> dict[str, Any]:
            found = form.collect(contents)
            if found.mistakes:
                raise found.mistakes[0]
            return form.applicable(found.values)

        def dry(*contents: Any) -> list[Any]:
            try:
                chosen = values(contents)
                check_places(chosen, self.services.roots)
                found = look_at_lists(form.effective(chosen), self.words)
                return [results.look(found, self.words), gr.skip()]
            except UserError as error:
                return [results.mistake(error, self.words), channel(go=error.key)]

        def run(*contents: Any) -> list[Any]:
            try:
                chosen = values(contents)
                check_places(chosen, self.services.roots)
                look_at_lists(form.effective(chosen), self.words)
                title = self.words("Lists in {name}", name=Path(str(chosen["train_dir"])).name)
                return [*self.following.start(chosen, title), gr.skip()]
            except UserError as error:
                return [*self.following.refused(error), channel(go=error.key)]

        self.run.click(run, form.inputs, [*self.following.outputs, script], trigger_mode="once", **quiet)
        self.dry.click(dry, form.inputs, [self.following.result, script], trigger_mode="always_last", **quiet)
        self.following.wire(self.undo)
