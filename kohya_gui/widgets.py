"""One Gradio component for every kind of option, and the two ways between its content and the option's value.

Numbers are text fields: they take `1e-4`, can be empty ("not given"), and what is no number is shown as a mistake
beside the field, where a browser's number field would silently give nothing.
"""

from typing import Any

import gradio as gr

from kohya_gui.localization import Words
from sd_scripts.schema.fields import convert
from sd_scripts.schema.option import OptionField

PATH_KINDS = ("file", "folder", "model")
_PLAIN_INPUT = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)


def html(value: Any = "", **options: Any) -> gr.HTML:
    """A gr.HTML without Gradio's text style, so that only the page's own style sheet speaks."""
    return gr.HTML(value, apply_default_css=False, **options)


def number_text(value: float) -> str:
    """A number as people write it: 1e-4, 0.05, 512."""
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.10e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.12g}"


def _quoted(item: str) -> str:
    """An item of a list as it is typed: in quotes where it holds a blank or the other kind of quote."""
    if item and not any(sign.isspace() or sign in "\"'" for sign in item):
        return item
    return f"'{item}'" if '"' in item else f'"{item}"'


def show(field: OptionField, value: Any) -> Any:
    """The content of the field's component for this value; None shows as empty."""
    if field.type == "bool":
        return bool(value)
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(number_text(item) if isinstance(item, int | float) else _quoted(str(item)) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(value)
    return str(value)


def read(field: OptionField, content: Any) -> Any:
    """The value for what stands in the component; None for an empty one.

    Raises:
        UserError: naming the field, if the text is not of the option's type or outside its range.
    """
    if field.type == "bool":
        return bool(content)
    text = str(content if content is not None else "").strip()
    return convert(field, text) if text else None


def tooltip(field: OptionField, words: Words) -> str:
    """Help, flag, default and range in a few lines."""
    lines = [words(field.help)]
    if field.flag:
        lines.append(f"--{field.key}")
    if field.default not in (None, "", False) and field.type != "bool":
        lines.append(words("default {value}", value=show(field, field.default)))
    if field.minimum is not None or field.maximum is not None:
        low = "" if field.minimum is None else number_text(field.minimum)
        high = "" if field.maximum is None else number_text(field.maximum)
        lines.append(
            words("from {low} to {high}", low=low, high=high) if low and high else (f"≥ {low}" if low else f"≤ {high}")
        )
    if field.unit:
        lines.append(field.unit)
    return "\n".join(lines)


def choice_pairs(field: OptionField) -> list[tuple[str, str]]:
    """What a drop-down offers: (text, value); the first says "not set" where nothing may be given."""
    pairs = [(str(choice), str(choice)) for choice in field.choices if choice is not None]
    return [("not set", ""), *pairs] if field.optional or field.default == "" else pairs


def _classes(field: OptionField, wide: bool, basic: bool) -> list[str]:
    names = ["k-field"]
    if field.kind in PATH_KINDS:
        names.append("k-path")
    if wide or field.kind == "long":
        names.append("k-wide")
    if basic:
        names.append("k-basic")
    return names


def make(
    field: OptionField, value: Any, words: Words, *, tab: str, wide: bool = False, basic: bool = False
) -> gr.components.Component:
    """The component of one option, inside the current Blocks context.

    Args:
        field: the option.
        value: what it opens with.
        words: the language.
        tab: name of the training tab; the component gets the HTML id `<tab>-<key>`.
        wide: take the whole width of a two-column group.
        basic: show it in the short form.
    """
    common: dict[str, Any] = {
        "label": words(field.label),
        "elem_id": f"{tab}-{field.key}",
        "elem_classes": _classes(field, wide, basic),
        "min_width": 0,
        "interactive": True,
    }
    content = show(field, value)
    if field.type == "bool":
        return gr.Checkbox(value=content, **common)
    if field.choices and not field.type.startswith("list") and field.kind not in PATH_KINDS:
        pairs = choice_pairs(field)
        if content not in [known for _, known in pairs]:
            pairs.append((content, content))
        return gr.Dropdown(choices=pairs, value=content, allow_custom_value=field.custom, **common)
    placeholder = str(show(field, field.default))
    long = field.kind == "long"
    return gr.Textbox(
        value=content,
        lines=2 if long else 1,
        max_lines=12 if long else 1,
        type="password" if field.kind == "secret" else "text",
        placeholder=placeholder,
        html_attributes=_PLAIN_INPUT,
        **common,
    )
