"""What a person can put right is one sentence with the option's name and exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import tomli_w
from effects import SMALL, Probe, result
from PIL import Image
from runs import SCRIPT, arguments, events_of, launch_environment


def assert_sentence(run: Any, capfd: pytest.CaptureFixture[str]) -> str:
    """The one sentence that the run ended with; it is on the console too, without a traceback."""
    console = capfd.readouterr().err
    assert run.code == 2, console
    assert "Traceback" not in console
    text = run.error["message"] + " " + run.error["hint"] if run.of("error") else console.strip().splitlines()[-1]
    if run.of("error"):
        assert run.error["message"] in console
        assert run.of("end")[-1]["status"] == "failed"
    return text


def test_missing_picture_folder(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "not there" in assert_sentence(probe(data=tmp_path / "not there"), capfd)


def test_empty_picture_folder(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "10_sks dog" in assert_sentence(probe(data=tmp_path), capfd)


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_picture(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str], cached: bool) -> None:
    folder = tmp_path / "1_thing"
    folder.mkdir()
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(whole)
    (folder / "torn picture.png").write_bytes(whole.read_bytes()[:200])
    run = probe(data=tmp_path, cache_latents=cached, max_train_epochs=1)
    assert "torn picture.png" in assert_sentence(run, capfd)


def test_unknown_flag_names_the_nearest(probe: Probe, capfd: pytest.CaptureFixture[str]) -> None:
    assert "learning_rate" in assert_sentence(probe(learning_rtae=1), capfd)


@pytest.mark.parametrize("text", ["max_train_steps = [", "max_train_stepz = 3", 'max_train_steps = "many"'])
def test_broken_configuration(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    expected = "run.toml" if "[" in text else "max_train_step"
    assert expected in assert_sentence(probe(config_file=file), capfd)


def test_broken_dataset_description(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.toml"
    file.write_text("[[datasets]]\nresolutoin = 64\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    assert "resolutoin" in assert_sentence(probe(dataset_config=file), capfd)


def test_wrong_v2(probe: Probe, capfd: pytest.CaptureFixture[str]) -> None:
    said = assert_sentence(probe("sd1", v2=True), capfd)
    assert "1.x" in said and "v2" in said


def test_a_lora_as_base_model(probe: Probe, capfd: pytest.CaptureFixture[str]) -> None:
    lora = result(probe.base())
    capfd.readouterr()
    said = assert_sentence(probe(lora), capfd)
    assert "small.safetensors" in said and "LoRA" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pretrained_model_name_or_path": "/not/here.safetensors"}, ("/not/here.safetensors",)),
        ({"sample_prompts": "/not/here.txt"}, ("sample_prompts", "/not/here.txt")),
        ({"vae": "/not/here.safetensors"}, ("vae", "/not/here.safetensors")),
        ({"network_weights": "/not/here.safetensors"}, ("network_weights",)),
        ({"resume": "/not/here-state"}, ("/not/here-state",)),
        ({"optimizer_type": "AdamV"}, ("AdamV",)),
        ({"optimizer_type": "torch.optim.NotThere"}, ("NotThere",)),
        ({"optimizer_args": ["weight_decay=banana"]}, ("weight_decay=banana",)),
        ({"lr_scheduler_type": "NotThere"}, ("NotThere",)),
        ({"network_module": "networks.nothere"}, ("networks.nothere",)),
        ({"network_args": ["conv_dimm=4"]}, ("conv_dim",)),
        ({"train_batch_size": 0}, ("train_batch_size", "1")),
        ({"mixed_precision": "bf32"}, ("bf16",)),
        ({"learning_rate": 0}, ("learning rates are 0",)),
        ({"console_log_file": "/not/here/log.txt"}, ("log file", "/not/here/log.txt")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_sentence(
    probe: Probe, capfd: pytest.CaptureFixture[str], options: dict[str, Any], words: tuple[str, ...]
) -> None:
    said = assert_sentence(probe(**options), capfd)
    assert [word for word in words if word not in said] == []


def test_missing_package(probe: Probe, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # as if it were not installed
    assert "pip install prodigyopt" in assert_sentence(probe(optimizer_type="Prodigy", learning_rate=1), capfd)


def test_prompts_that_cannot_be_read(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.json"
    file.write_text("{broken")
    assert "prompts.json" in assert_sentence(probe(sample_prompts=file), capfd)


@pytest.mark.parametrize("key", ["output_dir", "job_dir"])
def test_a_file_in_the_way_of_the_output(
    probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    run = probe(**{key: tmp_path / "taken" / "out"})
    assert run.code == 2
    console = capfd.readouterr().err
    assert "Traceback" not in console and key in console and "taken" in console


def test_a_save_that_fails_warns_and_the_last_one_tells(
    probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("small-step00000002.safetensors", "small.safetensors"):
        (tmp_path / name / "in the way").mkdir(parents=True)
    run = probe(output_dir=tmp_path, max_train_steps=3, save_every_n_steps=1, save_last_n_steps=1)
    assert run.code == 2
    events = events_of(tmp_path)
    assert [event["step"] for event in events if event["kind"] == "save"] == [1, 3]
    assert any(event["kind"] == "warn" and event["code"] == "save" for event in events)
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "small-step00000003.safetensors").is_file()


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted"', "üñí 写真", "-dash", "[bold]x[red] $HOME;&"])
def test_odd_names_work(probe: Probe, thumbs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name / f"1_{name}"
    folder.mkdir(parents=True)
    for picture in (thumbs / "2_photo").glob("*.png"):
        (folder / f"{name} {picture.name}").write_bytes(picture.read_bytes())
    # Bare relative names in a file, as the page writes them: there even a leading dash is no flag.
    values = {"train_data_dir": name, "output_dir": f"{name}/out", "output_name": name, "cache_latents_to_disk": True}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    probe.trained(train_data_dir=None, output_dir=None, output_name=None, config_file=tmp_path / "run.toml")
    assert (tmp_path / name / "out" / f"{name}.safetensors").is_file()
    assert len(list(folder.glob("*.npz"))) == 4


def in_own_process(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *argv]
    environment = {**launch_environment(), "COLUMNS": "100"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=200, check=False
    )


def test_own_process_refuses_in_one_line(probe: Probe, tmp_path: Path) -> None:
    ended = in_own_process(["--learning_rtae", "1"], tmp_path)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "learning_rate" in ended.stderr


def test_own_process_is_calm_and_names_what_is_wrong(probe: Probe, tmp_path: Path) -> None:
    """The console of a whole run: our own lines only, no library's chatter, and at its end one sentence."""
    argv = arguments(probe.models["sd1"], probe.data, tmp_path / "out", **{**SMALL, "sample_prompts": None})
    ended = in_own_process(argv, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    for line in ended.stderr.splitlines():
        ours = line[:2].isdigit() and (" INFO " in line or " WARNING " in line)
        assert ours or line[:1] in "┏┃┡│└" or line.strip() in ("", "Folders", "Buckets"), line
    assert "WARNING" not in ended.stderr
    lora = tmp_path / "out" / "small.safetensors"
    argv = arguments(lora, probe.data, tmp_path / "again", **SMALL)
    refused = forked.run(SCRIPT, argv, tmp_path, environment={"COLUMNS": "100"})
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "LoRA" in refused.stderr.strip().splitlines()[-1]
    assert json.dumps(os.fspath(lora)).strip('"') in refused.stderr
