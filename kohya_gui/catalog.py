"""Every English text that a person can see on the page: what a language file must hold to be complete.

`python -m kohya_gui.catalog de` prints what `localizations/de.json` lacks and what in it is stale. Texts with
{placeholders} stand for many: those of `words(...)` calls keep their names, those of other sentences are numbered.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kohya_gui.job_view import PHASES, STATES
from kohya_gui.layout import Page
from kohya_gui.layouts import LAYOUTS
from kohya_gui.model_kind import FAMILY_NAMES
from kohya_gui.tools import SHELVES, TOOLS, tool_fields
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.tabs import TABS, tab_fields
from sd_scripts.schema.tools_preparation import BalancingOptions, FolderPreparationOptions, ManualCaptionOptions

PROJECT = Path(__file__).resolve().parent.parent
# what these say appears in a terminal or in a file, never on the page
_OFF_THE_PAGE = frozenset(
    ("catalog.py", "cli.py", "document.py", "frozen.py", "installer.py", "parse.py", "start.py", "supervisor.py")
)
# whole sentences, also those that end in somebody else's words; and parts of sentences that the schema's functions give
_SENTENCE = re.compile(r"[A-Za-z0-9{].*[.!?]$|[A-Z{](?:\S+ ){3,}\S*: \{\d\}$", re.DOTALL)
_PART = re.compile(r"(?!.*(?:\n|--|[<>=_/\\]))(?=.*[a-z]{3})[a-z0-9{].* .*")
_LEAST_WORDS = 2
_TRANSLATING = frozenset(("words", "said", "self.words", "services.words", "phrase", "self._button"))


def texts() -> dict[str, str]:
    """English text -> where it comes from, for every text of the page."""
    found: dict[str, str] = {}
    for origin, text in _all():
        if text.strip():
            found.setdefault(text, origin)
    return found


def _all() -> Iterator[tuple[str, str]]:
    for name, tab in TABS.items():
        yield "tab", tab.title
        yield from _of_options(tab_fields(name).values())
        yield from _of_pages(LAYOUTS[name].pages)
    yield from _of_tools()
    yield from _of_presets()
    for folder in ("kohya_gui", "sd_scripts/schema"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            if path.name not in _OFF_THE_PAGE:
                yield from _of_code(path)


def _of_presets() -> Iterator[tuple[str, str]]:
    """Names and descriptions of the presets, and the kinds of base model they are listed under."""
    for name in FAMILY_NAMES.values():
        yield "preset", name
    for path in sorted((PROJECT / "presets").glob("*/*.json")):
        yield "preset", path.stem
        yield "preset", str(json.loads(path.read_text(encoding="utf-8")).get("description", ""))


def _of_tools() -> Iterator[tuple[str, str]]:
    for tool in TOOLS.values():
        yield "tool", tool.title
        yield "tool", tool.does
        yield "tool", tool.button
        yield "tool", tool.dry
        yield from _of_options(tool_fields(tool).values())
    for section in (FolderPreparationOptions, BalancingOptions, ManualCaptionOptions):
        yield from _of_options(section_fields(section))
    for shelf in SHELVES:
        yield "page", shelf.title
    for phase in PHASES.values():
        yield "phase", phase
    for state in STATES:
        yield "state", state


def _of_options(options: Iterable[OptionField]) -> Iterator[tuple[str, str]]:
    for option in options:
        yield "label", option.label
        yield "help", option.help
        yield "unit", option.unit
        yield from (("choice", label) for label in option.choice_labels)
        yield "section", f"More: {option.section}"


def _of_pages(pages: Iterable[Page]) -> Iterator[tuple[str, str]]:
    for page in pages:
        yield "page", page.title
        for group in page.groups:
            yield "group", group.title
        yield from _of_pages(page.pages)


def _of_code(path: Path) -> Iterator[tuple[str, str]]:
    """The first arguments of `words(...)`, and whole sentences that are no documentation and no option's help."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aside = _documentation(tree) | _arguments_of_options(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in _TRANSLATING:
            aside.update(id(argument) for argument in node.args[:1])
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                yield f"words in {path.name}", node.args[0].value
    for node in ast.walk(tree):
        text = "" if id(node) in aside else _template(node)
        if _SENTENCE.match(text) and len(text.split()) >= _LEAST_WORDS and re.search("[a-z]{2}", text):
            yield f"sentence in {path.name}", text
    if "schema" in path.parts:
        given = (inner for node in ast.walk(tree) if isinstance(node, ast.Return) for inner in ast.walk(node))
        for node in given:
            text = "" if id(node) in aside else _template(node)
            if _PART.fullmatch(text):
                yield f"part in {path.name}", text


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _documentation(tree: ast.AST) -> set[int]:
    """The texts that stand alone, and the parts of longer texts."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return alone | parts


def _arguments_of_options(tree: ast.AST) -> set[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "option")
    return {id(inner) for call in calls for inner in ast.walk(call)}


def _template(node: ast.AST) -> str:
    """A text constant as it is, an f-string with its values numbered; "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    made, count = "", 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            made += str(part.value)
        else:
            made += f"{{{count}}}"
            count += 1
    return made


def missing_and_stale(table: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a language's table lacks, and what it translates although the page says it no more."""
    needed = texts()
    return [text for text in needed if text not in table], [text for text in table if text not in needed]


def main(language: str) -> int:
    """Print the gaps of a language as JSON: missing texts with where they come from, and stale ones."""
    path = PROJECT / "localizations" / f"{language}.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing, stale = missing_and_stale(table)
    origins = texts()
    print(
        json.dumps({"missing": {text: origins[text] for text in missing}, "stale": stale}, ensure_ascii=False, indent=1)
    )
    return 1 if missing or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
