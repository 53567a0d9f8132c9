"""Tools for LoRA files as jobs: real processes on small files, reported, taken back, run again, ended in the middle."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gui_bench import Bench
from weights_kit import lora, model, write

from kohya_gui.jobs import JobStore
from kohya_gui.localization import load
from kohya_gui.paths import Roots
from kohya_gui.prepare.undo import undo_job
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs.bench import ToolPanel
from kohya_gui.tabs.jobs import JobsTab
from kohya_gui.tabs.utilities import UtilitiesTab
from sd_scripts.schema.headers import read_safetensors_header


@pytest.fixture
def page(tmp_path: Path, bench: Bench) -> UtilitiesTab:
    services = Services(
        Roots([tmp_path]), bench.store, load(None), tmp_path, Remembered(tmp_path / "memory.json"), foretell=False
    )
    return UtilitiesTab(services)


def ask(page: UtilitiesTab, form: str, do: str, contents: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What the page's script would send, as the text that stands in the fields, and get back."""
    asked = {"form": f"tool_{form}" if form else "utilities", "do": do, "contents": contents or {}, **more}
    answer: dict[str, Any] = json.loads(json.dumps(page.act(json.loads(json.dumps(asked)))))
    return answer


def followed(page: UtilitiesTab, bench: Bench, form: str, first: dict[str, Any]) -> dict[str, Any]:
    """The answer after the job that a start began."""
    bench.wait(first["follow"], "done", "failed", "stopped")
    return ask(page, form, "follow", job=first["follow"])


