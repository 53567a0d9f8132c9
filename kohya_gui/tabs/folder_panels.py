"""Folder preparation and dataset balancing on the page: form, dry run, work, undo, and what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import widgets
from kohya_gui.form import Form
from kohya_gui.pickers import size_text
from kohya_gui.prepare import balance, folders
from kohya_gui.prepare.journal import Journal
from kohya_gui.services import Services
from kohya_gui.tabs import results
from kohya_gui.tabs.message import channel
from kohya_gui.tabs.tool_form import QUIET, ToolForm, Where
from kohya_gui.tabs.tool_panel import buttons
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import section_fields
from sd_scripts.schema.tools_preparation import BalancingOptions, FolderPreparationOptions

_LOOK_SECONDS = 0.3


class FolderPanel:
    """Pictures copied into the folders that training takes."""

    def __init__(self, name: str, services: Services, where: Where) -> None:
        self.name = f"{name}_folders"
        self.services = services
        self.words = services.words
        known = {option.key: option for option in section_fields(FolderPreparationOptions)}
        self.fields = ToolForm(self.name, known, services, where, wide=("util_training_dir_output",))

    def build(self, *, fills_form: bool) -> None:
        """Make the panel; `fills_form`: there is a training form that can take the folders."""
        said = self.words(
            "Copies pictures and their captions into img, reg, log and model below one folder, as training takes them. "
            "The source stays as it is."
        )
        with gr.Column(elem_classes=["k-tool"]):
            widgets.html(f'<p class="k-quiet">{said}</p>')
            self.fields.build()
            row, (self.run, self.dry, self.undo) = buttons(self.name, self.words, self.words("Prepare training data"))
            with row:
                self.copy = gr.Button(
                    self.words("Copy to the form"),
                    elem_id=f"{self.name}-copy",
                    min_width=0,
                    scale=0,
                    visible=fills_form,
                )
                text = self.words("Delete what Undo keeps")
                self.clear = gr.Button(text, elem_id=f"{self.name}-clear", min_width=0, scale=0)
            self.asked = gr.State("")
            self.result = widgets.html("", elem_id=f"{self.name}-result", elem_classes=["k-result-card"])

    def wire(self) -> None:
        """Connect form and buttons."""
        self.fields.wire()
        asked = [self.asked, *self.fields.form.inputs]
        cleared = [self.result, self.fields.channel, self.asked]
        self.clear.click(self._clear, asked, cleared, trigger_mode="once", **QUIET)
        inputs, outputs = self.fields.form.inputs, [self.result, self.fields.channel]
        self.run.click(self._run, inputs, outputs, trigger_mode="once", **QUIET)
        self.dry.click(self._dry, inputs, outputs, trigger_mode="always_last", **QUIET)
        self.undo.click(self._undo, inputs, outputs, trigger_mode="once", **QUIET)

    def wire_copy(self, form: Form, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Let "Copy to the form" fill a training form."""

        def fill(*contents: Any) -> list[Any]:
            try:
                values = self.form_values(contents)
            except UserError as error:
                return [
                    results.mistake(error, self.words),
                    self.fields.message(contents, error),
                    channel(),
                    *form.patch({}),
                ]
            known = {key: value for key, value in values.items() if key in form.fields}
            text = results.said(self.words("The folders stand in the form now."), "good")
            return [text, self.fields.message(contents), channel(later=True), *form.patch(known)]

        outputs = [self.result, self.fields.channel, script, *form.inputs]
        self.copy.click(fill, self.fields.form.inputs, outputs, **quiet)

    # ------------------------------------------------------------------ what happens

    def form_values(self, contents: Sequence[Any]) -> Mapping[str, Any]:
        """What the training form gets: the four folders below the destination.

        Raises:
            UserError: the destination is missing or was not prepared yet.
        """
        key = "util_training_dir_output"
        target = self._destination(contents)
        if not (target / "img").is_dir():
            raise UserError(f"{target} was not prepared yet.", key, "Press Prepare training data first.")
        reg = target / "reg"
        return {
            "train_data_dir": str(target / "img"),
            "reg_data_dir": str(reg) if reg.is_dir() and any(reg.iterdir()) else None,
            "output_dir": str(target / "model"),
            "logging_dir": str(target / "log"),
        }

    def _dry(self, *contents: Any) -> list[Any]:
        roots = self.services.roots
        try:
            found = folders.plan(folders.wanted(self.fields.values(contents), roots), roots)
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error)]
        return [results.preparation(found, self.words), self.fields.message(contents)]

    def _run(self, *contents: Any) -> Iterator[list[Any]]:
        """Copy in a thread of its own and say how far it is; a page that is closed meanwhile stops nothing."""
        roots = self.services.roots
        done = [0, 0]

        def progress(number: int, of: int) -> None:
            done[:] = number, of

        try:
            asked = folders.wanted(self.fields.values(contents), roots)
            with ThreadPoolExecutor(1) as pool:
                work: Future[folders.Plan] = pool.submit(folders.prepare, asked, roots, progress)
                while not wait_for([work], _LOOK_SECONDS).done:
                    text = self.words("{done} of {of} files copied", done=f"{done[0]:,}", of=f"{done[1]:,}")
                    yield [results.said(text), gr.skip()]
                made = work.result()
        except UserError as error:
            yield [results.mistake(error, self.words), self.fields.message(contents, error)]
            return
        yield [results.preparation(made, self.words, done=True), self.fields.message(contents)]

    def _destination(self, contents: Sequence[Any]) -> Path:
        key = "util_training_dir_output"
        text = str(self.fields.values(contents).get(key) or "")
        if not text:
            raise UserError("The destination is missing.", key, "Give the folder that was prepared.")
        return self.services.roots.inside(text, key)

    def _clear(self, asked: str, *contents: Any) -> list[Any]:
        """Delete what is kept for Undo, at the second press: nothing brings it back."""
        try:
            target = self._destination(contents)
            changes, size = Journal(target).kept()
            if changes and asked != str(target):
                text = self.words(
                    "{size} of {n} earlier preparations are kept for Undo. Press once more to delete them for good.",
                    size=size_text(size),
                    n=changes,
                )
                return [results.said(text), self.fields.message(contents), str(target)]
            freed = Journal(target).forget()
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error), ""]
        text = self.words("Nothing is kept for Undo.")
        if changes:
            text = self.words("{size} were freed; the preparations before now cannot be undone.", size=size_text(freed))
        return [results.said(text, "good"), self.fields.message(contents), ""]

    def _undo(self, *contents: Any) -> list[Any]:
        try:
            change = folders.undo(self._destination(contents))
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error)]
        said = self.words("The last preparation was undone.")
        if "aside" in change.facts:
            said += " " + self.words(
                "What was changed in its folders since lies in {place}.", place=change.facts["aside"]
            )
        return [results.said(said, "good"), self.fields.message(contents)]


