"""The dataset view: folders found, pictures with caption, bucket and crop, and what the text encoder sees of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from kohya_gui import checks, pictures, widgets
from kohya_gui.dataset_view import DatasetView, FolderView, PictureView
from kohya_gui.effective import understand
from kohya_gui.form import Form
from kohya_gui.localization import Words
from kohya_gui.services import Services
from kohya_gui.tabs.message import channel, warn
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import find_tab

PAGE = 60
STRIP = 4
FILTERS = ("all", "no caption", "no control picture", "too small", "odd bucket", "unreadable", "alike")


@dataclass(frozen=True)
class Browsing:
    """What one session looks at in the dataset: filter, how many pictures, and the hash of what it was sent last."""

    only: str = "all"
    most: int = PAGE
    sent: int = 0


class DatasetTab:
    """The dataset part of one training tab, shared by all sessions."""

    def __init__(self, tab: str, services: Services) -> None:
        self.tab = tab
        self.services = services
        self.words = services.words

    def build(self) -> None:
        """Make the view under the Folders fields."""
        send = "element.addEventListener('click', (e) => kohya.act(e, trigger))"
        with gr.Column(elem_classes=["k-dataset"]):
            self.browsing = gr.State(Browsing())
            self.html = widgets.html("", elem_id=f"{self.tab}-dataset", js_on_load=send)

    def build_strip(self) -> gr.HTML:
        """Make the small card beside the form: four pictures and the first caption."""
        self.strip_html = widgets.html("", elem_id=f"{self.tab}-strip", elem_classes=["k-card"])
        return self.strip_html

    def wire(self, form: Form, script: gr.HTML, quiet: dict[str, Any]) -> None:
        """Answer clicks. `look` is called whenever the plan is made."""

        def act(event: gr.EventData, browsing: Browsing, *contents: Any) -> list[Any]:
            return self._act(dict(event._data or {}), browsing, form.collect(contents).values)

        self.html.click(act, [self.browsing, *form.inputs], [script, *self.outputs], **quiet)

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `look` writes to."""
        return [self.browsing, self.html, self.strip_html]

    # ------------------------------------------------------------------ looking

    def look(
        self, browsing: Browsing, found: DatasetView | None, values: Mapping[str, Any], *, counting: bool
    ) -> list[Any]:
        """What is shown of the pictures; nothing is sent again that the session was sent last.

        Args:
            browsing: what the session looks at.
            found: the pictures of the plan.
            values: the values that the plan was made of.
            counting: they are still being looked through.
        """
        folders = found.folders if found else []
        said = ""
        if counting:
            said = self.words("The pictures are being counted.")
        elif not folders and found and found.problems:
            said = self.words.said(found.problems[0].message)
        target = drop_target(folders, values)
        frame = f'<div class="k-drop" data-tab="{self.tab}" data-drop="{escape(target)}">'
        main = f"{frame}{view(folders, browsing, said, self.words)}{adding(target, self.words)}</div>"
        strip = f"{frame}{strip_card(folders, values, self.words)}</div>"
        sent = hash((main, strip))
        if sent == browsing.sent:
            return [gr.skip()] * 3
        return [replace(browsing, sent=sent), main, strip]

    def _pictures(self, values: Mapping[str, Any]) -> tuple[DatasetView, bool, Mapping[str, Any]]:
        """The pictures of the form's values, whether they are being counted, and the values as the trainer has them."""
        services = self.services
        command = find_tab(self.tab).command
        what = understand(command, values, services.roots, allow_plugins=services.jobs.allow_plugins)
        return *checks.pictures(what, services.counter), what.seen

    def _act(self, asked: Mapping[str, Any], browsing: Browsing, values: Mapping[str, Any]) -> list[Any]:
        action = asked.get("do")
        message: dict[str, Any] = {}
        found, counting, seen = self._pictures(values)
        if action == "filter" and asked.get("only") in FILTERS:
            browsing = Browsing(only=str(asked["only"]))
        elif action == "more":
            browsing = replace(browsing, most=browsing.most + PAGE)
        elif action == "look":
            try:
                message = self._one(str(asked.get("file", "")), found.folders, seen)
            except UserError as error:
                warn(self.words.error(error))
        return [channel(**message), *self.look(browsing, found, seen, counting=counting)]

    def _one(self, path: str, folders: Sequence[FolderView], values: Mapping[str, Any]) -> dict[str, Any]:
        """The dialog about one picture."""
        for folder in folders:
            for picture in folder.pictures:
                if picture.path == path:
                    html = picture_sheet(picture, folder, values, self.words)
                    return {"sheet": {"title": picture.name, "html": html}}
        raise UserError("This picture is no longer there.", hint="Look at the folder again.")


