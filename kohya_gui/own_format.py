"""The format of our own saved forms: flat JSON with the options' keys, and the steps from its earlier versions.

Version 1 held the switches v2, v_parameterization and sdxl. Version 2 has one choice of the model's family for them,
and a table `kept` for what is kept aside under the name of a field.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kohya_gui.draft import Draft
from kohya_gui.migrate import read_values
from kohya_gui.migrate_steps import one_choice
from sd_scripts.schema.errors import UserError

FORMAT, VERSION = "kohya-gui", 2
KEPT = "kept"
_HEADER = ("format", "version", "tab", "description", KEPT)


def _to_version_2(draft: Draft) -> None:
    """One choice of the model's family; encoded captions have one switch, whichever the family."""
    one_choice(draft)
    for old in ("model_list", "stop_text_encoder_training"):
        if old in draft.raw and old not in draft.known:
            draft.extras[old] = draft.raw.pop(old)
    switch = draft.raw.pop("sdxl_cache_text_encoder_outputs", None)
    if switch is not None:
        draft.raw.setdefault("cache_text_encoder_outputs", switch)


# version -> the step to the next one
STEPS: Mapping[int, Callable[[Draft], None]] = {1: _to_version_2}


def is_ours(raw: Mapping[str, Any]) -> bool:
    """Whether a file says that it is of this format."""
    return raw.get("format") == FORMAT


def read(raw: Mapping[str, Any], tab: str) -> Draft:
    """The values in a file of ours; a value None means that the field is empty on purpose.

    Raises:
        UserError: if a newer version of the page wrote it.
    """
    version = raw.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        shown = str(version)[:20]
        raise UserError(
            f"The file was saved by a newer version of this page (format {shown}).", hint="Update the project."
        )
    draft = Draft({key: value for key, value in raw.items() if key not in _HEADER}, tab)
    kept = raw.get(KEPT)
    if isinstance(kept, dict):
        draft.extras.update(kept)
    elif kept is not None:
        draft.raw[KEPT] = kept
    for number in range(version, VERSION):
        STEPS[number](draft)
    velocity = {"auto": "sd1-v", "sdxl": "sdxl-v"}.get(str(draft.raw.get("model_family", "auto")))
    if velocity and draft.raw.get("v_parameterization") is True:
        # this format once had no choice for it
        draft.raw["model_family"] = velocity
        del draft.raw["v_parameterization"]
    empty = {key: None for key, value in draft.raw.items() if value is None and key in draft.known}
    read_values(draft)
    draft.values = {**empty, **draft.values}
    return draft


def content(
    tab: str, known: Mapping[str, Any], values: Mapping[str, Any], extras: Mapping[str, Any], description: str = ""
) -> dict[str, Any]:
    """The table to be saved: what the file is, the values in the order of the form, then what was kept aside."""
    made: dict[str, Any] = {"format": FORMAT, "version": VERSION, "tab": tab}
    if description:
        made["description"] = description
    made |= {key: values[key] for key in known if key in values}
    made |= {key: value for key, value in values.items() if key not in made and key not in _HEADER}
    # under its own name it would be read as the field's value the next time
    aside = {key: value for key, value in extras.items() if key not in made or made[key] != value}
    clashing = {key: value for key, value in aside.items() if key in known or key in made or key in _HEADER}
    made |= {key: value for key, value in aside.items() if key not in clashing}
    return {**made, KEPT: clashing} if clashing else made
