"""The floors of the house, read from every import: who may lean on whom, and what may be loaded where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS: tuple[tuple[str, ...], ...] = (
    ("schema", "events"),
    ("tensorfile", "tensormap"),
    ("models", "networks", "sampling"),
    ("data", "training"),
    ("families",),
    ("methods",),
    ("trainer",),
    ("train",),
)
SCRIPTS = ("tools", "finetune")
# Scripts that people know under this folder; everybody else in there is a part of the house.
NETWORK_SCRIPTS = tuple(
    ROOT / "sd_scripts" / "networks" / f"{name}.py"
    for name in (
        "merge_lora",
        "merge_lora_old",
        "sdxl_merge_lora",
        "svd_merge_lora",
        "extract_lora_from_models",
        "extract_lora_from_dylora",
        "resize_lora",
        "check_lora_weights",
        "lora_interrogator",
    )
)
APART = ("models", "networks", "sampling")
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "bitsandbytes", "xformers", "pandas"}
OPTIONAL = {"bitsandbytes", "xformers", "onnxruntime", "lycoris", "wandb", "tensorboard", "deepspeed"}


def sources() -> list[Path]:
    """Every Python file of the product."""
    found = [path for package in ("sd_scripts", "kohya_gui") for path in sorted((ROOT / package).rglob("*.py"))]
    return [*found, *(path for path in [ROOT / "kohya_gui.py"] if path.exists())]


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute dotted name and whether it runs when the file is loaded, for every import of a file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), package, True)


def _walk(node: ast.AST, package: tuple[str, ...], at_load: bool) -> Iterator[tuple[int, str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child.lineno, alias.name, at_load
        elif isinstance(child, ast.ImportFrom):
            start = list(package[: len(package) - child.level + 1]) if child.level else []
            base = ".".join([*start, *([child.module] if child.module else [])])
            for alias in child.names:
                yield child.lineno, f"{base}.{alias.name}", at_load
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _walk(ast.Module([*child.body], []), package, False)
            yield from _walk(ast.Module([*child.orelse], []), package, at_load)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, at_load and not inside)


def floor(part: str) -> int | None:
    """The floor of a part of sd_scripts, counted from the ground."""
    return next((number for number, names in enumerate(FLOORS) if part in names), None)


def part_of(path: Path) -> str:
    """The part of sd_scripts a file belongs to: `sd_scripts/models/text.py` -> models."""
    return "tools" if path in NETWORK_SCRIPTS else path.relative_to(ROOT / "sd_scripts").with_suffix("").parts[0]


def upward(path: Path) -> list[str]:
    """Imports that lean on a floor above, or across the parts that must not know each other."""
    part = part_of(path)
    mine = floor(part)
    found = []
    for line, name, _ in imports(path):
        names = name.split(".")
        if names[0] != "sd_scripts" or len(names) < 2:
            continue
        other = names[1]
        theirs = floor(other)
        if mine is not None and theirs is None and (ROOT / "sd_scripts" / other).exists():
            found.append(f"{path.name}:{line} leans on the script folder {other}")
        if mine is not None and theirs is not None and theirs > mine:
            found.append(f"{path.name}:{line} {part} leans on {other}, a floor above")
        if part in APART and other in APART and other != part:
            found.append(f"{path.name}:{line} {part} knows {other}")
        if part in SCRIPTS and theirs is not None and theirs > 4:
            found.append(f"{path.name}:{line} a tool leans on {other}")
    return found


def names_of(path: Path) -> set[str]:
    """First parts of all imported names."""
    return {name.split(".")[0] for _, name, _ in imports(path)}


def under(*parts: str) -> list[Path]:
    """The product's files below a folder."""
    return [path for path in sources() if path.is_relative_to(ROOT.joinpath(*parts))]


@pytest.mark.parametrize("path", under("sd_scripts"), ids=lambda path: str(path.relative_to(ROOT)))
def test_floors_are_only_leant_on_from_above(path: Path) -> None:
    assert upward(path) == []


@pytest.mark.parametrize(
    "path",
    [*under("sd_scripts", "schema"), ROOT / "sd_scripts" / "events.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_ground_floor_needs_the_standard_library_only(path: Path) -> None:
    assert {name for name in names_of(path) if name not in sys.stdlib_module_names} <= {"sd_scripts"}


@pytest.mark.parametrize("path", under("sd_scripts"), ids=lambda path: str(path.relative_to(ROOT)))
def test_trainers_do_not_know_the_page(path: Path) -> None:
    assert not names_of(path) & {"kohya_gui", "gradio"}


@pytest.mark.parametrize("path", under("sd_scripts"), ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_loaded_where_they_are_used(path: Path) -> None:
    found = {name.split(".")[0] for _, name, at_load in imports(path) if at_load}
    assert not found & OPTIONAL, "an optional package must be imported inside the function that needs it"


PAGE = [path for path in sources() if "kohya_gui" in path.relative_to(ROOT).parts[0]]


@pytest.mark.parametrize("path", PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_page_knows_the_schema_and_the_events_only(path: Path) -> None:
    assert not names_of(path) & HEAVY
    allowed = ("sd_scripts.schema", "sd_scripts.events")
    found = [name for _, name, _ in imports(path) if name.split(".")[0] == "sd_scripts"]
    assert [name for name in found if not name.startswith(allowed)] == []


def test_the_supervisor_needs_the_standard_library_only() -> None:
    path = ROOT / "kohya_gui" / "supervisor.py"
    assert {name for name in names_of(path) if name not in sys.stdlib_module_names} <= {"sd_scripts", "kohya_gui"}


def test_the_package_itself_is_empty() -> None:
    assert list(imports(ROOT / "sd_scripts" / "__init__.py")) == []


def test_importing_the_schema_loads_no_other_package() -> None:
    code = """
import sys
import sd_scripts.schema.parse, sd_scripts.schema.rules, sd_scripts.events
known = set(sys.stdlib_module_names) | set(sys.builtin_module_names)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "PIL", "gradio", "diffusers")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    folder = tmp_path / "sd_scripts" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "sd_scripts" / "tools").mkdir()
    path = folder / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nfrom ..trainer import x\nfrom . import b\nimport sd_scripts.networks.lora\n"
        "from sd_scripts.tools import t\nif TYPE_CHECKING:\n    import gradio\ndef f():\n    import wandb\n",
        encoding="utf-8",
    )
    found = {name: at_load for _, name, at_load in imports(path)}
    assert found["sd_scripts.trainer.x"] and found["sd_scripts.models.b"]
    assert not found["gradio"] and not found["wandb"]
    said = upward(path)
    assert len(said) == 3
    assert [
        word for word in ("a floor above", "models knows networks", "script folder tools") if word not in str(said)
    ] == []
