"""The browse dialog shows what is inside the allowed folders and nothing else."""

from pathlib import Path

import pytest

from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.pickers import completions, dialog

WORDS = Words({})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "open"
    (root / "10_cat <b>").mkdir(parents=True)
    (root / "10_cat <b>" / "a.png").write_bytes(b"x")
    (root / "model.safetensors").write_bytes(b"x" * 2000)
    (root / "note.txt").write_text("x")
    (root / "old.json").write_text("{}")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "secret.json").write_text("{}")
    return root


def test_names_are_escaped_and_counted(tree: Path) -> None:
    shown = dialog(Roots([tree]), WORDS, {"kind": "folder", "path": ""})["html"]
    assert "<b>" not in shown.replace("<button", "") and "10_cat &lt;b&gt;" in shown
    assert "1 pictures" in shown and "model.safetensors" not in shown


def test_only_files_of_the_kind_are_listed(tree: Path) -> None:
    models = dialog(Roots([tree]), WORDS, {"kind": "model", "path": str(tree)})["html"]
    assert "model.safetensors" in models and "2 kB" in models and "note.txt" not in models
    configs = dialog(Roots([tree]), WORDS, {"kind": "open", "path": str(tree)})["html"]
    # a trained file is there too: its header tells settings
    assert "old.json" in configs and "model.safetensors" in configs and "note.txt" not in configs


@pytest.mark.parametrize("path", ["{closed}", "{open}/../closed", "/etc", "//host/share", "~root/.."])
def test_what_lies_outside_is_refused_with_the_reason(tree: Path, path: str) -> None:
    asked = path.format(open=tree, closed=tree.parent / "closed")
    shown = dialog(Roots([tree]), WORDS, {"kind": "open", "path": asked})["html"]
    assert "secret.json" not in shown and "passwd" not in shown
    assert "k-said" in shown


def test_a_missing_path_shows_the_nearest_folder(tree: Path) -> None:
    shown = dialog(Roots([tree]), WORDS, {"kind": "open", "path": str(tree / "nothing" / "here.json")})["html"]
    assert "old.json" in shown


def test_completion_of_typed_paths(tree: Path) -> None:
    roots = Roots([tree])
    assert completions(roots, {"path": f"{tree}/m", "kind": "model"}) == [f"{tree}/model.safetensors"]
    assert completions(roots, {"path": f"{tree}/", "kind": "folder"}) == [f"{tree}/10_cat <b>/"]
    assert completions(roots, {"path": f"{tree.parent}/closed/", "kind": "open"}) == []
