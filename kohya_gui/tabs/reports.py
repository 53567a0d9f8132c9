"""What a tool found, as tables and drawings: made from the file that its script wrote into the job's folder."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from kohya_gui.job_log import console_lines
from kohya_gui.job_view import JobView
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.supervisor import CONSOLE
from kohya_gui.tabs import metadata_html, results
from kohya_gui.tabs.charts import bars
from kohya_gui.tools_record import Tool, Values
from sd_scripts.schema.errors import UserError

MOST_BYTES = 30_000_000
MOST_ROWS = 300
MOST_BARS = 90
MOST_PROBLEMS = 20
LOG_LINES = 60
# what these say is the result itself
_TALKING = ("interrogate_lora",)


def report(tool: Tool, view: JobView, words: Words) -> str:
    """The report of a job as HTML; "" where there is none."""
    if not tool.seen or view.state not in ("done", "failed"):
        return ""
    if tool.reports:
        return network(_read(view.folder / tool.reports), words)
    lines = console_lines(view.folder / CONSOLE, LOG_LINES)
    if not lines:
        return ""
    shown = " open" if tool.name in _TALKING else ""
    text = escape("\n".join(lines))
    return f'<details{shown}><summary>{words("What the script said")}</summary><pre tabindex="0">{text}</pre></details>'


def looked(tool: Tool, values: Values, words: Words) -> str:
    """What a dry run shows beyond its lines."""
    return metadata_html.sheet(str(values["model"]), words) if tool.name == "edit_metadata" else ""


def picked(tool: Tool, key: str, roots: Roots, path: str, words: Words) -> dict[str, str]:
    """The part of a message that shows a file as soon as it is chosen."""
    if tool.name != "edit_metadata" or key != "model":
        return {}
    try:
        return {"result": metadata_html.sheet(str(roots.inside(path)), words)}
    except UserError as error:
        return {"result": results.mistake(error, words)}


def _read(path: Path) -> dict[str, Any]:
    """The script's table; an empty one where it is missing, damaged or endless."""
    try:
        found = os.stat(path)
    except OSError:
        return {}
    return _table(path, found.st_mtime_ns) if found.st_size <= MOST_BYTES else {}


@lru_cache(maxsize=4)
def _table(path: Path, changed: int) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def network(table: Mapping[str, Any], words: Words) -> str:
    """Problems, norms by block and all modules of a network.

    Args:
        table: kind, modules, blocks and problems, as check_lora_weights.py writes them.
        words: the language.
    """
    modules, blocks = _rows(table.get("modules")), _rows(table.get("blocks"))
    if not modules and not blocks:
        return ""
    return f"{_problems(table.get('problems'), words)}{_drawing(blocks, words)}{_modules(modules, words)}"


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _problems(value: Any, words: Words) -> str:
    found = [str(item) for item in value] if isinstance(value, list) else []
    if not found:
        return ""
    shown = "".join(f"<li>{escape(words.said(text))}</li>" for text in found[:MOST_PROBLEMS])
    more = len(found) - MOST_PROBLEMS
    rest = f"<li>{words('and {n} more', n=more)}</li>" if more > 0 else ""
    return f'<h2>{words("Problems")}</h2><ul class="k-say-error">{shown}{rest}</ul>'


def _drawing(blocks: Sequence[Mapping[str, Any]], words: Words) -> str:
    known = [(str(block.get("name", "")), norm) for block in blocks if (norm := _number(block.get("norm"))) is not None]
    if not known:
        return ""
    title = words("Norm of the change by block")
    more = len(known) - MOST_BARS
    rest = results.said(words("and {n} more", n=more)) if more > 0 else ""
    return f"<h2>{title}</h2>{bars(known[:MOST_BARS], title)}{rest}"


def _modules(modules: Sequence[Mapping[str, Any]], words: Words) -> str:
    head = (words("Module"), words("Kind"), words("Rank"), words("Alpha"), words("Norm"), words("Mean up"),
            words("Mean down"))  # fmt: skip
    rows = [
        (
            str(module.get("name", "")),
            str(module.get("kind", "")),
            *(_text(module.get(key)) for key in ("rank", "alpha", "norm", "up_mean", "down_mean")),
        )
        for module in modules[:MOST_ROWS]
    ]
    more = len(modules) - MOST_ROWS
    rest = results.said(words("and {n} more modules", n=f"{more:,}")) if more > 0 else ""
    title, count = words("Modules"), f"{len(modules):,}"
    summary = f"<summary>{title} ({count})</summary>"
    label = escape(title)
    return (
        f'<details open>{summary}<div class="k-wide-table" tabindex="0" role="region" aria-label="{label}">'
        f"{results.table(head, rows)}</div>{rest}</details>"
    )


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _text(value: Any) -> str:
    number = _number(value)
    return "" if number is None else f"{number:.4g}"
