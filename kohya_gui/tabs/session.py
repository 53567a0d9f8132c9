"""What one session of a training tab remembers between two looks, and what its browser keeps over a reload."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kohya_gui.checks import PlanView
from kohya_gui.form import Form
from kohya_gui.further import without_secrets
from kohya_gui.tabs.sources import FileState
from sd_scripts.schema.tabs import find_tab

# names of keys that may hold something nobody else should read; never kept in a browser
MOST_SIGNS = 300_000
"""Longest text that a browser is asked to keep for a tab: it has about five million signs for the whole page."""
_VERSION = 1
_SECRET_WORDS = ("token", "password", "secret", "api_key")


@dataclass(frozen=True)
class Manner:
    """How the form speaks of fields that are still empty.

    `strict` once Start was pressed or a configuration was opened; `seen` are the fields that once held something.
    """

    strict: bool = False
    seen: frozenset[str] = frozenset()


def follow(manner: Manner, values: Mapping[str, Any], fresh: bool) -> Manner:
    """The manner after another look at the form; `fresh` says that no configuration was opened yet."""
    filled = {key for key, value in values.items() if value not in (None, "", [])}
    return Manner(manner.strict or not fresh, manner.seen | filled)


def calm(view: PlanView, manner: Manner) -> PlanView:
    """The plan in which an empty field nobody has touched is "needed" and not yet an error."""
    if manner.strict:
        return view
    return replace(
        view,
        problems=[
            replace(problem, severity="needed")
            if problem.severity == "error" and problem.key and problem.key not in manner.seen
            else problem
            for problem in view.problems
        ],
    )


def digest(file: FileState) -> str:
    """What a form opens with, as a short text: a form kept by a browser counts only while this is the same."""
    text = json.dumps([file.name, dict(file.values)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(start: str, file: FileState, form: Form, contents: Sequence[Any], manner: Manner) -> dict[str, Any] | None:
    """What the browser keeps: the fields as typed, and the file they belong to. No secrets; None if it is too much."""
    plain = replace(file, values=_harmless(form, file.values), extras=_harmless(form, file.extras), before=None)
    said = asdict(plain)
    kept = {
        "version": _VERSION,
        "start": start,
        "file": said,
        "contents": without_secrets(find_tab(form.tab).command, form.kept(contents)),
        "strict": manner.strict,
    }
    return kept if _fits(kept) else None


def _fits(kept: Mapping[str, Any]) -> bool:
    return len(json.dumps(kept, default=str)) <= MOST_SIGNS


def _harmless(form: Form, values: Mapping[str, Any]) -> dict[str, Any]:
    known = form.fields
    return {
        key: value
        for key, value in without_secrets(find_tab(form.tab).command, values).items()
        if (known[key].kind != "secret" if key in known else not any(word in key.lower() for word in _SECRET_WORDS))
    }


def recall(start: str, kept: Any, form: Form) -> tuple[FileState, dict[str, Any], Manner] | None:
    """File, contents and manner from what a browser kept.

    None if there is nothing, it is damaged or too much, or belongs to another start or another version of the page.
    """
    if not isinstance(kept, dict) or (kept.get("version"), kept.get("start")) != (_VERSION, start) or not _fits(kept):
        return None
    file, contents = kept.get("file"), kept.get("contents")
    if not isinstance(file, dict) or not isinstance(contents, dict):
        return None
    values, extras = file.get("values"), file.get("extras")
    state = FileState(
        path=str(file.get("path") or ""),
        name=str(file.get("name") or ""),
        values=values if isinstance(values, dict) else {},
        extras=extras if isinstance(extras, dict) else {},
        preset=str(file.get("preset") or ""),
        stamp=stamp if isinstance(stamp := file.get("stamp"), int) else 0,
    )
    plain = {
        key: value
        for key, value in contents.items()
        if key in form.fields and isinstance(value, bool if form.fields[key].type == "bool" else str)
    }
    return state, plain, Manner(strict=bool(kept.get("strict")))
