"""One door for every path from a browser: every known way around it is refused."""

import os
from pathlib import Path

import pytest

from kohya_gui.paths import Roots, natural, nearest_name
from sd_scripts.schema.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two allowed folders beside a secret one, with links out of and into them."""
    for name in ("open/10_cat", "open/2_dog", "other", "secret", "open-not"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret/key.txt").write_text("x")
    (tmp_path / "open/a.json").write_text("{}")
    (tmp_path / "open/.hidden").write_text("x")
    for i in range(3):
        (tmp_path / f"open/10_cat/{i}.PNG").write_text("x")
    os.symlink(tmp_path / "secret", tmp_path / "open/link")
    os.symlink(tmp_path / "secret/key.txt", tmp_path / "open/file link")
    os.symlink(tmp_path / "open/10_cat", tmp_path / "open/inner")
    return tmp_path


@pytest.fixture
def roots(tree: Path) -> Roots:
    """The two allowed folders."""
    return Roots([tree / "open", tree / "other"])


@pytest.mark.parametrize(
    "path", ["open", "open/", "open/10_cat/0.PNG", "open/../open/a.json", "other/new/file", "open/inner/1.PNG"]
)
def test_what_lies_inside_is_allowed(tree: Path, roots: Roots, path: str) -> None:
    assert roots.inside(f"{tree}/{path}").is_relative_to(tree)


def test_a_relative_path_starts_at_the_first_root(tree: Path, roots: Roots) -> None:
    assert roots.inside("a.json") == tree / "open/a.json"


@pytest.mark.parametrize(
    "path",
    [
        "", "  ", "/", "/etc/passwd", "~", "~root/.ssh", "../secret/key.txt", "..", "{}/open/../secret/key.txt",
        "{}/open/link/key.txt", "{}/open/file link", "{}/open-not", "{}/openx", "{}", "//server/share/x",
        "\\\\server\\share", "\\\\?\\C:\\x", "//./pipe/x", "C:x.txt", "c:windows", "con", "aux.txt", "nul", "COM1",
        "{}/open/NUL.txt", "lpt9 ", "a\0b", "{}/open/a.json\0.png", "file:///etc/passwd", "http://x/y",
        "/proc/self/environ",
        "{}/open/" + "a" * 5000 + "/../../../secret/key.txt", "\\windows\\x/../../../../../../../../etc/passwd",
    ],
)  # fmt: skip
def test_everything_else_is_refused(tree: Path, roots: Roots, path: str) -> None:
    assert not roots.allows(path.replace("{}", str(tree)))


def test_no_roots_allow_nothing(tree: Path) -> None:
    assert not Roots([]).allows(tree / "open")


def test_a_listing_shows_folders_first_with_counts_and_leads_nowhere_else(tree: Path, roots: Roots) -> None:
    shown = roots.listing(tree / "open")
    assert [(entry.name, entry.folder, entry.pictures) for entry in shown.entries] == [
        ("2_dog", True, 0),
        ("10_cat", True, 3),
        ("inner", True, 3),
        ("a.json", False, None),
    ]
    assert shown.parent == ""
    assert [
        entry.name for entry in roots.listing(tree / "open", suffixes=[".safetensors"]).entries if not entry.folder
    ] == []
    assert [entry.path for entry in roots.listing().entries] == [str(tree / "open"), str(tree / "other")]
    assert roots.listing(tree / "open/10_cat").parent == str(tree / "open")
    assert Roots([tree / "open"]).listing().parent is None


def test_a_missing_folder_names_the_nearest(tree: Path, roots: Roots) -> None:
    with pytest.raises(UserError, match="10_cat"):
        roots.listing(tree / "open/10_cats/x")
    assert nearest_name(tree / "open/2_dgo") == tree / "open/2_dog"


def test_names_sort_as_people_count() -> None:
    assert sorted(["10_a", "2_b", "B", "a"], key=natural) == ["2_b", "10_a", "a", "B"]


@pytest.mark.parametrize(
    "path",
    [
        "{}/open/.hidden", "{}/open/.ssh/id_rsa", "{}/open/10_cat/.git/config", "{}/open/.SSH /x", "{}/open/..x/y",
        "{}/open/.secrets/0123abcd.json", "{}/open/to keys/id_rsa", "{}/open/.cache/huggingface/token", ".bashrc",
        "{}/open/.cache/x",
    ],
)  # fmt: skip
def test_what_is_hidden_is_refused_also_behind_a_link(tree: Path, roots: Roots, path: str) -> None:
    (tree / "open/.ssh").mkdir()
    (tree / "open/.ssh/id_rsa").write_text("key")
    os.symlink(tree / "open/.ssh", tree / "open/to keys")
    with pytest.raises(UserError, match="hidden"):
        roots.inside(path.replace("{}", str(tree)))


def test_downloaded_models_and_hidden_folders_that_were_opened_are_allowed(tree: Path) -> None:
    roots = Roots([tree / "open", tree / "open/.data"])
    assert roots.allows(f"{tree}/open/.cache/huggingface/hub/models--a/snapshots/1/unet")
    assert roots.allows(f"{tree}/open/.data/x.json") and not roots.allows(f"{tree}/open/.data/.ssh/x")
    assert roots.allows(f"{tree}/open/a.b/c") and roots.allows(f"{tree}/open")
