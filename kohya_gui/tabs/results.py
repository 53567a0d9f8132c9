"""What a preparation or utility says under its buttons, as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from kohya_gui.job_view import JobView
from kohya_gui.localization import Words
from kohya_gui.pickers import size_text
from kohya_gui.prepare.balance import Renaming
from kohya_gui.prepare.folders import Plan
from kohya_gui.prepare.journal import PLACE
from kohya_gui.prepare.look import Look
from kohya_gui.tabs.jobs_html import file_link
from sd_scripts.schema.errors import UserError

MOST_FILES = 5


def said(text: str, kind: str = "") -> str:
    """One sentence; `kind` may be "error" or "good"."""
    mark = f" k-say-{kind}" if kind else ""
    role = "alert" if kind == "error" else "status"
    return f'<p class="k-result-line{mark}" role="{role}">{escape(text)}</p>'


def mistake(error: UserError, words: Words) -> str:
    """What stands in the way, with the way out."""
    text = " ".join(words.said(part) for part in (error.message, error.hint) if part)
    return said(text, "error")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    if not rows:
        return ""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="k-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def facts(lines: Sequence[tuple[str, str]]) -> str:
    """Labels and what they are."""
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in lines)
    return f'<dl class="k-plan-lines">{rows}</dl>' if lines else ""


def look(found: Look, words: Words) -> str:
    """The dry run of a tool."""
    return f"<h2>{words('What will happen')}</h2>{facts(found.lines)}{table(found.head, found.rows)}"


def written(view: JobView, words: Words) -> str:
    """The files that a job wrote, each with its download."""
    made = [item for item in view.files if not item.state]
    rows = "".join(
        f'<p class="k-file-row"><b>{escape(Path(item.path).name)}</b>'
        f'<span class="k-quiet">{size_text(item.size)}</span>'
        f"{file_link(item.path, words('Download'))}</p>"
        for item in made[:MOST_FILES]
    )
    more = len(made) - MOST_FILES
    return rows + (said(words("and {n} more", n=more)) if more > 0 else "")


def preparation(plan: Plan, words: Words, *, done: bool = False) -> str:
    """What a folder preparation will do, or did."""
    head = (
        words("Folder"),
        words("Files"),
        words("Pictures"),
        words("Without caption"),
        words("Size"),
        words("Stands there now"),
    )
    rows = [
        (
            str(folder.target),
            f"{len(folder.files):,}",
            f"{folder.pictures:,}",
            f"{folder.without_caption:,}",
            size_text(folder.size),
            _replaced(folder.replaces, words, done),
        )
        for folder in plan.folders
    ]
    rows += [(str(path), "", "", "", "", words("is made")) for path in plan.make]
    over = sum(folder.passed_over for folder in plan.folders)
    lines = [(words("To copy"), size_text(plan.size)), (words("Free disk space"), size_text(plan.free))]
    if done:
        lines = [(words("Copied"), size_text(plan.size))]
    if over:
        lines.append((words("Not copied"), words("{n} files that belong to no picture, or caches", n=over)))
    changes, kept = plan.kept
    if kept:
        text = words(
            "{size} of {n} earlier preparations, in the folder {name}", size=size_text(kept), n=changes, name=PLACE
        )
        lines.append((words("Kept for Undo"), text))
    if plan.interrupted:
        lines.append((words("Interrupted before"), words("an earlier change is put right first")))
    title = words("What was done") if done else words("What will happen")
    return f"<h2>{title}</h2>{table(head, rows)}{facts(lines)}"


def _replaced(files: int | None, words: Words, done: bool) -> str:
    if files is None:
        return words("was not there") if done else words("nothing")
    return words("{n} files, kept for Undo", n=f"{files:,}")


def renamings(found: Sequence[Renaming], words: Words, *, done: bool = False) -> str:
    """Old and new names of picture folders."""
    head = (words("Folder"), words("Pictures"), words("New name"), words("Shown in an epoch"), words("Remark"))
    rows = [
        (
            item.old,
            f"{item.pictures:,}",
            item.new if item.changes else words("stays"),
            f"{item.pictures * item.repeats:,}" if item.repeats else "",
            _remark(item, words),
        )
        for item in found
    ]
    changed = sum(item.changes for item in found)
    title = words("What was done") if done else words("What will happen")
    count = words("{n} of {all} folders get another name.", n=changed, all=len(found))
    return f"<h2>{title}</h2>{said(count)}{table(head, rows)}"


def _remark(item: Renaming, words: Words) -> str:
    if item.passed:
        return words("passed over: no repeats in front of its name")
    if not item.pictures:
        return words("no pictures: training passes it over")
    return words("times {n}", n=item.factor) if item.factor else ""


def undone(restored: Mapping[str, int], words: Words) -> str:
    """How many files an undo put back, took away, and left because they were changed since."""
    lines = [
        (words("Put back as it was"), f"{restored.get('restored', 0):,}"),
        (words("Taken away"), f"{restored.get('removed', 0):,}"),
    ]
    if restored.get("changed"):
        lines.append((words("Left, changed since"), f"{restored['changed']:,}"))
    return f"<h2>{words('Undone')}</h2>{facts(lines)}"
