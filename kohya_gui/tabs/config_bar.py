"""The toolbar of a training tab: presets, open, save, reload, reset, and what the file is called and how far the form
is from it."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import configs, recent, user_presets, widgets
from kohya_gui.form import PATCH, Form
from kohya_gui.services import Services
from kohya_gui.tabs import compare, preset_sheet, reset
from kohya_gui.tabs import plan as plan_view
from kohya_gui.tabs.message import channel, tell, warn
from kohya_gui.tabs.preset_acts import PresetActs
from kohya_gui.tabs.sources import DEFAULTS, FILE, FORM, PATH, Before, FileState, Sources
from sd_scripts.schema.errors import UserError

__all__ = ["OPEN", "SAVE", "ConfigBar", "FileState", "recent_files"]

OPEN, SAVE, COMPARE = "@open", "@save", "@compare"
Values = Mapping[str, Any]


class ConfigBar:
    """The toolbar above one form."""

    def __init__(self, tab: str, form: Form, services: Services, start: FileState) -> None:
        self.tab = tab
        self.form = form
        self.services = services
        self.words = services.words
        self.start = start
        self.sources = Sources(tab, form, services)
        self.preset_acts = PresetActs(tab, form, services, self.sources)
        self.acts: dict[str, Callable[[Values, FileState, Values], list[Any]]] = {
            "pick": self._picked,
            "open_text": self._open_text,
            "open_header": self._open_header,
            "save_over": self._save_over,
            "compare": self._compare,
            "take": self._take,
            "reset_ask": self._reset_ask,
            "reset_section": self._reset_section,
            "preset_take": lambda asked, file, values: self.take_preset(str(asked.get("about", "")), values),
        }

    def facts(self) -> dict[str, Any]:
        """The dialogs of this bar, for the page's script."""
        name = f"{self.tab}.json"
        return {OPEN: {"kind": "open"}, SAVE: {"kind": "save", "name": name}, COMPARE: {"kind": "open"}}

    def build(self) -> None:
        """Make the toolbar."""
        self.file = gr.State(self.start)
        with gr.Row(elem_classes=["k-bar", "k-tools"]):
            self.preset = gr.Dropdown(
                self.sources.preset_choices(),
                value=self.start.preset,
                show_label=False,
                label=self.words("Preset"),
                elem_id=f"{self.tab}-preset",
                elem_classes=["k-preset"],
                min_width=0,
                scale=2,
            )
            self.presets = self._button("Presets", "presets")
            self.open = self._button("Open", "open")
            self.save = self._button("Save", "save")
            self.save_as = self._button("Save as", "saveas")
            self.reload = self._button("Reload", "reload")
            self.reset = self._button("Reset", "reset")
            self.name_html = widgets.html(
                self.name_text(self.start, self.start.values), elem_id=f"{self.tab}-file", elem_classes=["k-file"]
            )

    def _button(self, text: str, name: str) -> gr.Button:
        return gr.Button(self.words(text), elem_id=f"{self.tab}-{name}", min_width=0, scale=0)

    def wire(self, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Connect the buttons; `script` is the tab's channel to the page's script."""
        inputs = [self.file, *self.form.inputs]
        outputs = self.outputs(script)
        self.preset.input(self._choose_preset, [self.preset, *inputs], outputs, **quiet)
        for button, key in ((self.open, OPEN), (self.save_as, SAVE)):
            browse = f"() => kohya.browse('{self.tab}', '{key}', '')"
            button.click(None, None, None, js=browse, api_visibility="private")
        self.save.click(self._save, inputs, [self.file, script], **quiet)
        self.reload.click(self._reload, inputs, outputs, **quiet)
        self.presets.click(self._show_presets, None, [script], **quiet)
        self.reset.click(self._show_reset, [self.file], [script], **quiet)

    def outputs(self, script: gr.HTML) -> list[gr.components.Component]:
        """What opening a configuration writes to, in the order of `opened` and `unchanged`."""
        return [self.file, script, self.preset, *self.form.inputs]

    def opened(self, file: FileState, message: dict[str, Any]) -> list[Any]:
        """The updates that show another configuration; the presets' list names it only if it is one."""
        return [file, message, self.preset_update(file), *self.form.fill(file.values)]

    def preset_update(self, file: FileState) -> gr.Dropdown:
        """The list of presets as it is now, with the one that the session works on."""
        choices = self.sources.preset_choices()
        known = file.preset in [name for _, name in choices]
        return gr.Dropdown(choices=choices, value=file.preset if known else "")

    def unchanged(self, message: dict[str, Any] | None = None, patch: Values | None = None) -> list[Any]:
        """The updates that leave the file alone, and all fields but those of `patch`."""
        return [gr.skip(), message or channel(), gr.skip(), *self.form.patch(patch or {})]

    def is_fresh(self, file: FileState) -> bool:
        """Whether nothing but a preset was opened: then empty places are expected."""
        return not file.path and (not file.name or bool(file.preset))

    def undoable(self, updates: list[Any], file: FileState, values: Values) -> list[Any]:
        """The updates, with what they write over kept for "Undo".

        Args:
            updates: as `opened` or `unchanged` gave them.
            file: the session's configuration before.
            values: what the form said before.
        """
        state, message, preset, shown = updates
        if not isinstance(shown, dict) or shown == gr.skip():
            return updates
        unsaved = len(compare.differences(self.form, values, file.values))
        if PATCH not in shown and not unsaved:
            return updates
        if PATCH not in shown:
            tell(self.words("{n} unsaved changes were replaced. Undo brings them back.", n=unsaved))
        kept = Before(replace(file, before=None), dict(values))
        return [replace(state if isinstance(state, FileState) else file, before=kept), message, preset, shown]

    # ------------------------------------------------------------------ showing

    def name_text(self, file: FileState, values: Values) -> str:
        """The file's name and the number of changes since it was opened or saved, and the way back to what the form
        said before that."""
        return self._undo_button(file) + self._name(file, values)

    def _undo_button(self, file: FileState) -> str:
        if file.before is None:
            return ""
        name = file.before.file.name or self.words("not saved yet")
        title = escape(self.words("Back to {name}, as it stood here", name=name))
        button = f'<button class="k-link" data-ask="undo_open" title="{title}">{self.words("Undo")}</button>'
        return f'<span data-tab="{self.tab}">{button}</span> '

    def _name(self, file: FileState, values: Values) -> str:
        count = len(compare.differences(self.form, values, file.values))
        # the names of our own presets are translated, those of files are not
        named = self.words(file.name) if file.preset else file.name
        name = named or self.words("not saved yet")
        if not count:
            return f'<span title="{escape(name)}">{escape(name)}</span>'
        changes = self.words("1 change") if count == 1 else self.words("{n} changes", n=count)
        return f'<span class="k-unsaved" title="{escape(name)}">{escape(name)}, {changes}</span>'

    def compare_sheet(self, left: str, right: str, file: FileState, values: Values) -> dict[str, Any]:
        """The message that shows two configurations side by side.

        Raises:
            UserError: if one of them is not there any more or cannot be read.
        """
        one, other = (self.sources.get(source, file, values) for source in (left, right))
        groups = self.sources.groups(file, (left, right))
        html = compare.sheet(self.form, one, other, groups, self.words)
        return channel(sheet={"title": self.words("Compare"), "html": html}, later=True)

    def _show_presets(self) -> dict[str, Any]:
        return self.preset_acts.message(preset_sheet.Draft())

    def _show_reset(self, file: FileState) -> dict[str, Any]:
        groups = [group for group in self.sources.groups(file) if group[1][0][0] != FORM]
        here = [(name, label) for name, label in self.sources.groups(file)[0][1] if name != FORM]
        chosen = FILE if file.name else DEFAULTS
        html = reset.sheet(self.form, [(self.words("Here"), here), *groups], chosen, self.words)
        return channel(sheet={"title": self.words("Reset"), "html": html})

    # ------------------------------------------------------------------ acting

    def act(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        """What a dialog, a drop or a button of the page asks for; nothing, if it is not known here."""
        action = str(asked.get("do", ""))
        try:
            if action == "undo_open":
                return self._undo(file, values)
            if action in self.acts:
                return self.undoable(self.acts[action](asked, file, values), file, values)
            if action in self.preset_acts.acts:
                message, changed = self.preset_acts.act(asked, file, values)
                return [changed or gr.skip(), message, self.preset_update(changed or file), *self.form.patch({})]
        except UserError as error:
            warn(self.words.error(error))
        return self.unchanged()

    def _undo(self, file: FileState, values: Values) -> list[Any]:
        """What stood in the form before; a second time it is what stands there now."""
        if file.before is None:
            return self.unchanged()
        now, then = Before(replace(file, before=None), dict(values)), file.before
        back = replace(then.file, before=now)
        return [back, channel(later=True), self.preset_update(back), *self.form.fill(then.values)]

    def _picked(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        path, key = str(asked.get("file") or ""), str(asked.get("key", ""))
        if key == SAVE:
            target = Path(str(asked.get("folder") or "")) / path
            return self._save_to(target if target.suffix else target.with_suffix(".json"), file, values)
        if key not in (OPEN, COMPARE):
            return self.unchanged()
        self.services.remembered.use_folder(OPEN, str(Path(path).parent))
        if key == COMPARE:
            return self.unchanged(self.compare_sheet(FORM, PATH + path, file, values))
        return self.open_path(path)

    def open_path(self, path: str) -> list[Any]:
        """Open a file of this machine; one of another tab opens there.

        Raises:
            UserError: if it is outside the allowed folders, unreadable or no configuration.
        """
        real = self.services.roots.inside(path)
        opened = configs.open_file(real, otherwise=self.tab)
        again = {"do": "pick", "key": OPEN, "file": str(real)}
        return self._opened(opened, real, real.name, again)

    def _open_text(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        if not isinstance(asked.get("text"), str):
            name = _plain(asked.get("name"))
            raise UserError(f"{name} is too large for a saved form.", hint="Choose another file.")
        opened = configs.open_text(asked["text"], otherwise=self.tab)
        return self._opened(opened, None, _plain(asked.get("name")), dict(asked))

    def _open_header(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        """The first bytes of a .safetensors file that was dropped, in base64."""
        name = _plain(asked.get("name"))
        try:
            head = base64.b64decode(str(asked.get("head", "")), validate=True)
        except (ValueError, binascii.Error) as error:
            raise UserError(f"{name} did not arrive whole.", hint="Try again.") from error
        return self._opened(configs.open_header(name, head, otherwise=self.tab), None, name, dict(asked))

    def _opened(self, opened: configs.Opened, path: Path | None, name: str, again: dict[str, Any]) -> list[Any]:
        """Show what was opened here, or ask the tab that it belongs to to do so."""
        if opened.tab != self.tab:
            return self.unchanged(channel(top=opened.tab, send={"tab": opened.tab, "data": again}))
        message = channel(later=True)
        if opened.report:
            html = plan_view.report_sheet(opened.report, self.words)
            message["sheet"] = {"title": self.words("{name} is open", name=name), "html": html}
        if opened.partial:
            return self.unchanged(message, opened.values)
        # nothing can be saved to a model or a trainer's TOML
        kept = path if path is not None and path.suffix.lower() == ".json" else None
        if path is not None:
            recent.use(self.services.remembered, self.tab, path)
        return self.opened(
            FileState(str(kept or ""), name, opened.values, opened.extras, stamp=_stamp(kept) if kept else 0), message
        )

    def _choose_preset(self, name: str, file: FileState, *contents: Any) -> list[Any]:
        typed = self.form.collect(contents).values
        try:
            return self.undoable(self.take_preset(name, typed), file, typed) if name else self.unchanged()
        except UserError as error:
            warn(self.words.error(error))
            return self.unchanged()

    def take_preset(self, source: str, typed: Values) -> list[Any]:
        """A preset's values; what the person typed about places and names stays, no preset can know it.

        Raises:
            UserError: if there is no such preset any more.
        """
        preset = self.sources.preset(source)
        known = self.form.fields
        kept = {
            key: value
            for key, value in typed.items()
            if known[key].kind == "secret" or user_presets.is_personal(key, known[key])
        }
        state = FileState("", preset.name, {**kept, **preset.values}, preset=source)
        return self.opened(state, channel(later=True, close=True))

    def _compare(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        left, right = (str(asked.get(side) or default) for side, default in (("left", FORM), ("right", FILE)))
        return self.unchanged(self.compare_sheet(left, right, file, values))

    def _take(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        """One value of a compared configuration into the form; the dialog stays."""
        key, side = str(asked.get("key", "")), "left" if asked.get("from") == "left" else "right"
        if key not in self.form.fields:
            return self.unchanged()
        source = self.sources.get(str(asked.get(side, "")), file, values)
        patch = reset.patch(self.form, [key], source.values)
        message = self.compare_sheet(str(asked.get("left")), str(asked.get("right")), file, {**values, **patch})
        return self.unchanged(message, patch)

    def _reset_ask(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        return self.unchanged(self._show_reset(file))

    def _reset_section(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        keys = reset.keys_of(self.form, str(asked.get("group", "")))
        base = self.sources.get(str(asked.get("to") or FILE), file, values)
        patch = reset.patch(self.form, keys, base.values, keep_places=asked.get("keep_places") is True)
        return self.unchanged(channel(later=True, close=True), patch)

    def _save(self, file: FileState, *contents: Any) -> list[Any]:
        found = self.form.collect(contents)
        if found.mistakes:
            warn(self.words.error(found.mistakes[0]))
            return [file, channel(go=found.mistakes[0].key)]
        if not file.path:
            return [file, channel(browse=SAVE)]
        try:
            return self._save_to(Path(file.path), file, found.values)[:2]
        except UserError as error:
            warn(self.words.error(error))
            return [file, channel()]

    def _save_over(self, asked: Values, file: FileState, values: Values) -> list[Any]:
        return self._save_to(Path(str(asked.get("file") or "")), file, values, sure=True)

    def _save_to(self, target: Path, file: FileState, values: Values, *, sure: bool = False) -> list[Any]:
        """Write the configuration, inside the allowed folders only; a file that is not the open one, or that changed
        since, only when `sure`."""
        real = self.services.roots.inside(target)
        if not real.parent.is_dir():
            raise UserError(f"The folder {real.parent} does not exist.", hint="Choose an existing folder.")
        if real.exists() and not sure and (str(real) != file.path or _stamp(real) != file.stamp):
            return self.unchanged(self._ask_over(real, changed=str(real) == file.path))
        configs.write_file(real, configs.save_text(self.tab, dict(values), dict(file.extras)))
        recent.use(self.services.remembered, self.tab, real)
        tell(self.words("Saved as {name}.", name=real.name))
        saved = replace(
            file, path=str(real), name=real.name, values=dict(values), preset="", stamp=_stamp(real), before=None
        )
        return [saved, channel(later=True, close=True), self.preset_update(saved), *self.form.patch({})]

    def _ask_over(self, path: Path, changed: bool) -> dict[str, Any]:
        words = self.words
        said = words("{name} is already there. Replace it?", name=path.name)
        if changed:
            said = words("{name} was changed by something else since it was opened. Replace it?", name=path.name)
        html = (
            f'<div data-tab="{self.tab}"><p>{escape(said)}</p><p class="k-quiet k-where">{escape(str(path))}</p>'
            f'<div class="k-foot"><button data-browse="{SAVE}">{words("Another name")}</button>'
            f'<button class="k-main" data-ask="save_over" data-file="{escape(str(path))}">{words("Replace")}</button>'
            "</div></div>"
        )
        return channel(sheet={"title": words("Save"), "html": html})

    def _reload(self, file: FileState, *contents: Any) -> list[Any]:
        typed = self.form.collect(contents).values
        try:
            return self.undoable(self._opened_again(file), file, typed)
        except UserError as error:
            warn(self.words.error(error))
            return self.unchanged()

    def _opened_again(self, file: FileState) -> list[Any]:
        if file.path:
            return self.open_path(file.path)
        if file.preset:
            # the preset may have been saved anew; what the person typed about places is in the old values
            return self.take_preset(file.preset, {k: v for k, v in file.values.items() if k in self.form.fields})
        return self.opened(file, channel(later=True))


def recent_files(services: Services, tab: str) -> str:
    """The files opened last, as rows on top of the dialog that opens one."""
    files = recent.listed(services.remembered, tab, services.roots)
    rows = "".join(
        f'<button class="k-row" data-pick="{escape(str(path))}"><span>{escape(path.name)}</span>'
        f"<small>{escape(str(path.parent))}</small></button>"
        for path in files
    )
    if not rows:
        return ""
    return f'<h3>{services.words("Opened last")}</h3><div class="k-rows">{rows}</div>'


def _plain(name: object) -> str:
    """The last part of a file's name as a browser tells it."""
    return Path(str(name or "").replace("\\", "/")).name


def _stamp(path: Path) -> int:
    """When a file was last changed, in nanoseconds; 0 if that cannot be told."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
