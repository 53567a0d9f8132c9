"""The toolbar: opening, saving without writing over anything, comparing, setting back, presets of one's own."""

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from kohya_gui import command, configs
from kohya_gui.form import PATCH, Form
from kohya_gui.jobs import JobStore
from kohya_gui.layout import complete
from kohya_gui.layouts import LAYOUTS
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs import compare, reset, session
from kohya_gui.tabs.config_bar import OPEN, SAVE, ConfigBar, FileState, recent_files
from sd_scripts.schema.tabs import tab_fields


def made_bar(tab: str, root: Path) -> ConfigBar:
    known, layout = tab_fields(tab), LAYOUTS[tab]
    pages = complete(layout.pages, known, layout.rest_pages, layout.set_by_page)
    form = Form(tab, known, pages, Words({}))
    services = Services(
        roots=Roots([root / "open"]),
        jobs=JobStore(root / "jobs"),
        words=Words({}),
        home=root / "home",
        remembered=Remembered(root / "home" / "memory.json"),
    )
    return ConfigBar(tab, form, services, FileState())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ConfigBar:
    bar = made_bar("lora", tmp_path_factory.mktemp("bar"))
    with gr.Blocks():
        bar.form.build({name: lambda: None for name in ("dataset", "preparation")})
        bar.build()
    return bar


@pytest.fixture
def bar(whole: ConfigBar) -> Iterator[ConfigBar]:
    """The same toolbar with nothing open, saved or remembered."""
    folder = whole.services.roots.folders[0]
    folder.mkdir(exist_ok=True)
    yield whole
    for place in (folder, whole.services.home):
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def folder_of(bar: ConfigBar) -> Path:
    return bar.services.roots.folders[0]


class Answer:
    """What an act gave: the file (None if it stays), the message, and the fields that are set."""

    def __init__(self, bar: ConfigBar, updates: list[Any]) -> None:
        file, self.message, self.preset, shown = updates
        self.file = file if isinstance(file, FileState) else None
        self.fields = {}
        if shown != gr.skip():
            # an update of the whole form leaves out what is the default
            all_fields = {key: bar.form.kept_default(key) for key in bar.form.keys}
            self.fields = shown.get(PATCH, {**all_fields, **shown})
        self.html = str((self.message.get("sheet") or {}).get("html", ""))


def act(
    bar: ConfigBar, do: str, state: FileState | None = None, values: dict[str, Any] | None = None, **asked: Any
) -> Answer:
    return Answer(bar, bar.act({"do": do, **asked}, state or FileState(), values or {}))


def saved(bar: ConfigBar, name: str, **values: Any) -> Path:
    path = folder_of(bar) / name
    path.write_text(configs.save_text("lora", values), encoding="utf-8")
    return path


def test_opening_remembers_the_file_and_fills_the_form(bar: ConfigBar) -> None:
    path = saved(bar, "a.json", network_dim=24)
    found = act(bar, "pick", key=OPEN, file=str(path))
    assert found.file is not None and found.file.path == str(path) and found.file.stamp == path.stat().st_mtime_ns
    assert found.fields["network_dim"] == "24" and set(found.fields) == set(bar.form.keys)
    assert str(path) in recent_files(bar.services, "lora")
    assert recent_files(bar.services, "finetune") == ""


def test_a_file_of_another_tab_opens_there(bar: ConfigBar) -> None:
    text = configs.save_text("dreambooth", {"learning_rate": 1e-6})
    path = folder_of(bar) / "d.json"
    path.write_text(text, encoding="utf-8")
    by_path = act(bar, "pick", key=OPEN, file=str(path))
    by_text = act(bar, "open_text", name="C:\\x\\d.json", text=text)
    assert by_path.message["top"] == by_text.message["top"] == "dreambooth"
    assert by_path.message["send"] == {"tab": "dreambooth", "data": {"do": "pick", "key": OPEN, "file": str(path)}}
    assert by_text.message["send"]["data"]["text"] == text
    assert by_path.file is None and by_path.fields == {}