class BalancePanel:
    """Folders renamed so that each counts the same."""

    def __init__(self, name: str, services: Services, where: Where) -> None:
        self.name = f"{name}_balance"
        self.services = services
        self.words = services.words
        known = {option.key: option for option in section_fields(BalancingOptions)}
        self.fields = ToolForm(self.name, known, services, where, wide=("folder",))

    def build(self) -> None:
        """Make the panel."""
        said = self.words(
            "Gives every picture folder as many repeats as let all of them be shown equally often. Only names change."
        )
        with gr.Column(elem_classes=["k-tool"]):
            widgets.html(f'<p class="k-quiet">{said}</p>')
            self.fields.build()
            _, (self.run, self.dry, self.undo) = buttons(self.name, self.words, self.words("Balance dataset"))
            self.result = widgets.html("", elem_id=f"{self.name}-result", elem_classes=["k-result-card"])

    def wire(self) -> None:
        """Connect form and buttons."""
        self.fields.wire()
        inputs, outputs = self.fields.form.inputs, [self.result, self.fields.channel]
        self.run.click(self._run, inputs, outputs, trigger_mode="once", **QUIET)
        self.dry.click(self._dry, inputs, outputs, trigger_mode="always_last", **QUIET)
        self.undo.click(self._undo, inputs, outputs, trigger_mode="once", **QUIET)

    def _asked(self, contents: Sequence[Any]) -> tuple[Path, int, bool]:
        values = self.fields.values(contents)
        if not values.get("folder"):
            raise UserError("The dataset folder is missing.", "folder", "Choose the folder of the picture folders.")
        folder = self.services.roots.inside(str(values["folder"]), "folder")
        return folder, int(values.get("concept_repeats") or 1000), bool(values.get("insecure"))

    def _dry(self, *contents: Any) -> list[Any]:
        try:
            found = balance.plan(*self._asked(contents))
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error)]
        return [results.renamings(found, self.words), self.fields.message(contents)]

    def _run(self, *contents: Any) -> list[Any]:
        try:
            found = balance.balance(*self._asked(contents))
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error)]
        return [results.renamings(found, self.words, done=True), self.fields.message(contents)]

    def _undo(self, *contents: Any) -> list[Any]:
        try:
            change = balance.undo(self._asked(contents)[0])
        except UserError as error:
            return [results.mistake(error, self.words), self.fields.message(contents, error)]
        names = change.facts.get("names", {})
        said = self.words("{n} folders have their names back.", n=len(names))
        return [results.said(said, "good"), self.fields.message(contents)]
