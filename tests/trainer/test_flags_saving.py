"""Every flag about what is written, when, and what it says about itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from effects import Probe, metadata, result, shows
from PIL import Image
from runs import Finished
from safetensors.torch import load_file


def files(finished: Finished, ending: str = ".safetensors") -> list[str]:
    return sorted(path.name for path in finished.out.iterdir() if path.name.endswith(ending))


@shows("output_dir", "output_name")
def test_files_are_named_and_placed_as_asked(probe: Probe, tmp_path: Path) -> None:
    run = probe.trained(output_dir=tmp_path / "deep" / "out", output_name="mine")
    assert (tmp_path / "deep" / "out" / "mine.safetensors").is_file()
    assert run.code == 0


@shows("save_model_as")
@pytest.mark.parametrize("ending", ["ckpt", "pt"])
def test_pickled_formats_hold_the_same_weights(probe: Probe, ending: str) -> None:
    run = probe.trained(save_model_as=ending)
    held = torch.load(run.out / f"small.{ending}", weights_only=True)
    expected = load_file(str(result(probe.base())))
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in expected)
    assert files(run) == []


@shows("save_precision")
def test_weights_are_saved_in_the_precision_asked_for(probe: Probe) -> None:
    def kinds(**options: Any) -> set[torch.dtype]:
        held = load_file(str(result(probe.trained(**options))))
        return {value.dtype for name, value in held.items() if not name.endswith("alpha")}

    assert kinds() == kinds(mixed_precision="bf16") == {torch.float32}
    assert kinds(save_precision="bf16") == {torch.bfloat16}
    assert kinds(save_precision="fp16") == {torch.float16}
    assert kinds(mixed_precision="bf16", full_bf16=True, save_precision="float") == {torch.float32}


@shows("save_every_n_steps", "save_last_n_steps", "save_state", "save_last_n_steps_state")
def test_saves_by_steps_keep_the_last(probe: Probe) -> None:
    run = probe.trained(
        max_train_steps=7,
        save_every_n_steps=2,
        save_last_n_steps=3,
        save_state=True,
        save_last_n_steps_state=1,
    )
    # At step 6 files older than 3 steps go (2), and states older than 1 step (2 and 4).
    assert files(run) == ["small-step00000004.safetensors", "small-step00000006.safetensors", "small.safetensors"]
    assert files(run, "-state") == ["small-state", "small-step00000006-state"]


@shows("save_every_n_epochs", "save_last_n_epochs", "save_last_n_epochs_state")
def test_saves_by_epochs_keep_the_last(probe: Probe) -> None:
    run = probe.trained(
        max_train_epochs=5,
        train_batch_size=4,
        save_every_n_epochs=1,
        save_last_n_epochs=2,
        save_state=True,
        save_last_n_epochs_state=1,
    )
    assert files(run) == ["small-000003.safetensors", "small-000004.safetensors", "small.safetensors"]
    assert files(run, "-state") == ["small-000004-state", "small-state"]
    assert [event["epoch"] for event in run.of("save") if not event["state"]] == [1, 2, 3, 4, 5]


@shows("save_n_epoch_ratio", "save_state_on_train_end")
def test_saves_spread_over_the_epochs(probe: Probe) -> None:
    run = probe.trained(max_train_epochs=4, train_batch_size=4, save_n_epoch_ratio=2, save_state_on_train_end=True)
    assert files(run) == ["small-000002.safetensors", "small.safetensors"]
    assert files(run, "-state") == ["small-state"]


@shows("resume")
def test_resuming_goes_on_at_the_state(probe: Probe) -> None:
    first = probe.trained(max_train_steps=2, save_state_on_train_end=True)
    rest = probe.trained(max_train_steps=3, resume=first.out / "small-state")
    assert [event["step"] for event in rest.of("step")] == [3]
    assert rest.losses == probe.base(max_train_steps=3).losses[2:]


@shows("no_metadata")
def test_settings_can_be_left_out(probe: Probe) -> None:
    full, bare = metadata(result(probe.base())), metadata(result(probe.trained(no_metadata=True)))
    assert len([key for key in full if key.startswith("ss_")]) > 50
    assert "ss_learning_rate" not in bare


TEXTS = {
    "training_comment": "ss_training_comment",
    "metadata_title": "modelspec.title",
    "metadata_author": "modelspec.author",
    "metadata_description": "modelspec.description",
    "metadata_license": "modelspec.license",
    "metadata_tags": "modelspec.tags",
    "metadata_usage_hint": "modelspec.usage_hint",
    "metadata_merged_from": "modelspec.merged_from",
    "metadata_trigger_phrase": "modelspec.trigger_phrase",
    "metadata_preprocessor": "modelspec.preprocessor",
    "metadata_is_negative_embedding": "modelspec.is_negative_embedding",
}


@shows(*TEXTS, "metadata_thumbnail")
def test_texts_stand_in_the_file(probe: Probe, tmp_path: Path) -> None:
    picture = tmp_path / "small one.png"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(picture)
    values = {flag: f"my {flag} ä" for flag in TEXTS}
    notes = metadata(result(probe.trained(**values, metadata_thumbnail=picture)))
    assert {flag: notes.get(key) for flag, key in TEXTS.items()} == values
    head, data = notes["modelspec.thumbnail"].split(",", 1)
    assert head.startswith("data:image/") and base64.b64decode(data)


def test_settings_stand_in_the_file(probe: Probe) -> None:
    notes = metadata(result(probe.trained(noise_offset=0.05, min_snr_gamma=5)))
    expected = {
        "ss_output_name": "small",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_learning_rate": "0.001",
        "ss_unet_lr": "None",
        "ss_noise_offset": "0.05",
        "ss_min_snr_gamma": "5.0",
        "ss_num_train_images": "8",
        "ss_steps": "1",
        "ss_seed": "7",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    assert {key: notes.get(key) for key in expected} == expected
    assert len(notes["sshs_model_hash"]) == 64 and len(notes["sshs_legacy_hash"]) == 8
    assert json.loads(notes["ss_dataset_dirs"])["2_photo"] == {"n_repeats": 2, "img_count": 4}


class Hub:
    """Stands in for the hub's client: notes what it is asked for."""

    made: list[tuple[str, dict[str, Any]]]

    def __init__(self, token: str | None = None) -> None:
        self.asked("client", token=token)

    def asked(self, what: str, **values: Any) -> None:
        type(self).made.append((what, values))

    def create_repo(self, name: str, **values: Any) -> None:
        self.asked("create_repo", name=name, **values)

    def upload_file(self, **values: Any) -> None:
        self.asked("upload_file", **values)

    def upload_folder(self, **values: Any) -> None:
        self.asked("upload_folder", **values)