def test_the_header_of_a_dropped_model_fills_the_form(bar: ConfigBar) -> None:
    metadata = {"ss_network_dim": "12", "ss_network_module": "networks.lora", "ss_learning_rate": "0.0003"}
    header = json.dumps({"__metadata__": metadata}).encode()
    head = base64.b64encode(struct.pack("<Q", len(header)) + header).decode()
    found = act(bar, "open_header", name="x.safetensors", head=head)
    # no file is open then, and what was written over can come back
    assert found.file is not None and found.file == FileState(before=found.file.before) and found.file.before
    assert found.fields["network_dim"] == "12" and found.fields["learning_rate"] == "3e-4"
    assert "train_data_dir" not in found.fields and "settings were taken from x.safetensors" in found.html
    assert act(bar, "open_header", name="x.safetensors", head="no base64!").fields == {}
    assert act(bar, "open_header", name="x.safetensors", head="AAAA").fields == {}
    # a file of gigabytes is not even sent
    assert act(bar, "open_text", name="x.json", text=None).fields == {}


@pytest.mark.parametrize("path", ["../x.json", "/etc/passwd", "nul.json", "missing.json"])
def test_what_may_not_be_opened_changes_nothing(bar: ConfigBar, path: str) -> None:
    found = act(bar, "pick", key=OPEN, file=path)
    assert found.file is None and found.fields == {}
    assert act(bar, "compare", left="form", right=f"path:{path}").html == ""


def test_saving_asks_before_it_writes_over_another_file(bar: ConfigBar) -> None:
    other = saved(bar, "other.json", seed=1)
    before = other.read_text()
    asked = act(bar, "pick", key=SAVE, file="other", folder=str(folder_of(bar)), values={"seed": 2})
    assert "already there" in asked.html and asked.file is None and other.read_text() == before
    new = act(bar, "pick", key=SAVE, file="new", folder=str(folder_of(bar)), values={"seed": 2})
    assert new.file is not None and json.loads((folder_of(bar) / "new.json").read_text())["seed"] == 2
    over = act(bar, "save_over", file=str(other), values={"seed": 2})
    assert over.file is not None and json.loads(other.read_text())["seed"] == 2


def test_saving_asks_when_the_open_file_changed_meanwhile(bar: ConfigBar) -> None:
    path = saved(bar, "a.json", seed=1)
    file = act(bar, "pick", key=OPEN, file=str(path)).file
    assert file is not None
    contents = [{}]
    again, message = bar._save(file, *contents)
    assert again.stamp == path.stat().st_mtime_ns and "sheet" not in message
    os.utime(path, ns=(1, 1))
    stays, message = bar._save(again, *contents)
    assert stays == gr.skip() and "changed by something else" in message["sheet"]["html"]


@pytest.mark.parametrize("name", ["x.sh", ".hidden.json", "../up.json", "missing/x.json"])
def test_places_that_are_no_saved_form_are_refused(bar: ConfigBar, name: str) -> None:
    found = act(bar, "pick", key=SAVE, file=name, folder=str(folder_of(bar)), values={"seed": 2})
    assert found.file is None and list(folder_of(bar).rglob("*")) == []


def test_two_configurations_side_by_side(bar: ConfigBar) -> None:
    path = saved(bar, "<b>.json", network_dim=24, learning_rate=1e-3)
    file = FileState("", "mine", {"network_dim": 8})
    html = act(bar, "compare", file, {"network_dim": 9}, left="form", right=f"path:{path}").html
    assert "3 fields differ" not in html and "2 fields differ" in html
    assert "&lt;b&gt;.json" in html and "<b>.json" not in html
    assert act(bar, "compare", file, {"network_dim": 8}, left="form", right="file").html.count("data-key") == 0
    preset = next(iter(bar.sources.shipped))
    assert "Take this value" in act(bar, "compare", file, {}, left="defaults", right=preset).html