# ---------------------------------------------------------------- HTML


def _name(kind: str, words: Words) -> str:
    """What a filter, and a problem of a picture, is called."""
    return {
        "all": words("all"),
        "no caption": words("no caption"),
        "no control picture": words("no control picture"),
        "too small": words("too small"),
        "odd bucket": words("odd bucket"),
        "unreadable": words("unreadable"),
        "alike": words("alike"),
    }[kind]


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]} × {size[1]}" if size else "?"


def crop_share(picture: PictureView) -> float | None:
    """How much of the picture's area is trained, 0..1."""
    if picture.crop is None:
        return None
    left, top, right, bottom = picture.crop
    return (right - left) * (bottom - top)


def _thumb(picture: PictureView, size: int) -> str:
    frame = ""
    if picture.crop is not None:
        left, top, right, bottom = (share * 100 for share in picture.crop)
        if (right - left) * (bottom - top) < 9990:
            place = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
            frame = f'<i style="{place}"></i>'
    address = f"kohya/thumb?path={quote(picture.path)}&amp;size={size}"
    return f'<div class="k-crop"><img loading="lazy" src="{address}" alt="{escape(picture.name)}">{frame}</div>'


def _caption(picture: PictureView, folder: FolderView, words: Words) -> str:
    try:
        return pictures.caption(picture, folder)
    except UserError as error:
        return words.error(error)


def _tile(picture: PictureView, folder: FolderView, words: Words) -> str:
    said = "".join(f'<b class="k-cause">{escape(_name(problem, words))}</b> ' for problem in picture.problems)
    caption = escape(_caption(picture, folder, words)) or words("no caption")
    return (
        f'<figure data-do="look" data-file="{escape(picture.path)}" tabindex="0">{_thumb(picture, 256)}'
        f"<small>{_size(picture.bucket)}</small><figcaption>{said}{caption}</figcaption></figure>"
    )


