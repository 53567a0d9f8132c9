"""Giving fields their earlier values back: a section, a page or everything, to the opened file, a preset or the
defaults."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kohya_gui import user_presets
from kohya_gui.form import Form
from kohya_gui.layout import Page, accordion_name, placed_keys
from kohya_gui.localization import Words
from kohya_gui.tabs.compare import Groups, select

EVERYTHING = "everything"


def keys_of(form: Form, section: str) -> tuple[str, ...]:
    """The keys of a section in reading order; () for one that is not known.

    Args:
        form: the fields.
        section: "everything", or the HTML id of an accordion or sub-tab, with or without the tab's name before it.
    """
    if section == EVERYTHING:
        return form.keys
    name = section.removeprefix(f"{form.tab}-")
    if name.startswith("page-"):
        return tuple(key for key, place in form.places.items() if name.removeprefix("page-") in place.tabs)
    accordion = name.removeprefix("group-")
    return tuple(key for key, place in form.places.items() if accordion and place.accordion == accordion)


def patch(form: Form, keys: Sequence[str], base: Mapping[str, Any], *, keep_places: bool = False) -> dict[str, Any]:
    """The values that set these fields back.

    Args:
        form: the fields.
        keys: which ones.
        base: the values to go back to; a missing key means the default.
        keep_places: leave folders, files, names and prompts as they are, and secrets too.
    """
    chosen = {key: form.fields[key] for key in keys}
    return {
        key: base.get(key, option.default)
        for key, option in chosen.items()
        if not (keep_places and (option.kind == "secret" or user_presets.is_personal(key, option)))
    }


def sections(form: Form, words: Words) -> Groups:
    """What can be set back: (heading, [(section, title)])."""
    groups: list[tuple[str, list[tuple[str, str]]]] = [(words("The form"), [(EVERYTHING, words("Everything"))])]

    def add(page: Page, above: str) -> None:
        title = f"{above}{words(page.title)}"
        entries = []
        if any(True for _ in placed_keys([page])):
            entries.append((f"page-{page.name}", words("All of {name}", name=title)))
        entries += [
            (f"group-{accordion_name(page, number)}", words(group.title))
            for number, group in enumerate(page.groups)
            if not group.plain
        ]
        if entries:
            groups.append((title, entries))
        for child in page.pages:
            add(child, f"{title}: ")

    for page in form.pages:
        add(page, "")
    return groups


def sheet(form: Form, targets: Groups, chosen: str, words: Words) -> str:
    """The dialog that asks what to set back, and to what.

    Args:
        form: the fields.
        targets: what can be gone back to, as `Sources.groups` gives it, without the form itself.
        chosen: the target that is proposed.
        words: the language.
    """
    what = select("group", sections(form, words), EVERYTHING, ask="")
    to = select("to", targets, chosen, ask="")
    return (
        f'<div data-tab="{escape(form.tab)}"><div class="k-pair"><label>{words("Reset")}{what}</label>'
        f"<label>{words('to')}{to}</label></div>"
        f'<label class="k-check"><input type="checkbox" name="keep_places" checked> '
        f"{words('Keep folders, file names and prompts')}</label>"
        f'<div class="k-foot"><button class="k-main" data-ask="reset_section">{words("Reset")}</button></div></div>'
    )