@shows(
    "huggingface_repo_id",
    "huggingface_repo_type",
    "huggingface_path_in_repo",
    "huggingface_token",
    "huggingface_repo_visibility",
    "save_state_to_huggingface",
    "async_upload",
)
def test_saved_files_are_uploaded(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.made = []
    monkeypatch.setattr("sd_scripts.trainer.upload.HfApi", Hub)
    run = probe.trained(
        max_train_steps=2,
        save_every_n_steps=1,
        save_state=True,
        huggingface_repo_id="me/mine",
        huggingface_repo_type="dataset",
        huggingface_path_in_repo="inside/",
        huggingface_token="hf_secret",
        huggingface_repo_visibility="public",
        save_state_to_huggingface=True,
        async_upload=True,
    )
    assert Hub.made[0] == ("client", {"token": "hf_secret"})
    made = {"name": "me/mine", "repo_type": "dataset", "private": False, "exist_ok": True}
    assert Hub.made[1] == ("create_repo", made)
    sent = [(what, values["path_in_repo"]) for what, values in Hub.made[2:]]
    assert sorted(sent) == [
        ("upload_file", "inside/small-step00000001.safetensors"),
        ("upload_file", "inside/small-step00000002.safetensors"),
        ("upload_file", "inside/small.safetensors"),
        ("upload_folder", "inside/small-state"),
        ("upload_folder", "inside/small-step00000001-state"),
        ("upload_folder", "inside/small-step00000002-state"),
    ]
    secret = [path for path in run.out.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert secret == [], "the token must be written nowhere"


def test_a_hub_that_does_not_answer_is_one_sentence(probe: Probe) -> None:
    run = probe(huggingface_repo_id="me/mine")  # the tests run with the network switched off
    assert run.code == 2
    assert run.error["key"] == "huggingface_repo_id"


@shows("resume_from_huggingface")
def test_a_state_is_fetched_from_the_hub(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe.trained(max_train_steps=2, save_state_on_train_end=True)
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(repo: str, **values: Any) -> str:
        asked.append((repo, values))
        return str(first.out)

    monkeypatch.setattr("sd_scripts.trainer.resume.snapshot_download", fetch)
    rest = probe.trained(max_train_steps=3, resume="me/mine/small-state:main:model", resume_from_huggingface=True)
    assert [event["step"] for event in rest.of("step")] == [3]
    assert asked[0][0] == "me/mine" and asked[0][1]["revision"] == "main" and asked[0][1]["repo_type"] == "model"


PROMPTS = "a cat --w 64 --h 64 --s 2 --d 5\na dog --n ugly --w 64 --h 64 --s 2\n"


@shows("sample_prompts", "sample_every_n_steps", "sample_every_n_epochs", "sample_at_first", "sample_sampler")
def test_samples_are_made_when_asked(probe: Probe, tmp_path: Path) -> None:
    prompts = tmp_path / "my prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    run = probe.trained(max_train_steps=2, sample_prompts=prompts, sample_every_n_steps=2, sample_at_first=True)
    made = run.of("sample")
    assert [(event["step"], event["index"]) for event in made] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    with Image.open(made[0]["path"]) as picture:
        assert picture.size == (64, 64)
        assert "a cat" in picture.text["parameters"] and "Seed: 5" in picture.text["parameters"]
    by_epoch = probe.trained(train_batch_size=4, max_train_epochs=2, sample_prompts=prompts, sample_every_n_epochs=2)
    assert [event["epoch"] for event in by_epoch.of("sample")] == [2, 2]
    other = probe.trained(sample_prompts=prompts, sample_at_first=True, sample_sampler="euler_a")
    pixels = [Image.open(event[0]["path"]).tobytes() for event in (made, other.of("sample"))]
    assert pixels[0] != pixels[1]


def test_a_failing_sample_warns_and_training_goes_on(probe: Probe, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sample").write_text("a file in the way")
    run = probe.trained(output_dir=out, sample_prompts=prompts, sample_every_n_steps=1, max_train_steps=2)
    assert (out / "small.safetensors").is_file()
    assert run.code == 0