def test_two_networks_are_merged_taken_back_and_verified(page: UtilitiesTab, bench: Bench, tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors")
    form = {"lora_a_model": str(a), "ratio_a": "0.5", "lora_b_model": str(b), "ratio_b": "0.5", "save_to": "new"}
    assert "new.safetensors" in ask(page, "merge_lora", "dry", form)["result"]
    assert not (tmp_path / "new.safetensors").exists()
    start = ask(page, "merge_lora", "start", form)
    done = followed(page, bench, "merge_lora", start)
    assert "follow" not in done and "k-say-good" in done["result"] and "kohya/file?path=" in done["result"], done
    target = tmp_path / "new.safetensors"
    assert read_safetensors_header(target).metadata["ss_network_module"] == "networks.lora"
    view = bench.store.get(start["follow"])
    assert view.tool and view.gpu_set == "none" and [Path(made.path) for made in view.files] == [target]

    refused = ask(page, "merge_lora", "start", form)
    assert refused["go"] == "save_to" and "there already" in refused["result"]
    assert refused["fields"]["notes"]["save_to"]["say"] == "error" and len(bench.store.list()) == 1
    opened = ask(page, "", "open_job", job=view.id)
    assert opened["form"] == "tool_merge_lora" and opened["fill"]["lora_a_model"] == str(a)
    assert opened["fill"]["ratio_b"] == "0.5"

    check = ask(page, "verify_lora", "start", {"file": str(target)})
    done = followed(page, bench, "verify_lora", check)
    assert "<svg" in done["result"] and "attn2_to_k" in done["result"], bench.store.log(check["follow"])
    shown = JobsTab(page.services, {})._found(bench.store.get(check["follow"]))
    assert "<svg" in shown and "<svg" not in done.get("sheet", "")
    again = bench.store.run_again(check["follow"])
    assert bench.store.values(again.id) == bench.store.values(check["follow"])

    assert "Undone" in ask(page, "merge_lora", "undo")["result"]
    assert not target.exists() and a.exists() and b.exists()
    assert "nothing to undo" in ask(page, "merge_lora", "undo")["result"]


def test_notes_are_changed_in_the_file_itself_and_back(page: UtilitiesTab, bench: Bench, tmp_path: Path) -> None:
    file = lora(tmp_path / "a.safetensors", metadata={"modelspec.title": "old", "gone": "x"})
    before = file.read_bytes()
    picked = ask(page, "edit_metadata", "pick", {}, key="model", file=str(file))
    assert picked["fill"]["model"] == str(file) and "old" in picked["result"]
    form = {"model": str(file), "title": "<b>new</b>", "without": "gone", "more": "my.note=1"}
    looked = ask(page, "edit_metadata", "look", form)
    assert looked["fields"]["notes"]["title"]["text"] == "Now: old"
    assert "&lt;b&gt;new" in ask(page, "edit_metadata", "dry", form)["result"]
    done = followed(page, bench, "edit_metadata", ask(page, "edit_metadata", "start", form))
    assert "k-say-good" in done["result"], done
    notes = read_safetensors_header(file).metadata
    assert (notes["modelspec.title"], notes["my.note"], "gone" in notes) == ("<b>new</b>", "1", False)
    ask(page, "edit_metadata", "undo")
    assert file.read_bytes() == before


STUCK = """
import sys, time, torch
from pathlib import Path
from sd_scripts.tensorfile import write_stream
from sd_scripts.tools.common import guarded
def make(name):
    print('busy', flush=True)
    time.sleep(60)
def work(argv):
    write_stream(Path(argv[0]), {'a': (torch.float32, (4,)), 'b': (torch.float32, (4,))}, make, {})
raise SystemExit(guarded(work, None, 'stuck'))
"""


def test_a_tool_that_is_ended_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    from kohya_gui import tools

    values = {
        "lora_a_model": str(lora(tmp_path / "a.safetensors")),
        "ratio_a": 1.0,
        "save_to": str(folder / "n.safetensors"),
    }
    job = bench.store.create(tools.build("tool:merge_lora", values), values, "merge")
    spec = json.loads((job.folder / "spec.json").read_text())
    spec["argv"] = [sys.executable, "-c", STUCK, "--job_dir", str(job.folder), str(folder / "n.safetensors")]
    spec["env"]["PYTHONPATH"] = str(Path(tools.__file__).resolve().parent.parent)
    (job.folder / "spec.json").write_text(json.dumps(spec))
    bench.store._specs.clear()
    bench.store.tick()
    bench.until(lambda: "busy" in bench.store.log(job.id))
    assert list(folder.iterdir())
    began = time.monotonic()
    bench.store.kill(job.id, grace=20)
    bench.wait(job.id, "stopped")
    assert list(folder.iterdir()) == [] and time.monotonic() - began < 15


def test_damaged_files_fail_before_any_job(page: UtilitiesTab, bench: Bench, tmp_path: Path) -> None:
    torn = write(tmp_path / "t.safetensors", {"a": (4,)})
    torn.write_bytes(torn.read_bytes()[:-4])
    for form, contents in (
        ("verify_lora", {"file": str(torn)}),
        ("verify_lora", {}),
        ("verify_lora", {"file": "/etc/passwd"}),
        ("edit_metadata", {"model": "../../etc/passwd", "title": "x"}),
        ("resize_lora", {"model": str(torn), "save_to": "x", "new_rank": "many"}),
    ):
        answer = ask(page, form, "start", contents)
        assert "k-say-error" in answer["result"] and answer["go"], (form, contents)
    assert bench.store.list() == []


@pytest.mark.parametrize(
    "asked",
    [{}, {"do": "start"}, {"form": "tool_merge_lora"}, {"form": "tool_merge_lora", "do": "look", "contents": [1]},
     {"form": "tool_merge_lora", "do": "pick", "key": "x", "file": "/etc"}, {"form": "x", "do": "open_job"},
     {"form": "utilities", "do": "open_job", "job": "../../etc"},
     {"form": "tool_merge_lora", "do": "follow", "job": ".."},
     {"form": "tool_merge_lora", "do": "look", "contents": {"sd_model": {"a": 1}, "zzz": 3}},
     {"form": "tool_merge_lora", "do": "reset", "key": 5, "contents": None}],
)  # fmt: skip
def test_what_no_script_of_ours_asks_is_answered_calmly(page: UtilitiesTab, asked: dict[str, Any]) -> None:
    answer = page.act(asked)
    assert "t" in answer and json.dumps(answer)


def test_every_panel_answers_a_look_at_its_empty_form(page: UtilitiesTab) -> None:
    for name, panel in page.panels.items():
        assert isinstance(panel, ToolPanel)
        answer = ask(page, name, "look")
        assert answer["fields"]["notes"] == {}, name
        dry = ask(page, name, "dry")
        assert "k-say-error" in dry["result"], name
    assert isinstance(page.services.jobs, JobStore)


def test_fields_for_sdxl_appear_with_a_model_of_that_kind(page: UtilitiesTab, tmp_path: Path) -> None:
    only = {"load_tuned_model_to", "load_original_model_to"}
    one, xl = model(tmp_path / "one.safetensors"), model(tmp_path / "xl.safetensors", "sdxl")
    for contents, away in (
        ({}, only), ({"model_tuned": str(one)}, only), ({"model_tuned": str(xl)}, set()),
        ({"model_tuned": "/etc/passwd", "model_family": "sdxl"}, set()),
        ({"model_tuned": str(xl), "model_family": "sd1"}, only),
    ):  # fmt: skip
        looked = ask(page, "extract_lora", "look", contents)["fields"]
        assert only & set(looked["off"]) == away, contents
        assert set(looked["notes"]) <= {"model_tuned"}
    assert (
        "Stable Diffusion XL"
        in ask(page, "extract_lora", "look", {"model_tuned": str(xl)})["fields"]["notes"]["model_tuned"]["text"]
    )


def test_the_browse_dialog_offers_names_for_what_is_written(page: UtilitiesTab, tmp_path: Path) -> None:
    lora(tmp_path / "a.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    _, browse, complete = page._server_functions()
    seen = browse({"form": "tool_merge_lora", "key": "save_to", "path": str(tmp_path / "new.safetensors")})
    assert 'value="new.safetensors"' in seen["html"] and "notes.txt" not in seen["html"]
    assert "a.safetensors" in browse({"form": "tool_merge_lora", "key": "lora_a_model", "path": str(tmp_path)})["html"]
    assert browse({"form": "x", "key": "y"}) == {"title": "", "html": ""}
    assert complete({"path": f"{tmp_path}/a", "kind": "weights"}) == [f"{tmp_path}/a.safetensors"]
    picked = ask(page, "merge_lora", "pick", {}, key="save_to", file="../x", folder=str(tmp_path))
    assert picked["fill"]["save_to"] == str(tmp_path / "x")


def test_undo_leaves_files_outside_alone(bench: Bench, tmp_path: Path) -> None:
    from sd_scripts.schema.errors import UserError

    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "undo.jsonl").write_text(json.dumps({"path": "/etc/hosts", "kept": None}) + "\n")
    with pytest.raises(UserError, match="outside"):
        undo_job(folder, Roots([tmp_path]))
