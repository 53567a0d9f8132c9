"""What kohya_ss v22.7 and v26 call the fields that have another label here: for people who search a field by the name
they know, and for language files made for kohya_ss."""

import json
from functools import cache
from pathlib import Path

from sd_scripts.schema.tabs import TABS, tab_fields

_FILE = Path(__file__).resolve().parent / "assets" / "kohya_labels.json"


@cache
def labels_by_key() -> dict[str, list[str]]:
    """Option key -> its labels in kohya_ss, without those that are the same here."""
    made: dict[str, list[str]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return made


@cache
def _labels_by_label() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for tab in TABS:
        for key, field in tab_fields(tab).items():
            known = found.setdefault(field.label, [])
            known += [label for label in labels_by_key().get(key, ()) if label not in known]
    return {label: tuple(known) for label, known in found.items() if known}


def old_labels(label: str) -> tuple[str, ...]:
    """The labels that kohya_ss has for the fields called `label` here."""
    return _labels_by_label().get(label, ())
