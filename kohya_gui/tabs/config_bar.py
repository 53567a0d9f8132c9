"""The toolbar of a training tab: presets, open, save, save as, reload, and what the file is called and how far the
form is from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import configs, widgets
from kohya_gui.form import Form
from kohya_gui.services import Services
from kohya_gui.tabs import plan as plan_view
from kohya_gui.tabs.message import channel
from sd_scripts.schema.errors import UserError

OPEN, SAVE = "@open", "@save"
_OF_THE_PERSON = ("output_name", "sample_prompt_text", "training_comment")


@dataclass(frozen=True)
class FileState:
    """The configuration a session works on: where it is kept ("" for none), its name, the values it holds, and the
    keys of the file that are on no form but must be written back."""

    path: str = ""
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)


class ConfigBar:
    """The toolbar above one form."""

    def __init__(self, tab: str, form: Form, services: Services, start: FileState) -> None:
        self.tab = tab
        self.form = form
        self.services = services
        self.words = services.words
        self.start = start
        self.presets = {preset.name: preset for preset in configs.presets(tab)}

    def facts(self) -> dict[str, Any]:
        """The two dialogs of this bar, for the page's script."""
        return {OPEN: {"kind": "open"}, SAVE: {"kind": "save", "name": f"{self.tab}.json"}}

    def build(self) -> None:
        """Make the toolbar."""
        self.file = gr.State(self.start)
        with gr.Row(elem_classes=["k-bar", "k-tools"]):
            self.preset = gr.Dropdown(
                [(self.words("Choose a preset"), ""), *[(self.words(name), name) for name in self.presets]],
                value=self.start.name if self.start.name in self.presets else "",
                show_label=False,
                label=self.words("Preset"),
                elem_id=f"{self.tab}-preset",
                elem_classes=["k-preset"],
                min_width=0,
                scale=2,
            )
            self.open = self._button("Open", "open")
            self.save = self._button("Save", "save")
            self.save_as = self._button("Save as", "saveas")
            self.reload = self._button("Reload", "reload")
            self.name_html = widgets.html(
                self.name_text(self.start, self.start.values), elem_id=f"{self.tab}-file", elem_classes=["k-file"]
            )

    def _button(self, text: str, name: str) -> gr.Button:
        return gr.Button(self.words(text), elem_id=f"{self.tab}-{name}", min_width=0, scale=0)

    def wire(self, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Connect the buttons; `script` is the tab's channel to the page's script."""
        inputs = [self.file, *self.form.inputs]
        outputs = self.outputs(script)
        self.preset.input(self._take_preset, [self.preset, *self.form.inputs], outputs, **quiet)
        self.open.click(
            None, None, None, js=f"() => kohya.browse('{self.tab}', '{OPEN}', '')", api_visibility="private"
        )
        self.save_as.click(
            None, None, None, js=f"() => kohya.browse('{self.tab}', '{SAVE}', '')", api_visibility="private"
        )
        self.save.click(self._save, inputs, [self.file, script], **quiet)
        self.reload.click(self._reload, [self.file], outputs, **quiet)

    def outputs(self, script: gr.HTML) -> list[gr.components.Component]:
        """What opening a configuration writes to, in the order of `opened` and `unchanged`."""
        return [self.file, script, self.preset, *self.form.inputs]

    def opened(self, file: FileState, message: dict[str, Any]) -> list[Any]:
        """The updates that show another configuration; the presets' list names it only if it is one."""
        named = file.name if not file.path and file.name in self.presets else ""
        return [file, message, named, *self.form.fill(file.values)]

    def unchanged(self, message: dict[str, Any] | None = None, patch: Mapping[str, Any] | None = None) -> list[Any]:
        """The updates that leave the file alone, and all fields but those of `patch`."""
        return [gr.skip(), message or channel(), gr.skip(), *self.form.patch(patch or {})]

    def is_fresh(self, file: FileState) -> bool:
        """Whether nothing but a preset was opened: then empty places are expected."""
        return not file.path and (not file.name or file.name in self.presets)

    # ------------------------------------------------------------------ showing

    def name_text(self, file: FileState, values: Mapping[str, Any]) -> str:
        """The file's name and the number of changes since it was opened or saved."""
        count = len(self.differences(file, values))
        name = file.name or self.words("not saved yet")
        if not count:
            return f"<span>{escape(name)}</span>"
        changes = self.words("1 change") if count == 1 else self.words("{n} changes", n=count)
        return f"<span>{escape(name)}, {changes}</span>"

    def differences(self, file: FileState, values: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        """(key, label, here, in the file) of every option whose value is not the file's."""
        here, there = self.form.effective(values), self.form.effective(file.values)
        rows = []
        for key, option in self.form.fields.items():
            left, right = here[key], there[key]
            if left != right and not (left in (None, "") and right in (None, "")):
                rows.append(
                    (key, self.words(option.label), str(widgets.show(option, left)), str(widgets.show(option, right)))
                )
        return rows

    # ------------------------------------------------------------------ acting

    def act(self, asked: Mapping[str, Any], file: FileState, values: Mapping[str, Any]) -> list[Any]:
        """What a dialog sent back: a file to open, a text to open, a place to save to."""
        try:
            if asked.get("do") == "open_text":
                opened = configs.open_text(str(asked.get("text", "")), self.tab)
                return self._opened(opened, "", Path(str(asked.get("name", ""))).name)
            path = str(asked.get("file") or "")
            if asked.get("key") == OPEN:
                self.services.remembered.use_folder(OPEN, str(Path(path).parent))
                return self.open_path(path)
            target = Path(str(asked.get("folder") or "")) / path
            saved = self._write(target if target.suffix else target.with_suffix(".json"), file, values)
            return [saved, *self.unchanged(channel(later=True))[1:]]
        except UserError as error:
            gr.Warning(str(error))
            return self.unchanged()

    def open_path(self, path: str) -> list[Any]:
        """Open a file of this machine.

        Raises:
            UserError: if it is outside the allowed folders, unreadable or no configuration.
        """
        real = self.services.roots.inside(path)
        return self._opened(configs.open_file(real, self.tab), str(real), real.name)

    def _opened(self, opened: configs.Opened, path: str, name: str) -> list[Any]:
        message = channel(later=True)
        if opened.report:
            html = plan_view.report_sheet(opened.report, self.words)
            message["sheet"] = {"title": self.words("{name} is open", name=name), "html": html}
        if opened.partial:
            return self.unchanged(message, opened.values)
        return self.opened(FileState(path, name, opened.values, opened.extras), message)

    def _take_preset(self, name: str, *contents: Any) -> list[Any]:
        """A preset's values; what the person typed about places and names stays, no preset can know it."""
        if name not in self.presets:
            return self.unchanged()
        typed = self.form.collect(contents).values
        kept = {key: value for key, value in typed.items() if key in _OF_THE_PERSON or self._is_place(key)}
        return self.opened(FileState("", name, {**kept, **self.presets[name].values}), channel(later=True))

    def _is_place(self, key: str) -> bool:
        return self.form.fields[key].kind in widgets.PATH_KINDS

    def _save(self, file: FileState, *contents: Any) -> list[Any]:
        found = self.form.collect(contents)
        if found.mistakes:
            gr.Warning(str(found.mistakes[0]))
            return [file, channel(go=found.mistakes[0].key)]
        if not file.path:
            return [file, channel(browse=SAVE)]
        try:
            return [self._write(Path(file.path), file, found.values), channel(later=True)]
        except UserError as error:
            gr.Warning(str(error))
            return [file, channel()]

    def _write(self, target: Path, file: FileState, values: Mapping[str, Any]) -> FileState:
        """Write the configuration, inside the allowed folders only."""
        real = self.services.roots.inside(target)
        if not real.parent.is_dir():
            raise UserError(f"The folder {real.parent} does not exist.", hint="Choose an existing folder.")
        text = configs.save_text(self.tab, dict(values), dict(file.extras))
        configs.write_file(real, text)
        gr.Info(self.words("Saved as {name}.", name=real.name))
        return replace(file, path=str(real), name=real.name, values=dict(values))

    def _reload(self, file: FileState) -> list[Any]:
        if not file.path:
            return self.opened(file, channel(later=True))
        try:
            return self.open_path(file.path)
        except UserError as error:
            gr.Warning(str(error))
            return self.unchanged()
