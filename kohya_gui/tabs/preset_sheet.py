"""The dialog of presets: what each is for, and saving, renaming and deleting one's own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from kohya_gui.configs import Preset
from kohya_gui.localization import Words
from kohya_gui.model_kind import FAMILY_NAMES
from kohya_gui.tabs.sources import family_of

_SHORT = 240
_MEMORY = re.compile(r"VRAM.*?[.。](\s|$)")
_SENTENCE = re.compile(r"[.。](\s|$)")


@dataclass(frozen=True)
class Draft:
    """What stands in the dialog's fields while something is asked or said.

    `said` is a sentence on top (a complaint if `wrong`) with, if need be, a button of its own: `offer` is its text,
    `offer_ask` what it asks for, `offer_name` the preset it is about. `renaming` is the preset that gets a new name.
    """

    name: str = ""
    description: str = ""
    places: bool = False
    said: str = ""
    wrong: bool = False
    offer: str = ""
    offer_ask: str = ""
    offer_name: str = ""
    renaming: str = ""


def sheet(tab: str, own: Mapping[str, Preset], shipped: Mapping[str, Preset], draft: Draft, words: Words) -> str:
    """The dialog.

    Args:
        tab: the training tab.
        own: the person's presets by source name.
        shipped: those that come with the program.
        draft: what was typed and is said.
        words: the language.
    """
    said = ""
    if draft.said:
        offer = (
            f' <button class="k-link" data-ask="{draft.offer_ask}" data-about="{escape(draft.offer_name)}" '
            f'data-sure-now="1">{escape(draft.offer)}</button>'
            if draft.offer
            else ""
        )
        said = f'<p class="{"k-said" if draft.wrong else "k-quiet"}" role="status">{escape(draft.said)}{offer}</p>'
    rows = "".join(_own(source, preset, draft, words) for source, preset in own.items())
    rows = rows or f'<p class="k-quiet">{words("None yet: fill in the form and save it as a preset.")}</p>'
    return (
        f'<div data-tab="{tab}">{said}{_save(draft, words)}'
        f"<h3>{words('Your presets')}</h3>{rows}{_shipped(shipped, words)}</div>"
    )


def _shipped(presets: Mapping[str, Preset], words: Words) -> str:
    """The program's own, under a heading for each kind of base model."""
    parts, last = [], None
    for source, preset in presets.items():
        family = family_of(preset)
        if family != last:
            title = words(FAMILY_NAMES[family]) if family else words("Any base model")
            parts.append(f"<h3>{words('For {name}', name=title)}</h3>")
        last = family
        parts.append(_row(source, words(preset.name), preset, "", words))
    return "".join(parts)


def _save(draft: Draft, words: Words) -> str:
    checked = " checked" if draft.places else ""
    kept = words("A preset keeps every setting that differs from the default, and never tokens or keys.")
    return (
        f"<details{' open' if draft.name else ''}><summary>{words('Save the form as a preset')}</summary>"
        f'<div class="k-pair"><label>{words("Name")}<input name="name" maxlength="80" value="{escape(draft.name)}">'
        f"</label><label>{words('What it is for')}"
        f'<input name="description" maxlength="4000" value="{escape(draft.description)}"></label></div>'
        f'<label class="k-check"><input type="checkbox" name="places"{checked}> '
        f"{words('Also keep folders, files, names and prompts')}</label>"
        f'<p class="k-quiet">{kept}</p>'
        f'<div class="k-foot"><button class="k-main" data-ask="preset_save">{words("Save the preset")}</button></div>'
        "</details>"
    )


def _row(source: str, label: str, preset: Preset, more: str, words: Words) -> str:
    mark = escape(source)
    acts = (
        f'<button class="k-button" data-ask="preset_take" data-about="{mark}">{words("Take it")}</button>'
        f'<button class="k-link" data-ask="compare" data-left="form" data-right="{mark}">'
        f"{words('Compare')}</button>{more}"
    )
    said = _description(words(preset.description) if preset.description else "", words)
    return f'<section class="k-preset-row"><div><b>{escape(label)}</b>{said}</div><div>{acts}</div></section>'


def _description(text: str, words: Words) -> str:
    """What a preset is for; of a long text the goal and the memory at once, the rest on a click."""
    if len(text) <= _SHORT:
        return f'<p class="k-quiet">{escape(text)}</p>' if text else ""
    found = _MEMORY.search(text) or _SENTENCE.search(text)
    cut = found.end() if found else len(text)
    more = escape(text[cut:].strip())
    rest = f'<details class="k-quiet"><summary>{words("More")}</summary>{more}</details>' if more else ""
    return f'<p class="k-quiet">{escape(text[:cut].strip())}</p>{rest}'


def _own(source: str, preset: Preset, draft: Draft, words: Words) -> str:
    mark = escape(source)
    if draft.renaming == source:
        return (
            f'<section class="k-preset-row"><div class="k-foot"><input name="new_name" maxlength="80" '
            f'aria-label="{words("New name")}" value="{escape(preset.name)}">'
            f'<button class="k-main" data-ask="preset_rename" data-about="{mark}">{words("Rename")}</button></div>'
            "</section>"
        )
    more = (
        f'<button class="k-link" data-ask="preset_renaming" data-about="{mark}">{words("Rename")}</button>'
        f'<button class="k-link" data-ask="preset_delete" data-about="{mark}">{words("Delete")}</button>'
    )
    return _row(source, preset.name, preset, more, words)
