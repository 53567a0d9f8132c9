"""The plan card beside a training form, and the dialogs that show the command: all as HTML made from plain data."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from typing import Any

from kohya_gui.checks import PlanView, Problem
from kohya_gui.command import Plan
from kohya_gui.localization import Words
from kohya_gui.phrases import SIGN
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.tabs import TABS, tab_fields

SAID = ("error", "needed", "warning")
# a field of the short form that also says what is wrong with one that is not on it
_ALSO_AT = {"caption_extension": "train_data_dir"}
MOST_ALIKE = 3
_LONG = 28  # signs of a value on a button


def card(view: PlanView, tab: str, words: Words) -> str:
    """The plan: what trains on what for how long, what is written, and every complaint with the way to its field."""
    rows = "".join(
        f"<dt>{escape(_label(label, words))}</dt><dd>{_said(text, words)}</dd>" for label, text in view.lines
    )
    problems = _problems(view.problems, tab, words)
    return f'<h2>{words("Plan")}</h2><dl class="k-plan-lines">{rows}</dl>{problems}'


def _said(text: str, words: Words) -> str:
    """A line of the plan in the language of the page: its phrases one by one, each kept together where it fits."""
    return SIGN.join(f"<span>{escape(words.said(part))}</span>" for part in text.split(SIGN))


def _label(label: str, words: Words) -> str:
    names = {
        "Training": words("Training"),
        "Pictures": words("Pictures"),
        "First": words("First"),
        "Length": words("Length"),
        "Rates": words("Rates"),
        "Time": words("Time"),
        "Memory": words("Memory"),
        "Writes": words("Writes"),
        "Note": words("Note"),
    }
    return names.get(label, label)


def _problems(found: Sequence[Problem], tab: str, words: Words) -> str:
    """The complaints; of many about one field the first ones and their number."""
    parts, counts = [], Counter((problem.severity, problem.key) for problem in found)
    shown: Counter[tuple[str, str | None]] = Counter()
    for problem in found:
        about = (problem.severity, problem.key)
        shown[about] += 1
        if problem.key is None or counts[about] <= MOST_ALIKE or shown[about] < MOST_ALIKE:
            parts.append(_problem(problem, tab, words))
        elif shown[about] == MOST_ALIKE:
            text = words("And {n} more about the same field.", n=counts[about] - MOST_ALIKE + 1)
            parts.append(_problem(replace(problem, message=text, hint=""), tab, words))
    return "".join(parts)


def _problem(problem: Problem, tab: str, words: Words) -> str:
    severity = problem.severity if problem.severity in SAID else "warning"
    text, hint = escape(words.said(problem.message)), escape(words.said(problem.hint))
    if not problem.key:
        text += f" {hint}"
        return f'<div class="k-problem k-{severity}" role="alert"><span>{text}</span></div>'
    if problem.fix:
        mending = fix(problem, words)
        go = f'<button data-go="{escape(problem.key)}" data-tab="{tab}" title="{words("go to")}">{text}</button>'
        mend = (
            f'<button class="k-link" data-tab="{tab}" data-set="{escape(json.dumps(mending["values"]))}">'
            f"{escape(mending['label'])}</button>"
        )
        return f'<div class="k-problem k-{severity}"><span>{go}</span><b>{mend}</b></div>'
    return (
        f'<button class="k-problem k-{severity}" title="{hint}" '
        f'data-go="{escape(problem.key)}" data-tab="{tab}">'
        f"<span>{text}</span><b>{words('go to')}</b></button>"
    )


def fix(problem: Problem, words: Words) -> dict[str, Any]:
    """The one click that mends a problem: what it is called, and the values it sets."""
    key, value = next(iter(problem.fix.items()))
    option = _options().get(key)
    if option is not None and option.choice_labels:
        value = words(option.called(value))
    name = "" if key == problem.key else words(option.label) if option else key
    shown = f"…{value[-_LONG:]}" if isinstance(value, str) and len(value) > _LONG else value
    if value is True:
        label = words("Switch on {name}", name=name) if name else words("Switch it on")
    elif value is None:
        label = words("Leave it empty")
    elif name:
        label = words("Set {name} to {value}", name=name, value=shown)
    else:
        label = words("Use {value}", value=shown)
    return {"label": label, "values": dict(problem.fix)}


@cache
def _options() -> dict[str, OptionField]:
    """Every field of the forms."""
    return {key: option for tab in TABS for key, option in tab_fields(tab).items()}


def sentence(text: str) -> str:
    """One sentence for a dialog."""
    return f"<p>{escape(text)}</p>"


def with_mistakes(view: PlanView, mistakes: Sequence[UserError]) -> PlanView:
    """The plan with what could not be read in the form as its first errors."""
    found = [Problem("error", mistake.key, mistake.message, mistake.hint) for mistake in mistakes]
    taken = {mistake.key for mistake in mistakes}
    return replace(view, problems=[*found, *(problem for problem in view.problems if problem.key not in taken)])


def verdict(view: PlanView, words: Words) -> str:
    """The sentence under the Start button."""
    errors = sum(problem.severity == "error" for problem in view.problems)
    if errors == 1:
        return words("1 thing to mend before it can start.")
    if errors:
        return words("{n} things to mend before it can start.", n=errors)
    needed = sum(problem.severity == "needed" for problem in view.problems)
    return words("Still needed before it can start: {n}.", n=needed) if needed else words("Ready to start.")


def command_sheet(plan: Plan, words: Words) -> str:
    """The exact command: readable with one option a line, and in one line each for Linux and Windows."""
    lines = [line for step in plan.before for line in [*_folded(step.argv), "&& \\"]]
    lines += [f"{name}={shlex.quote(value)} \\" for name, value in sorted(plan.env.items())]
    lines += _folded(plan.argv)
    notes = "".join(f"<p class='k-quiet'>{escape(words.said(note))}</p>" for note in plan.notes)
    place = words("JOB_FOLDER stands for a folder that holds the TOML as config.toml; every job gets one of its own.")
    notes += f"<p class='k-quiet'>{place}</p>"
    shown = f'<pre id="k-command">{escape(chr(10).join(lines))}</pre>{_copy("#k-command", words)}'
    return notes + shown + _one_line(plan, False, words) + _one_line(plan, True, words)


def _one_line(plan: Plan, windows: bool, words: Words) -> str:
    """The command for one kind of system, with a button that copies it."""
    title = words("In one line, for Windows (cmd)") if windows else words("In one line, for Linux")
    name = "k-line-windows" if windows else "k-line-linux"
    try:
        line = plan.line(windows)
    except UserError as error:
        return f"<h3>{title}</h3><p class='k-quiet'>{escape(words.error(error))}</p>"
    return f'<h3>{title}</h3><pre id="{name}" class="k-one-line">{escape(line)}</pre>{_copy(f"#{name}", words)}'


def _folded(argv: Sequence[str]) -> list[str]:
    """The words of a command, a new line before every flag after the program."""
    lines: list[str] = []
    for word in argv:
        if lines and not word.startswith("--"):
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return [line + (" \\" if number + 1 < len(lines) else "") for number, line in enumerate(lines)]


def toml_sheet(plan: Plan, words: Words) -> str:
    """The configuration file that the trainer reads."""
    return f'<pre id="k-toml">{escape(plan.toml_text)}</pre>{_copy("#k-toml", words)}'


def _copy(selector: str, words: Words) -> str:
    return f'<div class="k-foot"><button data-copy="{selector}">{words("Copy")}</button></div>'


def report_sheet(lines: Sequence[Any], words: Words) -> str:
    """What opening an older file renamed, repaired, kept aside or left out."""
    titles = {
        "renamed": words("Renamed"),
        "repaired": words("Repaired"),
        "retired": words("No longer used"),
        "kept": words("Kept, but not on this form"),
        "unknown": words("Unknown, kept aside"),
    }
    parts = []
    for kind, title in titles.items():
        chosen = [line for line in lines if line.kind == kind]
        if chosen:
            rows = "".join(f"<li><code>{escape(line.key)}</code> {escape(line.message)}</li>" for line in chosen)
            parts.append(f"<h3>{title} ({len(chosen)})</h3><ul>{rows}</ul>")
    return "".join(parts) or f'<p class="k-quiet">{words("Every key was understood as it is.")}</p>'


def notes(view: PlanView, infos: Mapping[str, str], words: Words) -> dict[str, dict[str, Any]]:
    """What stands under each field: errors before warnings before plain remarks; an empty field's need quietly."""
    made: dict[str, dict[str, Any]] = {key: {"say": "info", "text": text} for key, text in infos.items()}
    for severity in ("warning", "needed", "error"):
        # the first finding of a field is the one that counts, so it is written last
        for problem in reversed(view.problems):
            if problem.key and problem.severity == severity:
                made[problem.key] = note = _note(problem, words)
                other = _ALSO_AT.get(problem.key)
                if other and problem.fix and made.get(other, {}).get("say") in (None, "info"):
                    made[other] = note
    return made


def _note(problem: Problem, words: Words) -> dict[str, Any]:
    if problem.severity == "needed":
        return {"say": "needed", "text": f"{words('Needed.')} {words.said(problem.hint)}".strip()}
    if problem.fix:
        return {"say": problem.severity, "text": words.said(problem.message), "set": fix(problem, words)}
    text = f"{words.said(problem.message)} {words.said(problem.hint)}".strip()
    return {"say": problem.severity, "text": text}
