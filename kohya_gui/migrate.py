"""Old kohya_ss files -> today's options of a tab.

Nothing is dropped: what has no field stays aside, under its own name, and goes back into the file when it is saved.
"""

from collections.abc import Mapping
from typing import Any

from kohya_gui import old_keys
from kohya_gui.draft import Draft, ReportLine, is_blank, is_number, is_off
from kohya_gui.migrate_steps import STEPS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.retired import RETIRED, retired
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import TABS, find_tab, tab_aliases, tab_fields

__all__ = ["Draft", "ReportLine", "is_off", "migrate", "modernise", "read_values"]

MOST_NAMED = 6
# a file full of strange keys is no news worth reading, and looking for similar names takes time
MOST_UNKNOWN = 20
_LARGEST = 2**64
_MOST_SIGNS = 100_000
_MOST_ITEMS = 1000


# heading of keys that belong to nothing known
_UNKNOWN = ""


def migrate(raw: dict[str, Any], tab: str) -> Draft:
    """Read a whole kohya_ss file. Values that cannot be read are kept aside and reported, never guessed."""
    draft = modernise(raw, tab)
    _fill(draft, set(raw))
    return draft


def modernise(raw: dict[str, Any], tab: str) -> Draft:
    """Read keys as kohya_ss names them, as far as they are there; missing ones stay missing."""
    draft = Draft(dict(raw), tab, newer=bool(old_keys.ONLY_V26 & raw.keys()))
    for step in STEPS:
        step(draft)
    _rename(draft)
    read_values(draft)
    return draft


def _rename(draft: Draft) -> None:
    for old, new in tab_aliases(draft.tab).items():
        if old not in draft.raw:
            continue
        value = draft.raw.pop(old)
        if new in draft.raw and draft.raw[new] not in (None, ""):
            draft.extras[old] = value
            draft.say("retired", old, f"{new} says the same and is in the file too.")
        else:
            draft.raw[new] = value
            if value not in (None, ""):
                draft.say("renamed", new, f"{old} is now called {new}.")


def read_values(draft: Draft) -> None:
    """Turn what is left in the raw keys into values of the options' types; the rest goes aside."""
    known = draft.known
    aside: dict[str, list[str]] = {}
    for key, value in draft.raw.items():
        if key not in known:
            _put_aside(draft, key, value, aside)
            continue
        option = known[key]
        if value is None or value == "" or is_off(option, value):
            continue
        try:
            made = _typed(option, value)
        except UserError as problem:
            draft.extras[key] = value
            draft.say("repaired", key, f"{_short(problem.message)} It is left at its default.")
            continue
        if made is None or is_off(option, made):
            continue
        draft.values[key] = made
    for name, keys in aside.items():
        if name == _UNKNOWN:
            continue
        more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
        names = ", ".join(keys[:MOST_NAMED]) + more
        draft.say("kept", keys[0], f"Settings for {name} have no field here; they stay in the file: {names}.")
    if len(aside.get(_UNKNOWN, ())) > MOST_UNKNOWN:
        untold = len(aside[_UNKNOWN]) - MOST_UNKNOWN
        draft.say("unknown", "", f"{untold} more keys are not known here; they stay in the file.")
    draft.raw = {}


def _short(message: str) -> str:
    return message if len(message) <= 240 else f"{message[:150]} ... {message[-80:]}"


def _typed(option: OptionField, value: Any) -> Any:
    """The value in the option's type. Numbers out of range and unknown choices stay, so that the form can mark them."""
    if isinstance(value, dict) or (isinstance(value, list) and not option.type.startswith("list")):
        raise UserError(f"{option.key} holds a list or table where {option.label!r} takes one value.", option.key)
    if isinstance(value, str | list) and len(value) > (_MOST_SIGNS if isinstance(value, str) else _MOST_ITEMS):
        raise UserError(f"{option.key} is far too long.", option.key)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(f"{option.key} holds a number that is far too large.", option.key)
    if option.type.startswith("list") and isinstance(value, str):
        value = value.replace("“", '"').replace("”", '"')
    try:
        return convert(option, value)
    except UserError:
        if option.key == "LoRA_type" and isinstance(value, str):
            return value
        if option.type in ("int", "int_or_float") and isinstance(value, float | str):
            # old files hold 64.0, "1.0" and slider values such as 5.5 where a whole number is meant
            return convert(option, round(float(value))) if is_number(value) else convert(option, value)
        raise


def _put_aside(draft: Draft, key: str, value: Any, aside: dict[str, list[str]]) -> None:
    draft.extras[key] = value
    family = old_keys.family_of(key)
    reasons = _reasons(draft.tab)
    if family:
        aside.setdefault(family, []).append(key)
    elif key in reasons and is_blank(value):
        # it was off, so nothing is lost
        return
    elif key in reasons:
        draft.say("retired", key, f"{key} has no effect any more: {reasons[key]}.")
    elif (title := _other_tab(key)) != "":
        aside.setdefault(f"the {title} tab", []).append(key)
    else:
        aside.setdefault(_UNKNOWN, []).append(key)
        if len(aside[_UNKNOWN]) > MOST_UNKNOWN:
            return
        hint = nearest(key, draft.known) if len(key) < 100 else ""
        draft.say("unknown", key[:100], f"{key[:100]} is not known here; it stays in the file. {hint}".strip())


def _reasons(tab: str) -> Mapping[str, str]:
    """Keys that say nothing in this tab, with the reasons."""
    own = {key: why for command in reversed(find_tab(tab).commands) for key, why in retired(command).items()}
    return {**(RETIRED if tab == "lora" else {}), **own, **old_keys.GONE}


def _other_tab(key: str) -> str:
    """The title of the tab that has a field for this key."""
    return next((t.title for t in TABS.values() if key in tab_fields(t.name) or key in tab_aliases(t.name)), "")


def _fill(draft: Draft, present: set[str]) -> None:
    """Missing keys: what the program that wrote the file would have used, where our default is another."""
    defaults = old_keys.defaults(draft.tab, draft.newer)
    renamed = tab_aliases(draft.tab)
    covered = present | draft.values.keys() | {renamed[old] for old in present if old in renamed}
    kind = LORA_TYPES.get(str(draft.values.get("LoRA_type", "Standard")))
    offered = {key for key, _ in kind.args} if kind else set()
    filled = []
    for key, value in defaults.items():
        if key in covered or key not in draft.known:
            continue
        if key in ("conv_dim", "conv_alpha", "unit") and key not in offered:
            continue
        draft.values[key] = list(value) if isinstance(value, list) else value
        filled.append(key)
    if filled:
        message = "What is missing in the file has the value of the program that wrote it: "
        draft.say("repaired", filled[0], message + ", ".join(filled) + ".")