def test_a_value_is_taken_and_the_dialog_stays(bar: ConfigBar) -> None:
    file = FileState("", "mine", {"network_dim": 8, "seed": 3})
    found = act(bar, "take", file, {}, key="network_dim", left="form", right="file", **{"from": "right"})
    assert found.fields == {"network_dim": "8"} and "1 field differs" in found.html
    assert act(bar, "take", file, {}, key="nobody", left="form", right="file").fields == {}


def test_the_values_of_a_job_stand_beside_the_form(bar: ConfigBar) -> None:
    store = bar.services.jobs
    values = {"network_dim": 5, "output_dir": str(folder_of(bar)), "output_name": "a", "train_data_dir": "/p"}
    made = store.create(command.build("train_network", values), values, "my job")
    other = store.create(command.build("train_db", {"output_name": "b"}), {"output_name": "b"}, "another tab's")
    html = act(bar, "compare", values={"network_dim": 6}, left="form", right=f"job:{made.id}").html
    assert "my job" in html and "another tab" not in html and "--network_dim" in html
    assert act(bar, "compare", left="form", right="job:nobody").html == ""
    for job in (made, other):
        store.remove(job.id)


def test_secrets_are_never_shown_side_by_side(bar: ConfigBar) -> None:
    values = {"huggingface_repo_id": "a/b", "huggingface_token": "hf_1"}
    file = FileState("", "x", {"huggingface_repo_id": "a/b"})
    rows = compare.differences(bar.form, values, file.values)
    assert [(row.key, row.left, row.right) for row in rows] == [("huggingface_token", "•••", "")]
    html = act(bar, "compare", file, values, left="form", right="file").html
    assert "1 field differs" in html and "hf_1" not in html and "data-from" not in html


def test_what_applies_on_neither_side_is_no_difference(bar: ConfigBar) -> None:
    rows = compare.differences(bar.form, {"LoRA_type": "Standard", "factor": 4}, {"LoRA_type": "Standard"})
    assert rows == []


def test_sections_and_everything_go_back(bar: ConfigBar) -> None:
    form = bar.form
    assert reset.keys_of(form, "everything") == form.keys
    named = [section for _, entries in reset.sections(form, Words({})) for section, _ in entries]
    assert len(named) == len(set(named)) and all(reset.keys_of(form, section) for section in named)
    key = next(key for key in form.keys if form.places[key].accordion)
    group = f"lora-group-{form.places[key].accordion}"
    assert key in reset.keys_of(form, group) and reset.keys_of(form, "lora-group-") == ()
    file = FileState("", "mine", {"network_dim": 8, "output_name": "mine"})
    whole = act(bar, "reset_section", file, {"seed": 5}, group="everything", to="file", keep_places=True).fields
    assert whole["network_dim"] == "8" and whole["seed"] == "" and "output_name" not in whole
    plain = act(bar, "reset_section", file, group="everything", to="defaults").fields
    assert plain["output_name"] == "" and set(plain) == set(form.keys)
    assert set(act(bar, "reset_section", file, group=group).fields) == set(reset.keys_of(form, group))
    assert act(bar, "reset_section", file, group="nobody").fields == {}


def test_a_preset_of_ones_own_from_first_to_last(bar: ConfigBar) -> None:
    values = {"network_dim": 24, "train_data_dir": "/p", "wandb_api_key": "w_1"}
    made = act(bar, "preset_save", values=values, name="Mine <1", description="for cats", places=False)
    assert "which no file name may" in made.html and 'value="for cats"' in made.html
    made = act(bar, "preset_save", values=values, name="Mine", description="for <cats>", places=False)
    assert "for &lt;cats&gt;" in made.html and ("Yours: Mine", "own:Mine") in made.preset.choices
    assert "Replace it" in act(bar, "preset_save", values=values, name="mine").html
    taken = act(bar, "preset_take", values={"train_data_dir": "/q", "seed": 9}, about="own:Mine")
    assert taken.file is not None and taken.file.preset == "own:Mine"
    assert (taken.fields["network_dim"], taken.fields["train_data_dir"], taken.fields["seed"]) == ("24", "/q", "")
    renamed = act(bar, "preset_rename", taken.file, about="own:Mine", new_name="Ours")
    assert renamed.file is not None and renamed.file.preset == "own:Ours" and renamed.preset.value == "own:Ours"
    gone = act(bar, "preset_delete", renamed.file, about="own:Ours")
    assert 'data-ask="preset_back"' in gone.html and gone.preset.value == ""
    assert "is back" in act(bar, "preset_back", about="own:Ours").html
    assert bar.sources.own()["own:Ours"].values == {"network_dim": 24}


