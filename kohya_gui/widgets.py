"""What the field of every kind of option is made of, and the two ways between its content and the option's value.

Numbers are text fields: they take `1e-4`, can be empty ("not given"), and what is no number is shown as a mistake
beside the field, where a browser's number field would silently give nothing.
"""

from typing import Any

import gradio as gr

from kohya_gui.localization import Words
from sd_scripts.schema.fields import convert
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField

# text for accelerate that is no flag of it
_FURTHER = "extra_accelerate_launch_args"
_ARGUMENTS = {key: argument for kind in LORA_TYPES.values() for key, argument in kind.args}
PATH_KINDS = ("file", "folder", "model", "weights", "target")


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
    lines.append(_flag(field))
    if field.type == "bool":
        lines.append(words("default on") if field.default else words("default off"))
    elif field.default in (None, "", [], ()):
        lines.append(words("not set by default"))
    else:
        lines.append(words("default {value}", value=shown(field, field.default, words)))
    if field.minimum is not None or field.maximum is not None:
        low = "" if field.minimum is None else number_text(field.minimum)
        high = "" if field.maximum is None else number_text(field.maximum)
        lines.append(
            words("from {low} to {high}", low=low, high=high) if low and high else (f"≥ {low}" if low else f"≤ {high}")
        )
    if field.unit:
        lines.append(words(field.unit))
    return "\n".join(lines)


def _flag(field: OptionField) -> str:
    """How the option is said where there is no page; for one that only the page knows, its key in saved files."""
    if field.target == "launcher" and field.key != _FURTHER:
        return f"accelerate launch --{field.key}"
    if field.target == "network_args":
        return f"--network_args {_ARGUMENTS.get(field.key, field.key)}=…"
    return f"--{field.key}" if field.flag else field.key


def shown(field: OptionField, value: Any, words: Words) -> Any:
    """As `show`, but a choice in the words that the page has for it."""
    return words(field.called(value)) if field.choice_labels and value in field.choices else show(field, value)


def choices(field: OptionField) -> list[str]:
    """What a field offers to choose from; "" first where nothing may be given."""
    known = [str(choice) for choice in field.choices if choice is not None]
    empty = field.kind not in PATH_KINDS and (field.optional or field.default == "") and "" not in known
    return ["", *known] if known and empty else known


def facts(field: OptionField, words: Words) -> dict[str, Any]:
    """What the page's script needs to make the field; what is empty or false may be left out.

    `type` is "" for a line of text, or box, choice, long, secret; `first` is what stands in an untouched field.
    """
    offered = choices(field) if not field.type.startswith("list") else []
    return {
        "label": words(field.label),
        "tip": tooltip(field, words),
        "unit": words(field.unit) if field.unit else "",
        "type": _type(field, offered),
        "kind": field.kind if field.kind in PATH_KINDS else "",
        "custom": field.custom,
        "first": show(field, field.default),
        "list": offered,
        "called": {
            str(choice): words(label) for choice, label in zip(field.choices, field.choice_labels, strict=False)
        },
    }


def _type(field: OptionField, offered: list[str]) -> str:
    if field.type == "bool":
        return "box"
    if field.kind in ("long", "secret"):
        return field.kind
    return "choice" if offered and field.kind not in PATH_KINDS else ""
