"""Manual captioning: five pictures a page, each with its caption and its tags to tick."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from kohya_gui import widgets
from kohya_gui.localization import Words
from kohya_gui.prepare import tags
from kohya_gui.services import Services
from kohya_gui.tabs import results
from kohya_gui.tabs.message import channel
from kohya_gui.tabs.tool_form import QUIET, ToolForm, Where
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import section_fields
from sd_scripts.schema.tools_preparation import ManualCaptionOptions

NAME = "manual_caption"
# an edit goes to Python, which knows how tags are ordered, and comes back as text and boxes; nothing else is drawn anew
_SCRIPT = """
const edit = async (row, more) => {
  const root = row.closest('[data-ending]'), area = row.querySelector('textarea');
  const auto = root.dataset.auto === '1' || more.save;
  const made = await server.edit({ file: row.dataset.file, text: area.value, ending: root.dataset.ending,
    quick: root.dataset.quick, ...more, save: auto });
  if (made.text !== undefined) area.value = made.text;
  if (made.boxes !== undefined) row.querySelector('.k-boxes').innerHTML = made.boxes;
  row.classList.toggle('k-hand-open', !made.saved);
  row.querySelector('.k-hand-said').textContent = made.said;
};
element.addEventListener('change', (event) => {
  const row = event.target.closest('[data-file]'), goto = event.target.closest('[data-goto]');
  if (goto) trigger('click', { do: 'page', page: goto.value });
  else if (row && event.target.type === 'checkbox') edit(row, { tag: event.target.value, on: event.target.checked });
  else if (row) edit(row, {});
});
element.addEventListener('click', (event) => {
  const turns = event.target.closest('[data-do=page]'), left = element.querySelectorAll('.k-hand-open').length;
  const sure = element.querySelector('[data-sure-left]')?.dataset.sureLeft;
  if (turns && left && !confirm(sure)) return;
  if (event.target.closest('[data-save]')) edit(event.target.closest('[data-file]'), { save: true });
  else kohya.act(event, trigger);
});
"""


@dataclass(frozen=True)
class Hand:
    """What one session captions: the folder, the ending of its captions, the page, and the quick tags shown."""

    folder: str = ""
    ending: str = ".txt"
    page: int = 1
    quick: tuple[str, ...] = ()


class ManualPanel:
    """Captions by hand. Sessions share the object; where one is stands in its state."""

    def __init__(self, services: Services, where: Where) -> None:
        self.services = services
        self.words = services.words
        known = {option.key: option for option in section_fields(ManualCaptionOptions)}
        self.fields = ToolForm(NAME, known, services, where, wide=("images_dir",))

    def build(self) -> None:
        """Make the panel."""
        with gr.Column(elem_classes=["k-card", "k-tool"]):
            said = self.words("Write and tick captions picture by picture. To change all of them at once, use Basic.")
            widgets.html(f'<p class="k-quiet">{said}</p>')
            self.fields.build()
            with gr.Row(elem_classes=["k-start", "k-tool-buttons"]):
                self.load = gr.Button(
                    self.words("Load"), variant="primary", elem_id=f"{NAME}-load", min_width=0, scale=0
                )
                self.collect = gr.Button(
                    self.words("Import tags from captions"), elem_id=f"{NAME}-import", min_width=0, scale=0
                )
            self.hand = gr.State(Hand())
            self.rows = widgets.html(
                "", elem_id=f"{NAME}-rows", js_on_load=_SCRIPT, server_functions=[self._server_function()]
            )

    def _server_function(self) -> Any:
        """One edit of one caption, as the script sends it."""

        def edit(request: dict[str, Any]) -> dict[str, Any]:
            return self.edit(request)

        return edit

    def wire(self) -> None:
        """Connect form, buttons and rows."""
        self.fields.wire()
        inputs = self.fields.form.inputs
        outputs = [self.hand, self.rows, self.fields.channel]
        self.load.click(self._load, inputs, outputs, trigger_mode="once", **QUIET)
        self.collect.click(self._import, [self.hand, *inputs], [*outputs, *inputs], trigger_mode="once", **QUIET)
        self.rows.click(self._act, [self.hand, *inputs], outputs, trigger_mode="always_last", **QUIET)
        self.fields.refresh.click(self._again, [self.hand, *inputs], [self.hand, self.rows], **QUIET)

    # ------------------------------------------------------------------ what happens

    def edit(self, request: dict[str, Any]) -> dict[str, Any]:
        """The caption and its boxes after a change, written if asked for.

        Args:
            request: file, text, ending, quick (tags with commas), save, and for a box tag and on.
        """
        quick, text = tags.split(str(request.get("quick", ""))), str(request.get("text", ""))
        if "tag" in request:
            text = tags.ticked(text, str(request["tag"]), request.get("on") is True, quick)
        answer: dict[str, Any] = {"text": text, "boxes": boxes(tags.choices(text, quick)), "saved": False}
        if request.get("save") is not True:
            return {**answer, "said": self.words("not saved yet")}
        try:
            tags.write(self.services.roots, str(request.get("file", "")), str(request.get("ending", "")), text)
        except UserError as error:
            return {**answer, "said": self.words.error(error)}
        return {**answer, "saved": True, "said": self.words("saved")}

    def _asked(self, contents: Sequence[Any]) -> tuple[Hand, bool, int]:
        """Where to look, whether edits are written at once, and the longest tag that is imported, in words."""
        values = self.fields.values(contents)
        if not values.get("images_dir"):
            raise UserError("The folder with the pictures is missing.", "images_dir", "Choose a folder.")
        folder = self.services.roots.inside(str(values["images_dir"]), "images_dir")
        ending = tags.ending(str(values.get("caption_ext") or ".txt"))
        quick = tuple(tags.split(str(values.get("quick_tags_text") or "")))
        most = int(values.get("ignore_load_tags_word_count") or 3)
        return Hand(str(folder), ending, 1, quick), bool(values.get("auto_save")), most

    def _show(self, hand: Hand, auto: bool) -> tuple[Hand, str]:
        found = tags.pictures(Path(hand.folder))
        number = min(max(hand.page, 1), tags.pages(found))
        rows = tags.page(found, number, hand.ending, hand.quick)
        shown = replace(hand, page=number)
        return shown, sheet(rows, shown, tags.pages(found), auto, self.words)

    def _load(self, *contents: Any) -> list[Any]:
        try:
            hand, auto, _ = self._asked(contents)
            return [*self._show(hand, auto), self.fields.message(contents)]
        except UserError as error:
            return [Hand(), results.mistake(error, self.words), self.fields.message(contents, error)]

    def _act(self, event: gr.EventData, hand: Hand, *contents: Any) -> list[Any]:
        asked: dict[str, Any] = dict(event._data or {})
        if asked.get("do") != "page" or not hand.folder:
            return [gr.skip()] * 3
        try:
            now, auto, _ = self._asked(contents)
            wanted = str(asked.get("page", ""))
            number = int(wanted) if wanted.isdecimal() and len(wanted) < 8 else hand.page
            return [*self._show(replace(hand, page=number, quick=now.quick), auto), gr.skip()]
        except UserError as error:
            return [hand, results.mistake(error, self.words), self.fields.message(contents, error)]

    def _again(self, hand: Hand, *contents: Any) -> list[Any]:
        """Other quick tags or another way of saving: the rows are drawn anew, unless that could lose an edit."""
        try:
            now, auto, _ = self._asked(contents)
            if not hand.folder or not auto or now.quick == hand.quick:
                return [gr.skip()] * 2
            return list(self._show(replace(hand, quick=now.quick), auto))
        except UserError:
            # the form's own look says what is wrong in it
            return [gr.skip()] * 2

    def _import(self, hand: Hand, *contents: Any) -> list[Any]:
        """Add the tags of all captions to the quick tags."""
        form = self.fields.form
        try:
            asked, auto, most = self._asked(contents)
            known = list(asked.quick)
            there = {tag.casefold() for tag in known}
            new = tags.collect(tags.pictures(Path(asked.folder)), asked.ending, most)
            quick = [*known, *(tag for tag in new if tag.casefold() not in there)]
            page = hand.page if hand.folder == asked.folder else 1
            shown = self._show(replace(asked, page=page, quick=tuple(quick)), auto)
        except UserError as error:
            message = self.fields.message(contents, error)
            return [hand, results.mistake(error, self.words), message, *form.patch({})]
        return [*shown, channel(later=True), *form.patch({"quick_tags_text": ", ".join(quick)})]


# ---------------------------------------------------------------- HTML


def boxes(choices: Sequence[tuple[str, bool]]) -> str:
    """The tags of one caption to tick."""
    return "".join(
        f'<label class="k-tag"><input type="checkbox" value="{escape(tag)}"{" checked" if on else ""}>'
        f"{escape(tag)}</label>"
        for tag, on in choices
    )


def _row(row: tags.Row, auto: bool, words: Words) -> str:
    path = escape(str(row.picture))
    name = escape(row.picture.name)
    save = "" if auto else f'<button class="k-button" data-save="1">{words("Save")}</button>'
    return (
        f'<div class="k-hand" data-file="{path}"><a href="kohya/file?path={quote(str(row.picture))}" target="_blank">'
        f'<img loading="lazy" alt="{name}" src="kohya/thumb?path={quote(str(row.picture))}&amp;size=320"></a>'
        f'<div><p class="k-hand-head"><b>{name}</b><span class="k-quiet k-hand-said" role="status"></span>{save}</p>'
        f'<textarea rows="3" aria-label="{words("Caption of {name}", name=name)}">{escape(row.caption)}</textarea>'
        f'<div class="k-boxes" role="group" aria-label="{words("Tags of {name}", name=name)}">{boxes(row.tags)}</div>'
        "</div></div>"
    )


def _bar(hand: Hand, count: int, words: Words) -> str:
    def turn(page: int, text: str) -> str:
        off = "" if 1 <= page <= count else " disabled"
        return f'<button class="k-button" data-do="page" data-page="{page}"{off}>{text}</button>'

    where = words("Page {n} of {count}", n=hand.page, count=count)
    box = (
        f'<input data-goto="1" inputmode="numeric" size="4" aria-label="{words("Go to page")}" '
        f'placeholder="{hand.page}">'
    )
    return (
        f'<div class="k-pages-bar">{turn(hand.page - 1, words("Previous"))}<span class="k-quiet">{where}</span>{box}'
        f"{turn(hand.page + 1, words('Next'))}</div>"
    )


def sheet(rows: Sequence[tags.Row], hand: Hand, count: int, auto: bool, words: Words) -> str:
    """One page: five pictures with captions, and the ways to the other pages above and below."""
    bar = _bar(hand, count, words)
    sure = words("Captions on this page are not saved. Leave it all the same?")
    quick = escape(", ".join(hand.quick))
    return (
        f'<div data-ending="{escape(hand.ending)}" data-quick="{quick}" data-auto="{int(auto)}" '
        f'data-sure-left="{escape(sure)}">'
        f"{bar}{''.join(_row(row, auto, words) for row in rows)}{bar}</div>"
    )
