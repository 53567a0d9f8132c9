"""The Settings tab: it writes the settings file and nothing else, and opens nothing that was closed."""

import tomllib
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from kohya_gui.jobs import JobStore
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.services import Services
from kohya_gui.settings import Remembered, Settings, load_settings
from kohya_gui.tabs.settings_tab import OPEN, SettingsTab


@pytest.fixture
def tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsTab:
    said: list[str] = []
    # outside a request Gradio has nobody to show these to
    monkeypatch.setattr(gr, "Warning", said.append)
    monkeypatch.setattr(gr, "Info", said.append)
    (tmp_path / "open").mkdir()
    path = tmp_path / "open" / "config.toml"
    path.write_text('[server]\nallowed_paths = ["/a"]\n[strange]\nx = 1\n[basic]\nseed = 5\n')
    services = Services(
        roots=Roots([tmp_path / "open"]),
        jobs=JobStore(tmp_path / "jobs"),
        words=Words({}),
        home=tmp_path / "home",
        remembered=Remembered(tmp_path / "memory.json"),
        settings=load_settings(path),
    )
    made = SettingsTab(services)
    made.said = said  # type: ignore[attr-defined]
    return made


def content(tab: SettingsTab) -> dict[str, Any]:
    """What the settings file says."""
    return tomllib.loads(tab.path.read_text(encoding="utf-8"))


def said(tab: SettingsTab) -> str:
    """The messages that a person got."""
    return " ".join(tab.said)  # type: ignore[attr-defined]


def test_a_default_is_set_shown_and_removed(tab: SettingsTab) -> None:
    html = tab._set("finetune", "learning_rate", " 1e-6 ")
    assert content(tab)["defaults"] == {"finetune": {"learning_rate": 1e-6}} and "1e-6" in html and "Finetune" in html
    assert tab._choose_field("finetune", "learning_rate")[0] == "1e-6"
    assert load_settings(tab.path).values("finetune")["learning_rate"] == 1e-6
    assert "1e-6" not in tab._remove("finetune", "learning_rate")[0] and "defaults" not in content(tab)
    assert content(tab)["strange"] == {"x": 1}


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        ("lora", "network_dim", "many"),
        ("lora", "network_dim", ""),
        ("lora", "allow_plugins", "true"),
        ("lora", "job_dir", "x"),
        ("lora", "huggingface_token", "hf_x"),
        ("lora", "allowed_paths", "/"),
        ("server", "allowed_paths", "/"),
        ("../server", "seed", "1"),
        ("lora", None, "1"),
    ],
)
def test_what_is_no_default_is_refused(tab: SettingsTab, name: str, key: Any, text: str) -> None:
    before = tab.path.read_bytes()
    tab._set(name, key, text)
    tab._remove(name, key)
    after = content(tab)
    assert tab.path.read_bytes() == before or after == tomllib.loads(before.decode())
    assert after["server"] == {"allowed_paths": ["/a"]} and said(tab)


def test_a_default_of_another_table_says_where_it_stands(tab: SettingsTab) -> None:
    tab._remove("lora", "seed")
    assert "Another table" in said(tab) and content(tab)["basic"] == {"seed": 5}


def test_dialogs_begin_in_open_folders_only(tab: SettingsTab, tmp_path: Path) -> None:
    inside = tab.services.roots.folders[0] / "models"
    inside.mkdir()
    assert "models" in tab._set_folder("vae", str(inside)) and content(tab)["start_folders"] == {"vae": str(inside)}
    assert tab.services.remembered.last_folder("vae") == str(inside)
    for key, folder in (("vae", str(tmp_path)), ("vae", "/"), ("vae", str(inside / "none")), ("nothing", str(inside))):
        tab._set_folder(key, folder)
        assert content(tab)["start_folders"] == {"vae": str(inside)}
    assert tab._choose_place("vae") == str(inside) and tab._choose_place(OPEN) == ""
    tab._remove_folder("vae")
    assert "start_folders" not in content(tab) and tab.services.remembered.last_folder("vae") == ""


def test_theme_and_tooltips_are_kept(tab: SettingsTab) -> None:
    tab._choose_theme("dark")
    tab._choose_tips(False)
    found = load_settings(tab.path)
    assert (found.theme, found.tooltips) == ("dark", False)
    tab._choose_theme("<script>")
    assert load_settings(tab.path).theme == ""


def test_a_file_that_cannot_be_read_is_left_alone(tab: SettingsTab) -> None:
    tab.path.write_text("[broken")
    tab._set("lora", "seed", "1")
    assert tab.path.read_text() == "[broken" and "cannot be read" in said(tab)
    assert tab._load("lora")[0] == ""


def test_what_has_no_meaning_in_the_file_is_listed(tab: SettingsTab) -> None:
    assert "strange" in tab._load("lora")[-1] and "<details>" in tab._load("lora")[-1]
    tab.path.write_text("")
    assert tab._load("lora")[-1] == ""


def test_what_is_shown_is_escaped_and_never_a_secret(tab: SettingsTab) -> None:
    tab.path.write_text('[advanced]\nwandb_api_key = "tell_nobody"\n[model]\noutput_name = "<img src=x>"\n')
    html = tab._defaults_html(load_settings(tab.path))
    assert "tell_nobody" not in html and "<img" not in html and "&lt;img" in html


def test_the_tab_is_built_and_wired(tab: SettingsTab) -> None:
    with gr.Blocks() as page:
        tab.build()
        tab.wire(page)
    ids = {getattr(block, "elem_id", None) for block in page.blocks.values()}
    assert {"settings-theme", "settings-field", "settings-set", "settings-folder"} <= ids
    assert all(field for _, field in tab._field_choices("lora")) and len(tab._field_choices("lora")) > 150
    assert tab._choose_tab("nowhere")[0].choices == []
    assert Settings().values("lora") == {}