@pytest.mark.parametrize("do", ["preset_delete", "preset_rename", "preset_back", "preset_take"])
@pytest.mark.parametrize("about", ["preset:Subject (SD 1.5)", "own:../x", "own:nobody", ""])
def test_only_existing_presets_of_ones_own_change(bar: ConfigBar, do: str, about: str) -> None:
    shipped = {path.name for path in (configs.PROJECT / "presets" / "lora").iterdir()}
    found = act(bar, do, about=about, new_name="x")
    if (do, about) != ("preset_take", "preset:Subject (SD 1.5)"):
        assert found.file is None
    assert {path.name for path in (configs.PROJECT / "presets" / "lora").iterdir()} == shipped


def test_the_start_preset_counts_as_fresh_and_a_file_does_not(bar: ConfigBar) -> None:
    assert bar.is_fresh(FileState()) and bar.is_fresh(FileState(name="Mine", preset="own:Mine"))
    assert not bar.is_fresh(FileState(name="from the job x")) and not bar.is_fresh(FileState("/a.json", "a.json"))


def test_what_was_written_over_comes_back_with_undo(bar: ConfigBar) -> None:
    path = saved(bar, "a.json", network_dim=24)
    typed = {"network_dim": 7, "huggingface_token": "hf_secret"}
    found = act(bar, "pick", FileState(name="mine"), typed, key=OPEN, file=str(path))
    assert found.file is not None and found.file.before is not None
    text = bar.name_text(found.file, found.file.values)
    assert 'data-ask="undo_open"' in text and "Back to mine" in text
    back = act(bar, "undo_open", found.file, dict(found.file.values))
    assert back.file is not None and back.file.name == "mine"
    assert (back.fields["network_dim"], back.fields["huggingface_token"]) == ("7", "hf_secret")
    again = act(bar, "undo_open", back.file, typed)
    assert again.file is not None and again.file.path == str(path) and again.fields["network_dim"] == "24"
    # nothing of it goes to the browser, and saving ends it
    kept = json.dumps(session.keep("", found.file, bar.form, [{}], session.Manner()))
    assert "hf_secret" not in kept
    stored = act(bar, "pick", found.file, typed, key=SAVE, file="b.json", folder=str(folder_of(bar)))
    assert stored.file is not None and stored.file.before is None


def test_undo_is_offered_where_something_would_be_lost(bar: ConfigBar) -> None:
    path = saved(bar, "a.json", network_dim=24)
    file = FileState(name="mine", values={"network_dim": 7})
    untouched = act(bar, "pick", file, {"network_dim": 7}, key=OPEN, file=str(path))
    assert untouched.file is not None and untouched.file.before is None
    assert "undo_open" not in bar.name_text(untouched.file, {})
    assert act(bar, "undo_open", file).fields == {}
    reset_all = act(bar, "reset_section", file, {"network_dim": 8}, group="everything", to="defaults")
    assert reset_all.file is not None and reset_all.file.before is not None
    assert reset_all.file.before.values == {"network_dim": 8} and reset_all.file.values == file.values
    state, *_ = bar._reload(file, {"network_dim": "9"})
    assert state.before.values["network_dim"] == 9
    state, *_ = bar._choose_preset(next(iter(bar.sources.shipped)), file, {"network_dim": "9"})
    assert state.before.values["network_dim"] == 9


def test_what_a_file_is_called_is_no_html_in_a_message(bar: ConfigBar) -> None:
    with pytest.warns(UserWarning, match="&lt;img src=x&gt;.json' lies outside"):
        act(bar, "pick", key=OPEN, file="../<img src=x>.json")