def _table(folders: list[FolderView], words: Words) -> str:
    names = (
        words("Folder"),
        words("Repeats"),
        words("Class"),
        words("Pictures"),
        words("Captions"),
        words("Smallest side"),
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = ""
    for folder in folders:
        kind = words(" (regularisation)") if folder.regularisation else ""
        side = str(folder.smallest_side or "")
        facts = (folder.name + kind, folder.repeats, folder.class_tokens, len(folder.pictures), folder.captions, side)
        cells = "".join(f"<td>{escape(str(fact))}</td>" for fact in facts)
        rows += f'<tr data-drop="{escape(folder.path)}">{cells}</tr>'
    return f'<table class="k-table"><tr>{head}</tr>{rows}</table>'


def _chosen(folders: list[FolderView], only: str) -> list[tuple[PictureView, FolderView]]:
    pairs = [(picture, folder) for folder in folders for picture in folder.pictures]
    if only == "alike":
        groups = pictures.near_duplicates(folders)
        order = {path: number for number, path in enumerate(path for group in groups for path in group)}
        return sorted((pair for pair in pairs if pair[0].path in order), key=lambda pair: order[pair[0].path])
    return pairs if only == "all" else [pair for pair in pairs if only in pair[0].problems]


def drop_target(folders: list[FolderView], values: Mapping[str, Any]) -> str:
    """The folder that dropped pictures go to: the first one trained on, else the chosen one; "" for none."""
    own = (folder.path for folder in folders if not folder.regularisation and not folder.metadata)
    return next(own, "") or str(values.get("train_data_dir") or "")


def adding(target: str, words: Words) -> str:
    """How to bring pictures: by dropping them or by a dialog of the browser."""
    if not target:
        return ""
    said = words("Drop pictures and captions here to add them to {folder}, or", folder=escape(Path(target).name))
    button = f'<button class="k-button" data-add="1">{words("choose them")}</button>'
    return f'<p class="k-quiet k-adding">{said} {button}</p>'


def _filters(folders: list[FolderView], browsing: Browsing, words: Words) -> str:
    buttons = []
    control = any(folder.control_dir for folder in folders)
    for name in FILTERS:
        if name == "no control picture" and not control:
            continue
        count = "" if name == "alike" else f" {len(_chosen(folders, name))}"
        mark = " k-on" if name == browsing.only else ""
        shown = escape(_name(name, words)) + count
        buttons.append(f'<button class="k-link{mark}" data-do="filter" data-only="{name}">{shown}</button>')
    return f'<p class="k-links-line">{" · ".join(buttons)}</p>'


def view(folders: list[FolderView], browsing: Browsing, said: str, words: Words) -> str:
    """Table of folders, filters, and the first pictures of the chosen filter."""
    if not folders:
        text = said or words("Choose a folder of pictures; they are shown here with their captions and crops.")
        return f'<p class="k-quiet k-empty">{escape(text)}</p>'
    shown = _chosen(folders, browsing.only)
    tiles = "".join(_tile(picture, folder, words) for picture, folder in shown[: browsing.most])
    more = ""
    if len(shown) > browsing.most:
        rest = words("Show more ({n} left)", n=f"{len(shown) - browsing.most:,}")
        more = f'<p><button class="k-button" data-do="more">{rest}</button></p>'
    nothing = "" if shown else f'<p class="k-quiet">{words("No picture is like that.")}</p>'
    bar = _filters(folders, browsing, words)
    return f'{_table(folders, words)}{bar}<div class="k-thumbs">{tiles}</div>{nothing}{more}'


def picture_sheet(picture: PictureView, folder: FolderView, values: Mapping[str, Any], words: Words) -> str:
    """One picture large, its sizes, and five draws of its caption."""
    kept = crop_share(picture)
    facts = [words("{size} pixels", size=_size(picture.size))]
    control = ""
    if picture.control:
        address = f"kohya/thumb?path={quote(picture.control)}&amp;size=512"
        control = f'<div class="k-crop"><img src="{address}" alt="{words("control picture or mask")}"></div>'
    if picture.aside:
        facts.append(words("kept for validation"))
    if picture.bucket:
        facts.append(words("trained at {size}", size=_size(picture.bucket)))
    if kept is not None:
        facts.append(words("{n} % of it is kept", n=round(kept * 100)))
    try:
        draws = pictures.captions_seen(picture, folder, values)
    except UserError as error:
        draws = [words.error(error)]
    lines = "".join(f"<li>{escape(text) or words('(nothing)')}</li>" for text in draws)
    return (
        f'<div class="k-one">{_thumb(picture, 512)}{control}</div><p class="k-quiet">{escape(", ".join(facts))}</p>'
        f"<h3>{words('What the text encoder sees, five times')}</h3><ol>{lines}</ol>"
    )


def strip_card(folders: list[FolderView], values: Mapping[str, Any], words: Words) -> str:
    """The card beside the form."""
    title = f"<h2>{words('Pictures')}</h2>"
    pairs = [(picture, folder) for folder in folders for picture in folder.pictures if picture.size]
    if not pairs:
        return f'{title}<p class="k-quiet">{words("They appear here when a folder is chosen.")}</p>'
    step = max(len(pairs) // STRIP, 1)
    some = pairs[::step][:STRIP]
    tiles = "".join(
        f'<img loading="lazy" alt="{escape(picture.name)}" src="kohya/thumb?path={quote(picture.path)}&amp;size=256">'
        for picture, _ in some
    )
    picture, folder = some[0]
    kept = crop_share(picture)
    facts = _size(picture.bucket or picture.size)
    if kept is not None:
        facts += ", " + words("crop keeps {n} %", n=round(kept * 100))
    try:
        seen = pictures.captions_seen(picture, folder, values, draws=1)[0]
    except UserError:
        # the plan says what is wrong with the caption
        seen = ""
    sees = f" {words('What the text encoder sees:')} “{escape(seen)}”" if seen else ""
    return f'{title}<div class="k-four">{tiles}</div><p class="k-quiet">{escape(facts)}.{sees}</p>'
