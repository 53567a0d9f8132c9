"""The Jobs tab as HTML: table, curves, samples, files, log. Pure functions of what the job folders say."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kohya_gui.job_log import Curves, FileMade, Sample
from kohya_gui.job_view import JobView
from kohya_gui.localization import Words
from kohya_gui.pickers import size_text
from kohya_gui.prepare.undo import can_undo
from kohya_gui.tabs.charts import chart

CHARTS = ("loss", "rates", "norm", "memory")
MOST_AWAY = 3


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 40 s, 12 min, 1 h 20 min."""
    if seconds is None:
        return ""
    whole = max(int(seconds + 0.5), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    hours, rest = divmod(round(whole / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def speed_text(speed: float | None) -> str:
    """Steps per second, or seconds per step where that is the larger number."""
    if not speed or speed <= 0:
        return ""
    return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


def file_link(path: str, text: str, *, name: str = "k-button") -> str:
    """A link that downloads a file through the confined route."""
    address, saved_as = f"kohya/file?path={quote(path)}&amp;download=1", escape(Path(path).name)
    return f'<a class="{name}" href="{address}" download="{saved_as}">{escape(text)}</a>'


def _button(action: str, job: str, text: str, sure: str = "") -> str:
    ask = f' data-sure="{escape(sure)}"' if sure else ""
    return f'<button class="k-button" data-do="{action}" data-job="{job}"{ask}>{escape(text)}</button>'


def _empty(text: str) -> str:
    return f'<p class="k-quiet k-empty">{text}</p>'


def _choice(action: str, data: str, job: str, text: str, *, on: bool) -> str:
    mark = " k-on" if on else ""
    return f'<button class="k-link{mark}" data-do="{action}" {data} data-job="{job}">{text}</button>'


def _tool_actions(view: JobView, words: Words) -> str:
    """A tool has nothing to save; what it wrote can be put back."""
    edit = _button("edit", view.id, words("Edit"))
    remove = _button(
        "remove", view.id, words("Remove"), words("Remove {name} from the list? Written files stay.", name=view.name)
    )
    if view.running:
        return _button("kill", view.id, words("End"), words("End {name}? What it wrote stays.", name=view.name))
    if view.state == "waiting":
        return "".join([_button("up", view.id, words("Up")), _button("down", view.id, words("Down")), edit, remove])
    undo = _button("undo", view.id, words("Undo")) if can_undo(view.folder) else ""
    only = view.files[0] if len(view.files) == 1 and view.state == "done" and undo else None
    link = file_link(only.path, words("Download {size}", size=size_text(only.size))) if only else ""
    mend = _button("mend", view.id, words("Change it in the form")) if view.error_key else ""
    why = _button("why", view.id, words("Why")) if view.error else ""
    return "".join([mend, why, link, undo, _button("again", view.id, words("Run again")), edit, remove])


def _actions(view: JobView, words: Words) -> str:
    if view.tool:
        return _tool_actions(view, words)
    made = [_button("stop", view.id, words("Stop and save")), _button("save", view.id, words("Save now"))]
    kill = _button(
        "kill",
        view.id,
        words("Kill"),
        words("Kill {name}? What was learned since the last save is lost.", name=view.name),
    )
    remove = _button(
        "remove", view.id, words("Remove"), words("Remove {name} from the list? Written files stay.", name=view.name)
    )
    edit = _button("edit", view.id, words("Edit"))
    if view.running:
        return "".join([*made, _button("sample", view.id, words("Sample now")), kill])
    if view.state == "waiting":
        return "".join([_button("up", view.id, words("Up")), _button("down", view.id, words("Down")), edit, remove])
    again = [_button("again", view.id, words("Run again")), edit, remove]
    if view.state == "done":
        final = next((made for made in reversed(view.files) if made.final and not made.state), None)
        link = file_link(final.path, words("Download {size}", size=size_text(final.size))) if final else ""
        return "".join([link, *again])
    mend = _button("mend", view.id, words("Change it in the form")) if view.error_key else ""
    why = _button("why", view.id, words("Why")) if view.error else ""
    # with nothing saved there is nothing to go on from: that would be running it again
    saved = view.resume_from or view.initial_step
    resume = _button("resume", view.id, words("Resume")) if saved else ""
    return "".join([mend, why, resume, *again])


def _progress(view: JobView, words: Words) -> str:
    if view.state == "waiting":
        return f'<span class="k-quiet">{words("number {n} in the queue", n=view.position or 1)}</span>'
    if view.tool and not view.running:
        return f'<span class="k-quiet">{escape(words.said(view.end_reason))}</span>' if view.state == "done" else ""
    if view.state == "starting" or (view.running and not view.step):
        bar = meter(view) if view.tool and view.phase_of else ""
        counted = f" {view.phase_done:,} / {view.phase_of:,}" if view.phase_of and view.phase_done is not None else ""
        return f'{bar}<span class="k-quiet">{escape(words(view.phase or "starting"))}{counted}</span>'
    count = words("{step} of {of}", step=f"{view.step:,}", of=f"{view.of:,}") if view.of else ""
    if not view.running:
        return count
    return f'{meter(view)}<span class="k-count">{count}</span>'


def meter(view: JobView) -> str:
    """How much is done, as a bar."""
    return f'<span class="k-meter"><i style="width:{view.fraction * 100:.1f}%"></i></span>'


def _state(view: JobView, words: Words) -> str:
    asked = {"stop": words("stopping"), "kill": words("ending")}.get(view.asked, "")
    return f'<b class="k-state k-{view.state}">{escape(asked or words(view.state))}</b>'


def row(view: JobView, chosen: bool, words: Words) -> str:
    """One line of the table."""
    said = f'<span class="k-cause">{escape(words.said(view.error))}</span>' if view.error else ""
    left = duration(view.eta) if view.running else ""
    mark = ' class="k-chosen"' if chosen else ""
    began = time.strftime("%d %b, %H:%M", time.localtime(view.created))
    return (
        f'<tr data-do="choose" data-job="{view.id}"{mark}><td><b>{escape(view.name)}</b><small>{began}</small></td>'
        f"<td>{_state(view, words)}</td><td>{_progress(view, words)}</td>"
        f"<td>{speed_text(view.speed)}</td><td>{left}</td>"
        f'<td class="k-acts">{said}{_actions(view, words)}</td></tr>'
    )


def _heads(words: Words) -> tuple[str, ...]:
    return words("Job"), words("State"), words("Progress"), words("Speed"), words("Time left")


def table(views: Sequence[JobView], chosen: str, words: Words) -> str:
    """All jobs."""
    if not views:
        return _empty(words("No job yet. Start one from a training tab; it runs on even if this page is closed."))
    head = "".join(f"<th>{text}</th>" for text in _heads(words)) + "<th></th>"
    rows = "".join(row(view, view.id == chosen, words) for view in views)
    return f'<table class="k-jobs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def status(views: Sequence[JobView], words: Words) -> str:
    """The line at the top right, with what the script puts into the browser tab's title."""
    running = [view for view in views if view.running]
    ended = next((view for view in sorted(views, key=lambda v: -(v.ended or 0)) if view.over), None)
    text, title = "", "Kohya's GUI"
    if running:
        first = running[0]
        text = f"{first.name} {first.fraction * 100:.0f} %" + (
            f", {words('{time} left', time=duration(first.eta))}" if first.eta else ""
        )
        title = f"{first.fraction * 100:.0f} % {first.name}"
    said = f"{ended.name}: {words(ended.state)}" if ended else ""
    facts = {"title": title, "running": str(len(running)), "ended": ended.id if ended else "", "said": said}
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in facts.items())
    return f'<button class="k-plain" aria-label="{words("Jobs")}" data-top="jobs"{data}>{escape(text)}</button>'


# ---------------------------------------------------------------- the chosen job


def curves(view: JobView, found: Curves, kind: str, words: Words, found_by_tool: str = "") -> str:
    """The chart card; a tool has no curve, but a sentence, and what it found."""
    if view.tool:
        said = view.end_reason if view.state == "done" else view.error
        text = escape(words.said(said)) or words("Nothing to show yet.")
        return f'<h2 class="k-of-tool">{escape(view.name)}</h2><p class="k-quiet k-empty">{text}</p>{found_by_tool}'
    best = min(found.validation, key=lambda point: point[1], default=None)
    if kind == "rates":
        lines = {f"k-line k-line{number % 4}": points for number, points in enumerate(found.lr.values())}
        drawn = chart(lines, total=view.of, title=words("learning rates"), zero=True)
    elif kind == "norm":
        drawn = chart({"k-line": found.grad_norm}, total=view.of, title=words("gradient norm"), zero=True)
    elif kind == "memory":
        points = [(step, value / 2**30) for step, value in found.memory]
        drawn = chart({"k-line": points}, total=view.of, title=words("memory in GB"), zero=True)
    else:
        drawn = chart(
            {"k-raw": found.loss, "k-line": found.smooth}, dots=found.validation, total=view.of, title=words("loss")
        )
    drawn = drawn or f'<p class="k-quiet k-empty">{words("The curve begins with the first step.")}</p>'
    names = {
        "loss": words("raw and smoothed (0.95)"),
        "rates": words("rates"),
        "norm": words("gradient norm"),
        "memory": words("memory (GB)"),
    }
    links = [_choice("chart", f'data-chart="{name}"', view.id, text, on=name == kind) for name, text in names.items()]
    if best:
        links.insert(1, f'<span class="k-valid-text">{words("validation, best at step {n}", n=f"{best[0]:,}")}</span>')
    if kind == "rates":
        links.append(escape(", ".join(f"{group} {values[-1][1]:.3g}" for group, values in found.lr.items() if values)))
    titles = {
        "loss": words("Loss"),
        "rates": words("Learning rates"),
        "norm": words("Gradient norm"),
        "memory": words("Memory"),
    }
    now = f'<span class="k-quiet k-now">{view.loss:.4f}</span>' if view.loss is not None and kind == "loss" else ""
    return f'<h2>{titles[kind]} · {escape(view.name)}{now}</h2>{drawn}<p class="k-links-line">{" · ".join(links)}</p>'


def samples(view: JobView, index: int, pair: tuple[int, ...], words: Words) -> str:
    """The sample pictures of one prompt by step, and two of them laid over each other.

    Args:
        view: the job.
        index: the prompt's number.
        pair: the two steps to compare; where they have no picture, the first and the last.
    """
    if view.tool:
        return ""
    prompts: dict[int, str] = {}
    for sample in view.samples:
        prompts.setdefault(sample.index, sample.prompt)
    if not prompts:
        said = _empty(words("Pictures appear here when the run has sample prompts."))
        return f"<h2>{words('Samples')}</h2>{said}"
    index = index if index in prompts else min(prompts)
    shown = [sample for sample in view.samples if sample.index == index]
    steps = {sample.step: sample for sample in shown}
    two = [steps[step] for step in pair if step in steps] if len(set(pair) & set(steps)) == 2 else [shown[0], shown[-1]]
    two.sort(key=lambda sample: sample.step)
    tiles = "".join(_tile(sample, sample in two, view.id, words) for sample in shown)
    chooser = " · ".join(
        _choice("prompt", f'data-index="{number}"', view.id, words("prompt {n}", n=number + 1), on=number == index)
        for number in sorted(prompts)
    )
    seed = f" · {words('seed {n}', n=shown[0].seed)}" if shown[0].seed is not None else ""
    return (
        f"<h2>{words('Samples')} · “{escape(prompts[index])}”</h2>{_compared(two, words)}"
        f'<div class="k-strip">{tiles}</div>'
        f'<p class="k-links-line">{chooser}<span class="k-quiet">{seed}</span></p>'
    )


def _step(sample: Sample, words: Words) -> str:
    return words("step {n}", n=f"{sample.step:,}")


def _tile(sample: Sample, compared: bool, job: str, words: Words) -> str:
    mark = " k-on" if compared else ""
    return (
        f'<button class="k-tile{mark}" data-do="compare" data-job="{job}" data-step="{sample.step}" '
        f'title="{words("Compare this one")}"><img loading="lazy" alt="{escape(sample.prompt)}" '
        f'src="kohya/thumb?path={quote(sample.path)}&amp;size=320"><small>{_step(sample, words)}</small></button>'
    )


def _compared(two: Sequence[Sample], words: Words) -> str:
    """Two pictures in one frame; the slider says how much of each is seen. One picture stands alone."""
    left, right = two
    links = [
        f'<a class="k-link" href="kohya/file?path={quote(sample.path)}" target="_blank">{_step(sample, words)}</a>'
        for sample in (two if left != right else two[:1])
    ]
    pictures = [
        f'<img alt="{_step(sample, words)}" src="kohya/file?path={quote(sample.path)}">'
        for sample in (two if left != right else two[:1])
    ]
    slider = f'<input type="range" class="k-cut" min="0" max="100" value="50" aria-label="{words("How much of each")}">'
    return (
        f'<div class="k-compare">{"".join(pictures)}{slider if left != right else ""}</div>'
        f'<p class="k-links-line k-sides">{"".join(links)}</p>'
    )


def away(views: Sequence[JobView], since: float, words: Words) -> str:
    """What ended since the last visit, in one line; "" if nothing did or this is the first visit."""
    ended = [view for view in views if view.over and view.ended and view.ended > since] if since else []
    if not ended:
        return ""
    parts = []
    for view in ended[:MOST_AWAY]:
        steps = words("{n} steps", n=f"{view.step:,}")
        said = words("finished, {steps}", steps=steps) if view.state == "done" else words(view.state)
        if view.tool and view.state == "done":
            said = words("finished")
        parts.append(
            f"{escape(view.name)} {escape(said)}" + (f" ({escape(words.said(view.error))})" if view.error else "")
        )
    more = words("and {n} more", n=len(ended) - MOST_AWAY) if len(ended) > MOST_AWAY else ""
    text = "; ".join([*parts, *([more] if more else [])])
    jobs = f'<button class="k-link" data-top="jobs">{words("Look at the jobs")}</button>'
    return f'<p class="k-away">{words("While you were away:")} {text}. {jobs}</p>'


def files(view: JobView, words: Words) -> str:
    """Files written, newest first, each with its download."""
    made = [item for item in reversed(view.files) if not item.state]
    rows = "".join(_file_row(item, words) for item in made)
    states = [item for item in view.files if item.state]
    if states:
        newest = escape(Path(states[-1].path).name)
        rows += f'<p class="k-quiet">{words("{n} saved states, newest {name}", n=len(states), name=newest)}</p>'
    return f"<h2>{words('Files')}</h2>" + (rows or f'<p class="k-quiet k-empty">{words("Nothing written yet.")}</p>')


def _file_row(item: FileMade, words: Words) -> str:
    mark = f", {words('opened again and checked')}" if item.checked else ""
    mark = f", {words('step {n}', n=f'{item.step:,}')}{mark}" if item.step else mark
    return (
        f'<p class="k-file-row"><b>{escape(Path(item.path).name)}</b><span class="k-quiet">{size_text(item.size)}'
        f"{mark}</span>{file_link(item.path, words('Download'))}</p>"
    )


def log(text: str) -> str:
    """The console's last lines."""
    return f'<pre id="k-log" tabindex="0">{escape(text)}</pre>'


def why(view: JobView, spec: Mapping[str, Any], tail: str, words: Words) -> str:
    """The dialog that explains a failure: cause, way out, end of the log."""
    del spec
    warnings = "".join(f"<li>{escape(str(item.get('message', '')))}</li>" for item in view.warnings[-5:])
    listed = f"<h3>{words('Warnings before')}</h3><ul>{warnings}</ul>" if warnings else ""
    error, hint = escape(words.said(view.error)), escape(words.said(view.hint))
    return f"<p><b>{error}</b></p><p>{hint}</p>{listed}<pre>{escape(tail)}</pre>"
