"""One choice for the kind of base model: worked out from it, from an older file's switches, or from the model."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, model_kind
from kohya_gui.model_kind import FAMILIES, SWITCHES, detect, family, from_switches, resolve
from sd_scripts.schema.tabs import TABS

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FILES: dict[str, dict[str, list[int]]] = {
    "sd1": {KEY: [320, 768], "cond_stage_model.transformer.x": [1]},
    "sd2": {KEY: [320, 1024], "cond_stage_model.model.x": [1]},
    "sdxl": {KEY: [640, 2048], "conditioner.embedders.0.x": [1], "conditioner.embedders.1.x": [1]},
}


def header_file(path: Path, shapes: dict[str, list[int]], **metadata: str) -> Path:
    """A file that has the header of a model and none of its weights."""
    table: dict[str, Any] = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    text = json.dumps({**table, "__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def switches(values: dict[str, Any]) -> tuple[bool, ...]:
    resolved = resolve(values)
    return tuple(resolved[key] for key in SWITCHES)


@pytest.mark.parametrize(("chosen", "expected"), FAMILIES.items())
def test_a_choice_stands_for_the_switches(chosen: str, expected: tuple[bool, ...], tmp_path: Path) -> None:
    model = str(header_file(tmp_path / "other.safetensors", FILES["sdxl" if chosen in ("sd1", "sd1-v") else "sd1"]))
    values = {"model_family": chosen, "pretrained_model_name_or_path": model, "v2": chosen == "sd1", "sdxl": True}
    assert switches(values) == expected, "whatever the model or an older switch says"
    assert family(values) == (chosen if chosen == "sd2-v" else chosen.removesuffix("-v"))


@pytest.mark.parametrize("kind", FILES)
def test_auto_reads_the_header(kind: str, tmp_path: Path) -> None:
    model = str(header_file(tmp_path / "model.safetensors", FILES[kind]))
    assert family({"pretrained_model_name_or_path": model}) == kind
    assert resolve({"model_family": "auto", "pretrained_model_name_or_path": model, "seed": 3})["seed"] == 3


def test_velocity_is_read_from_marks_notes_and_the_size_in_the_name(tmp_path: Path) -> None:
    noted = header_file(tmp_path / "a.safetensors", FILES["sd2"], **{"modelspec.prediction_type": "v"})
    assert detect(str(noted)) == "sd2-v"
    named = header_file(tmp_path / "v2-1_768-ema.safetensors", FILES["sd2"])
    assert detect(str(named)) == "sd2-v"
    said = header_file(tmp_path / "b_768.safetensors", FILES["sd2"], **{"modelspec.prediction_type": "epsilon"})
    assert detect(str(said)) == "sd2", "what the file says goes before its name"
    assert detect(str(header_file(tmp_path / "c17680.safetensors", FILES["sd2"]))) == "sd2"
    marked = header_file(tmp_path / "d.safetensors", {**FILES["sdxl"], "v_pred": [0]})
    for chosen in ("auto", "sdxl"):
        values = {"model_family": chosen, "pretrained_model_name_or_path": str(marked)}
        assert switches(values) == (False, True, True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("stabilityai/stable-diffusion-2-1", "sd2-v"),
        ("stabilityai/stable-diffusion-2-1-base", "sd2"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1"),
        ("somebody/unknown", "sd1"),
        ("", "sd1"),
        ("/nowhere/model.safetensors", "sd1"),
        ("bad\x00path", "sd1"),
    ],
)
def test_names_and_what_is_not_there(name: str, kind: str) -> None:
    assert family({"pretrained_model_name_or_path": name}) == kind


def test_switches_of_an_older_file_go_before_the_header_and_save_a_look(tmp_path: Path) -> None:
    model = header_file(tmp_path / "model.safetensors", FILES["sdxl"])
    assert switches({"pretrained_model_name_or_path": str(model), "v2": True}) == (True, False, False)
    once = resolve({"pretrained_model_name_or_path": str(model)})
    os.unlink(model)
    assert resolve(once) == once, "a second time nothing is looked at"
    assert family({"pretrained_model_name_or_path": str(model)}) == "sd1"


def test_the_header_is_read_again_only_when_the_file_changes(tmp_path: Path) -> None:
    path = header_file(tmp_path / "model.safetensors", FILES["sd1"])
    assert detect(str(path)) == "sd1"
    before = model_kind._identified.cache_info().hits
    assert detect(str(path)) == "sd1"
    assert model_kind._identified.cache_info().hits == before + 1
    header_file(path, FILES["sd2"])
    os.utime(path, ns=(1, 1))
    assert detect(str(path)) == "sd2"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"v2": False, "v_parameterization": False, "sdxl": False}, {}),
        ({"sdxl": True}, {"model_family": "sdxl"}),
        ({"v2": True}, {"model_family": "sd2"}),
        ({"v2": True, "v_parameterization": True}, {"model_family": "sd2-v"}),
        ({"v_parameterization": True}, {"model_family": "sd1-v"}),
        ({"v_parameterization": True, "sdxl": True}, {"model_family": "sdxl-v"}),
    ],
)
def test_older_switches_become_the_choice_and_mean_the_same(old: dict[str, bool], new: dict[str, Any]) -> None:
    assert from_switches({**old, "seed": 1}) == {**new, "seed": 1}
    assert switches(from_switches(old)) == switches(old)


@pytest.mark.parametrize("tab", [tab for tab in TABS.values() if tab.variants])
def test_the_family_chooses_the_trainer(tab: Any, tmp_path: Path) -> None:
    model = str(header_file(tmp_path / "model.safetensors", FILES["sdxl"]))
    seen = command.build(tab.command, {"pretrained_model_name_or_path": model}, job_dir=tmp_path, on_cpu=True)
    assert Path(seen.argv[-3]).stem == dict(tab.variants)["sdxl"]
    assert seen.command == tab.command, "the job belongs to the tab"
    told = command.build(tab.command, {"model_family": "sd2-v"}, job_dir=tmp_path, on_cpu=True)
    assert Path(told.argv[-3]).stem == tab.command
    assert told.toml["v2"] is told.toml["v_parameterization"] is True
    assert {"model_family", "sdxl"} & (seen.toml.keys() | told.toml.keys()) == set()


def test_nothing_outside_the_allowed_folders_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        (folder / "10_cat").mkdir(parents=True)
        (folder / "10_cat" / "a.png").touch()
        header_file(folder / "model.safetensors", FILES["sdxl"])
    asked: list[str] = []
    stat, scandir = os.stat, os.scandir
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: asked.append(str(path)) or stat(path, *a, **k))
    monkeypatch.setattr(os, "scandir", lambda path=".": asked.append(str(path)) or scandir(path))

    def allowed(path: str) -> bool:
        return path.startswith(str(inside))

    for folder, kind, steps in ((inside, "sdxl", 10), (outside, "sd1", None)):
        values = {
            "pretrained_model_name_or_path": str(folder / "model.safetensors"),
            "train_data_dir": str(folder),
            "epoch": 1,
        }
        assert family(values, allowed) == kind
        plan = command.build("train_db", values, job_dir=tmp_path, on_cpu=True, allowed=allowed)
        assert plan.toml.get("max_train_steps") == steps
        assert Path(plan.argv[-3]).stem == ("sdxl_train" if kind == "sdxl" else "train_db")
    assert any(path.startswith(str(inside)) for path in asked)
    assert not [path for path in asked if path.startswith(str(outside))]


def test_a_model_of_the_hub_is_read_where_it_was_fetched_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    values = {"pretrained_model_name_or_path": "somebody/their-xl"}
    closed = lambda path: False  # noqa: E731
    assert family(values, closed) == "sd1", "unknown until it is there"
    kept = tmp_path / "models--somebody--their-xl"
    folder = kept / "snapshots" / "12ab"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert family(values, closed) == "sd1", "not whole without a version"
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("12ab")
    assert family(values, closed) == "sdxl"
    (kept / "refs" / "main").write_text("../../elsewhere")
    assert family(values, closed) == "sd1", "a version leads nowhere else"
