"""Two configurations side by side: what differs, and a click that takes one side's value into the form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kohya_gui import widgets
from kohya_gui.form import Form
from kohya_gui.localization import Words
from kohya_gui.tabs.sources import FORM, Source
from sd_scripts.schema.option import OptionField

_HIDDEN_TEXT = "•••"
Groups = Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Difference:
    """One option that differs, with its value on each side as people read it."""

    key: str
    label: str
    flag: str
    left: str
    right: str


def differences(form: Form, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Every option whose value differs, in the order of the form; what applies on neither side is left out."""
    one, other = form.effective(left), form.effective(right)
    idle = set(form.hidden(one)) & set(form.hidden(other))
    return [
        Difference(
            key,
            form.words(option.label),
            f"--{key}" if option.flag else "",
            _text(form, option, one[key]),
            _text(form, option, other[key]),
        )
        for key, option in form.fields.items()
        if key not in idle and differ(one[key], other[key])
    ]


def differ(left: Any, right: Any) -> bool:
    """Whether two values say something else; nothing and the empty text say the same."""
    return bool(left != right and not (left in (None, "") and right in (None, "")))


def _text(form: Form, option: OptionField, value: Any) -> str:
    if option.kind == "secret":
        return _HIDDEN_TEXT if value else ""
    if option.type == "bool":
        return form.words("on") if value else form.words("off")
    return str(widgets.shown(option, value, form.words))


def sheet(form: Form, left: Source, right: Source, groups: Groups, words: Words) -> str:
    """The dialog: two lists to choose from, and the table.

    Args:
        form: the fields.
        left: one configuration.
        right: the other.
        groups: what can be chosen, as `Sources.groups` gives it.
        words: the language.
    """
    rows = differences(form, left.values, right.values)
    said = words("Nothing differs.")
    if rows:
        said = words("1 field differs.") if len(rows) == 1 else words("{n} fields differ.", n=len(rows))
    choices = (
        f'<div class="k-pair"><label>{words("Left")}{select("left", groups, left.id)}</label>'
        f"<label>{words('Right')}{select('right', groups, right.id)}</label></div>"
    )
    browse = f'<button class="k-link" data-browse="@compare">{words("Compare the form with a file")}</button>'
    body = "".join(_row(row, left, right, form.tab, words) for row in rows)
    head = f"<tr><th>{words('Field')}</th><th>{escape(left.label)}</th><th>{escape(right.label)}</th></tr>"
    table = f'<table class="k-table k-diff"><thead>{head}</thead><tbody>{body}</tbody></table>' if rows else ""
    return f'<div data-tab="{form.tab}">{choices}<p class="k-quiet">{said} {browse}</p>{table}</div>'


def select(name: str, groups: Groups, chosen: str, *, ask: str = "compare") -> str:
    """A list of configurations in groups; `ask` is what the page asks for when another is chosen ("" for nothing)."""
    parts = []
    for title, entries in groups:
        options = "".join(
            f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(label)}</option>'
            for value, label in entries
        )
        parts.append(f'<optgroup label="{escape(title)}">{options}</optgroup>')
    acts = f' data-choose="{ask}"' if ask else ""
    return f'<select name="{name}"{acts}>{"".join(parts)}</select>'


def _row(row: Difference, left: Source, right: Source, tab: str, words: Words) -> str:
    go = f'<button class="k-link" data-go="{escape(row.key)}" data-tab="{tab}">{escape(row.label)}</button>'
    cells = "".join(
        f"<td>{escape(text) or words('empty')}{_take(row, side, source, words)}</td>"
        for side, source, text in (("left", left, row.left), ("right", right, row.right))
    )
    return f"<tr><td>{go}<small>{escape(row.flag)}</small></td>{cells}</tr>"


def _take(row: Difference, side: str, source: Source, words: Words) -> str:
    if source.id == FORM or _HIDDEN_TEXT in (row.left, row.right):
        return ""
    title = escape(words("Take this value: {name}", name=row.label))
    return (
        f' <button class="k-link" data-ask="take" data-key="{escape(row.key)}" data-from="{side}" '
        f'aria-label="{title}">{words("Take this value")}</button>'
    )
