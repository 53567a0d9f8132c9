"""The Settings tab: theme, tooltips, first values of any field, where dialogs begin; and what only the person at the
machine can change. It writes the settings file and nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import config_toml, widgets
from kohya_gui.services import Services
from kohya_gui.settings import CONFIG_NAME, THEMES, Settings, check_default, form_fields, load_settings
from kohya_gui.tabs.message import tell, warn
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import allowed
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.tabs import TABS

OPEN = "@open"
# the theme that was chosen in a browser goes before that of the settings
_APPLY = """(theme, tips) => {
  document.body.classList.toggle('k-no-tips', !tips);
  if (theme && !localStorage.getItem('kohya-theme')) document.body.classList.toggle('dark', theme === 'dark');
  if (window.kohyaTips) return;
  window.kohyaTips = true;
  document.addEventListener('mouseover', (event) => {
    const near = event.target.closest?.('.k-form [title], .k-form [data-tip]');
    if (!near) return;
    const off = document.body.classList.contains('k-no-tips');
    if (off && near.title) { near.dataset.tip = near.title; near.removeAttribute('title'); }
    else if (!off && near.dataset.tip) { near.title = near.dataset.tip; delete near.dataset.tip; }
  });
}"""
_CHOOSE_THEME = """(theme) => {
  const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
  localStorage.removeItem('kohya-theme');
  document.body.classList.toggle('dark', (theme || system) === 'dark');
}"""
_PATH_KINDS: Mapping[str, str] = {
    key: option.label
    for tab in TABS
    for key, option in form_fields(tab).items()
    if option.kind in widgets.PATH_KINDS and not key.startswith("huggingface")
}


class SettingsTab:
    """Reads the settings file each time, so that sessions and editors see each other's changes."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.words = services.words
        self.path = services.settings.path or services.home / CONFIG_NAME

    # ------------------------------------------------------------------ building

    def build(self) -> None:
        """Make the tab."""
        words, now = self.words, self._now()
        with gr.Column(elem_id="settings-tab", elem_classes=["k-tab"]):
            with gr.Column(elem_classes=["k-card"]):
                kept = words("These settings are kept in {path}.", path=self.path)
                when = words("First values hold from the next start of the program. The language is chosen at the top.")
                widgets.html(
                    f"<h2>{words('Settings')}</h2><p class='k-quiet'>{escape(kept)} {escape(when)}</p>",
                )
                with gr.Row(elem_classes=["k-bar", "k-tools"]):
                    self.theme = gr.Dropdown(
                        [(words("As the browser"), ""), (words("Light"), "light"), (words("Dark"), "dark")],
                        value=now.theme,
                        label=words("Theme"),
                        elem_id="settings-theme",
                        min_width=0,
                    )
                    self.tips = gr.Checkbox(
                        value=now.tooltips, label=words("Explain fields under the pointer"), elem_id="settings-tips"
                    )
                self.report = widgets.html(self._report_html(now), elem_id="settings-report", elem_classes=["k-quiet"])
            self._build_defaults(now)
            self._build_folders(now)
            widgets.html(self._fixed_html(), elem_classes=["k-card"])

    def _build_defaults(self, now: Settings) -> None:
        words = self.words
        with gr.Column(elem_classes=["k-card"], elem_id="settings-defaults"):
            widgets.html(f"<h2>{words('First values of fields')}</h2>")
            with gr.Row(elem_classes=["k-bar", "k-tools"]):
                self.tab = gr.Dropdown(
                    [(words(tab.title), name) for name, tab in TABS.items()],
                    value="lora",
                    label=words("Training tab"),
                    elem_id="settings-tab-name",
                    min_width=0,
                )
                self.field = gr.Dropdown(
                    [], value=None, label=words("Field"), elem_id="settings-field", filterable=True, min_width=0
                )
                self.value = gr.Textbox(label=words("First value"), elem_id="settings-value", max_lines=1, min_width=0)
                self.set = self._button(words("Set"), "settings-set")
                self.remove = self._button(words("Remove"), "settings-remove")
            self.hint = widgets.html("", elem_id="settings-hint", elem_classes=["k-quiet"])
            self.table = widgets.html(self._defaults_html(now), elem_id="settings-list")

    def _build_folders(self, now: Settings) -> None:
        words = self.words
        choices = [(words("Open a configuration"), OPEN), *[(words(text), key) for key, text in _PATH_KINDS.items()]]
        with gr.Column(elem_classes=["k-card"], elem_id="settings-folders"):
            widgets.html(f"<h2>{words('Where dialogs begin')}</h2>")
            with gr.Row(elem_classes=["k-bar", "k-tools"]):
                self.place = gr.Dropdown(
                    choices, value=OPEN, label=words("Dialog of the field"), elem_id="settings-place", min_width=0
                )
                self.folder = gr.Textbox(label=words("Folder"), elem_id="settings-folder", max_lines=1, min_width=0)
                self.set_folder = self._button(words("Set"), "settings-set-folder")
                self.remove_folder = self._button(words("Remove"), "settings-remove-folder")
            self.folders = widgets.html(self._folders_html(now), elem_id="settings-folder-list")

    def _button(self, text: str, name: str) -> gr.Button:
        return gr.Button(text, elem_id=name, min_width=0, scale=0)

    def wire(self, page: gr.Blocks) -> None:
        """Connect the parts and the load of the page."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        shown = [self.theme, self.tips, self.field, self.table, self.folders, self.report]
        page.load(self._load, [self.tab], shown, **quiet).then(
            None, [self.theme, self.tips], None, js=_APPLY, api_visibility="private"
        )
        self.theme.input(self._choose_theme, [self.theme], None, js=None, **quiet)
        self.theme.input(None, [self.theme], None, js=_CHOOSE_THEME, api_visibility="private")
        self.tips.input(self._choose_tips, [self.tips], None, **quiet)
        self.tips.input(None, [self.theme, self.tips], None, js=_APPLY, api_visibility="private")
        self.tab.input(self._choose_tab, [self.tab], [self.field, self.value, self.hint], **quiet)
        self.field.input(self._choose_field, [self.tab, self.field], [self.value, self.hint], **quiet)
        self.set.click(self._set, [self.tab, self.field, self.value], [self.table], **quiet)
        self.remove.click(self._remove, [self.tab, self.field], [self.table, self.value], **quiet)
        self.place.input(self._choose_place, [self.place], [self.folder], **quiet)
        self.set_folder.click(self._set_folder, [self.place, self.folder], [self.folders], **quiet)
        self.remove_folder.click(self._remove_folder, [self.place], [self.folders, self.folder], **quiet)

    # ------------------------------------------------------------------ showing

    def _now(self) -> Settings:
        """The settings as they are; those of the start if the file cannot be read."""
        try:
            return load_settings(self.path)
        except UserError:
            return self.services.settings

    def _load(self, tab: str) -> list[Any]:
        now = self._now()
        field = gr.Dropdown(choices=self._field_choices(tab))
        tables = [self._defaults_html(now), self._folders_html(now), self._report_html(now)]
        return [now.theme, now.tooltips, field, *tables]

    def _field_choices(self, tab: str) -> list[tuple[str, str]]:
        fields = form_fields(tab) if tab in TABS else {}
        return [(f"{self.words(o.label)} ({key})", key) for key, o in fields.items() if o.kind != "secret"]

    def _defaults_html(self, now: Settings) -> str:
        rows = []
        for tab, values in now.defaults.items():
            fields = form_fields(tab)
            for key, value in values.items():
                option = fields.get(key)
                if option is None or option.kind == "secret":
                    continue
                title = escape(self.words(TABS[tab].title))
                rows.append(
                    f"<tr><td>{title}</td><td>{escape(self.words(option.label))}</td><td><code>{escape(key)}</code>"
                    f"</td><td>{escape(str(widgets.show(option, value)))}</td></tr>"
                )
        words = self.words
        heads = (words("Training tab"), words("Field"), words("Name in files"), words("First value"))
        return self._table_html(heads, rows, words("No field has a first value of its own."))

    def _folders_html(self, now: Settings) -> str:
        rows = [
            f"<tr><td>{escape(self._place_name(key))}</td><td>{escape(folder)}</td></tr>"
            for key, folder in now.start_folders.items()
        ]
        heads = (self.words("Dialog of the field"), self.words("Folder"))
        return self._table_html(heads, rows, self.words("Dialogs begin where they were used last."))

    def _place_name(self, key: str) -> str:
        return self.words("Open a configuration") if key == OPEN else self.words(_PATH_KINDS.get(key, key))

    def _table_html(self, heads: Sequence[str], rows: list[str], empty: str) -> str:
        if not rows:
            return f"<p class='k-quiet'>{escape(empty)}</p>"
        head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in heads)
        return f"<table class='k-table'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def _report_html(self, now: Settings) -> str:
        """What the settings file says that has no meaning here."""
        if not now.report:
            return ""
        lines = "".join(f"<li>{escape(self.words.said(line.message))}</li>" for line in now.report)
        title = self.words("Without effect in the settings file: {n}", n=len(now.report))
        return f"<details><summary>{escape(title)}</summary><ul>{lines}</ul></details>"

    def _fixed_html(self) -> str:
        """What the page cannot change, and how the person at the machine can."""
        words, services = self.words, self.services
        rows = [
            (words("Folders open to the page"), ", ".join(str(folder) for folder in services.roots.folders)),
            (words("Jobs are kept in"), str(services.jobs.root)),
            (words("The page's own files are in"), str(services.home)),
            (words("Settings file"), str(self.path)),
        ]
        lines = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in rows)
        how = words(
            "For safety these are changed at the machine only: allowed_paths in the table server of the settings file, "
            "or --allow_folder, --jobs_dir, --config and --allow_plugins, and a new start."
        )
        return f"<h2>{words('Folders')}</h2><table class='k-table'>{lines}</table><p class='k-quiet'>{escape(how)}</p>"

    # ------------------------------------------------------------------ changing

    def _write(self, names: tuple[str, ...], value: Any) -> bool:
        """Change one key of the settings file; a person is told if that fails."""
        try:
            config_toml.change(self.path, lambda content: config_toml.put(content, names, value))
        except UserError as error:
            warn(self.words.error(error))
            return False
        return True

    def _choose_theme(self, theme: str) -> None:
        self._write(("settings", "theme"), theme if theme in THEMES else None)

    def _choose_tips(self, tips: bool) -> None:
        self._write(("settings", "enable_info_tooltip"), bool(tips))

    def _choose_tab(self, tab: str) -> list[Any]:
        return [gr.Dropdown(choices=self._field_choices(tab), value=None), "", ""]

    def _choose_field(self, tab: str, key: str) -> list[Any]:
        option = form_fields(tab).get(key) if tab in TABS else None
        if option is None:
            return ["", ""]
        value = self._now().values(tab).get(key)
        shown = "" if value is None else self._text(option, value)
        usual = self._text(option, option.default) or self.words("none")
        said = f"{self.words(option.help)} {self.words.said(allowed(option))}".strip()
        said += f" {self.words('Usual value: {value}.', value=usual)}"
        return [shown, f"<span>{escape(said)}</span>"]

    def _text(self, option: OptionField, value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(widgets.show(option, value))

    def _set(self, tab: str, key: str, text: str) -> Any:
        try:
            value = check_default(str(tab), str(key or ""), str(text or "").strip())
        except UserError as error:
            warn(self.words.error(error))
            return gr.skip()
        if not self._write(("defaults", tab, key), value):
            return gr.skip()
        tell(self.words("Kept. It holds from the next start."))
        return self._defaults_html(self._now())

    def _remove(self, tab: str, key: str) -> list[Any]:
        if tab not in TABS or not key or not self._write(("defaults", tab, str(key)), None):
            return [gr.skip(), gr.skip()]
        now = self._now()
        if key in now.values(tab):
            warn(self.words("Another table of the settings file names this field too; change it there."))
        return [self._defaults_html(now), ""]

    def _choose_place(self, key: str) -> str:
        return self._now().start_folders.get(str(key), "")

    def _set_folder(self, key: str, folder: str) -> Any:
        try:
            if key != OPEN and key not in _PATH_KINDS:
                raise UserError("Choose the dialog first.")
            real = self.services.roots.inside(str(folder or "").strip())
            if not Path(real).is_dir():
                raise UserError(f"{real} is no folder.", hint="Choose an existing folder.")
        except UserError as error:
            warn(self.words.error(error))
            return gr.skip()
        if not self._write(("start_folders", key), str(real)):
            return gr.skip()
        self.services.remembered.start_folders[key] = str(real)
        return self._folders_html(self._now())

    def _remove_folder(self, key: str) -> list[Any]:
        if (key != OPEN and key not in _PATH_KINDS) or not self._write(("start_folders", key), None):
            return [gr.skip(), gr.skip()]
        self.services.remembered.start_folders.pop(key, None)
        return [self._folders_html(self._now()), ""]
