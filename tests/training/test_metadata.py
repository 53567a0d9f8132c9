"""Metadata and hashes of trained files, against worked examples of the programs that read them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sd_scripts.networks.hashes import model_hash, network_hashes, sha256_of_file, with_hashes
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.schema.validation import ValidationOptions
from sd_scripts.tensorfile import write_safetensors
from sd_scripts.training.metadata import MINIMUM_KEYS, RunFacts, Sections, at_save, base_model_version, build_metadata
from sd_scripts.training.modelspec import modelspec

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "metadata_facts.json").read_text(encoding="utf-8"))
ENTRY = json.loads(FACTS["examples"]["ss_datasets"])[0]
NETWORK = {
    key: FACTS["examples"][key]
    for key in (
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_dropout",
        "ss_network_args",
        "ss_scale_weight_norms",
    )
}


def sections(folder: Path) -> Sections:
    """The options of the worked example, with a model file of our own."""
    model = folder / "model.safetensors"
    model.write_bytes(bytes(range(256)) * 8192)
    return Sections(
        model=ModelOptions(pretrained_model_name_or_path=str(model), clip_skip=2),
        dataset=DatasetOptions(
            train_data_dir="/data/ds/img",
            reg_data_dir="/data/ds/reg",
            resolution="512",
            enable_bucket=True,
            train_batch_size=2,
            cache_latents=True,
        ),
        captions=CaptionOptions(),
        training=TrainingOptions(max_train_steps=100, seed=42, mixed_precision="fp16"),
        optimizer=OptimizerOptions(
            learning_rate=1e-4, unet_lr=1e-4, text_encoder_lr=[5e-5], lr_scheduler="cosine", optimizer_type="AdamW8bit"
        ),
        loss=LossOptions(),
        saving=SavingOptions(output_name="mylora", training_comment="hi"),
        validation=ValidationOptions(),
    )


def facts(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "session_id": 1234567890,
        "started_at": 1700000000.123456,
        "train_images": 30,
        "reg_images": 2,
        "batches_per_epoch": 30,
        "epochs": 7,
        "max_train_steps": 100,
        "total_batch_size": 2,
        "optimizer": FACTS["examples"]["ss_optimizer"],
        "datasets": [ENTRY],
        **changes,
    }
    return RunFacts(**values)


def test_a_run_over_folders_writes_what_the_worked_example_shows(tmp_path: Path) -> None:
    metadata = build_metadata(sections(tmp_path), facts(), NETWORK)
    older = {key: value for key, value in metadata.items() if key not in FACTS["added"]}
    assert len(older) == FACTS["counts"]["directory_mode"]
    per_file = {"ss_sd_model_hash", "ss_new_sd_model_hash"}
    wrong = {
        key: (value, FACTS["examples"][key])
        for key, value in older.items()
        if key not in per_file and value != FACTS["examples"][key]
    }
    assert wrong == {}
    assert {key: metadata[key] for key in FACTS["added"]} == FACTS["added"]
    assert metadata["ss_sd_model_hash"] == FACTS["file"]["model_hash"]
    assert metadata["ss_new_sd_model_hash"] == FACTS["file"]["calculate_sha256"]


def test_rates_that_adafactor_does_not_use_are_not_noted(tmp_path: Path) -> None:
    metadata = build_metadata(sections(tmp_path), facts(lr_scheduler="adafactor:0.0001"), NETWORK)
    noted = ("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_lr_scheduler")
    assert [metadata[key] for key in noted] == ["None", "None", "None", "adafactor:0.0001"]


def test_a_run_over_a_dataset_config_lists_its_datasets(tmp_path: Path) -> None:
    metadata = build_metadata(sections(tmp_path), facts(from_config=True), NETWORK)
    older = {key: value for key, value in metadata.items() if key not in FACTS["added"]}
    assert len(older) == FACTS["counts"]["dataset_config_mode"]
    assert not set(FACTS["only_without_config"]) & older.keys()
    assert json.loads(older["ss_datasets"]) == [ENTRY]
    assert json.loads(older["ss_dataset_dirs"]) == {"10_sks dog": {"n_repeats": 10, "img_count": 3}}


def test_folders_of_one_name_in_several_datasets_are_told_apart(tmp_path: Path) -> None:
    metadata = build_metadata(sections(tmp_path), facts(from_config=True, datasets=[ENTRY, ENTRY, ENTRY]), {})
    assert list(json.loads(metadata["ss_dataset_dirs"])) == ["10_sks dog", "10_sks dog (2)", "10_sks dog (3)"]
    assert json.loads(metadata["ss_tag_frequency"])["10_sks dog"]["sks dog"] == 3


def test_each_file_gets_its_step_and_no_metadata_keeps_the_minimum(tmp_path: Path) -> None:
    run = build_metadata(sections(tmp_path), facts(), NETWORK)
    spec = {"modelspec.title": "mylora"}
    full = at_save(run, steps=100, epoch=7, finished_at=1700000123.456789, modelspec=spec)
    for key in ("ss_steps", "ss_epoch", "ss_training_finished_at"):
        assert full[key] == FACTS["examples"][key]
    assert full["modelspec.title"] == "mylora"
    assert tuple(FACTS["minimum"]) == MINIMUM_KEYS
    small = at_save(run, steps=100, epoch=7, finished_at=1.0, modelspec=spec, no_metadata=True)
    assert set(small) == {*FACTS["minimum"], "modelspec.title"}


def test_no_secret_and_no_full_path_gets_into_the_file(tmp_path: Path) -> None:
    given = sections(tmp_path)
    given = Sections(
        **{
            **vars(given),
            "saving": SavingOptions(
                output_name="x", output_dir="/home/me/secret-folder", huggingface_token="hf_token_1"
            ),
        }
    )
    text = json.dumps(build_metadata(given, facts(), NETWORK))
    assert "hf_token_1" not in text and "secret-folder" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ({}, "sd_v1"),
        ({"v_param": True}, "sd_v1_v"),
        ({"v2": True}, "sd_v2"),
        ({"v2": True, "v_param": True}, "sd_v2_v"),
        ({"is_sdxl": True}, "sdxl_base_v1-0"),
    ],
)
def test_base_model_names(kind: dict[str, bool], name: str) -> None:
    assert base_model_version(kind) == name


def test_a_model_named_by_id_and_a_vae_file(tmp_path: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes(b"abc")
    model = ModelOptions(pretrained_model_name_or_path="someone/some-model", vae=str(vae))
    given = replace(sections(tmp_path), model=model)
    metadata = build_metadata(given, facts(), {})
    assert metadata["ss_sd_model_name"] == "someone/some-model"
    assert "ss_sd_model_hash" not in metadata
    assert metadata["ss_vae_name"] == "vae.safetensors"
    assert metadata["ss_vae_hash"] == FACTS["file"]["small3bytes_model_hash"]
    assert metadata["ss_new_vae_hash"] == hashlib.sha256(b"abc").hexdigest()


@pytest.fixture
def utc() -> Iterator[None]:
    if not hasattr(time, "tzset"):
        pytest.skip("this system cannot change the zone of a running process")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_modelspec(utc: None) -> None:
    saving = SavingOptions(output_name="mylora")
    spec = modelspec(saving, {}, timestamp=1700000000.9, resolution="512", clip_skip=2)
    expected = dict(FACTS["modelspec_sd1"])
    # That names the program which trained.
    assert expected.pop("modelspec.implementation_version").startswith("sd-scripts/")
    assert spec.pop("modelspec.implementation_version").startswith("kohya-gui")
    assert spec == expected
    sdxl = modelspec(saving, {"is_sdxl": True}, timestamp=1700000000, resolution=(512, 512), clip_skip=2)
    older = {**FACTS["modelspec_sdxl"], "modelspec.sai_model_spec": "1.0.1"}
    assert {key: sdxl[key] for key in older} == older


def test_modelspec_options(tmp_path: Path, utc: None) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    saving = SavingOptions(metadata_author="me", metadata_tags="a,b", metadata_thumbnail=str(picture))
    spec = modelspec(saving, {"v2": True, "v_param": True}, timestamp=1700000000, max_timestep=800)
    assert spec["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert spec["modelspec.resolution"] == "768x768"
    assert spec["modelspec.prediction_type"] == "v"
    assert spec["modelspec.timestep_range"] == "0,800"
    assert spec["modelspec.title"] == "LoRA@1700000000"
    assert spec["modelspec.author"] == "me" and spec["modelspec.tags"] == "a,b"
    assert spec["modelspec.thumbnail"] == "data:image/png;base64,cG5n"
    assert modelspec(saving, {}, timestamp=1, adapter=None)["modelspec.architecture"] == "stable-diffusion-v1"
    with pytest.raises(UserError, match="no picture"):
        modelspec(SavingOptions(metadata_thumbnail=str(tmp_path / "b.png")), {}, timestamp=1)


SMALL = {
    "a.alpha": torch.tensor(4.0),
    "a.lora_down.weight": torch.arange(8, dtype=torch.float32).view(2, 4),
    "a.lora_up.weight": torch.zeros(4, 2),
}
BIG = {"w": torch.arange(400000, dtype=torch.float32)}


@pytest.mark.parametrize(
    ("name", "tensors", "metadata"),
    [
        ("small", SMALL, {"ss_v2": "False"}),
        ("small_float16", {key: value.half() for key, value in SMALL.items()}, {"ss_v2": "False"}),
        ("big", BIG, {}),
        ("big_with_ss", BIG, {"ss_v2": "False"}),
        ("big_with_modelspec_only", BIG, {"modelspec.title": "x"}),
    ],
)
def test_network_hashes(name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    expected = FACTS["hashes"][name]
    assert network_hashes(tensors, metadata) == (expected["model_hash"], expected["legacy_hash"])


def test_both_hashes_recomputed_from_their_definition_on_a_written_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, BIG, with_hashes(BIG, {"ss_v2": "False", "modelspec.title": "x"}))
    with safe_open(str(path), framework="pt") as handle:
        metadata = handle.metadata()
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest()
    bare = tmp_path / "bare.safetensors"
    write_safetensors(bare, BIG, {"ss_v2": "False"})
    part = bare.read_bytes()[0x100000:0x110000]
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(part).hexdigest()[:8]


def test_hashes_of_model_files(tmp_path: Path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(bytes(range(256)) * 8192)
    assert model_hash(file) == FACTS["file"]["model_hash"]
    assert sha256_of_file(file) == FACTS["file"]["calculate_sha256"]
    assert model_hash(tmp_path) == sha256_of_file(tmp_path) == FACTS["file"]["dir_model_hash"]
    assert model_hash(tmp_path / "none") == sha256_of_file(tmp_path / "none") == FACTS["file"]["missing_model_hash"]


def test_a_failed_write_leaves_the_older_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, SMALL, None)
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        # A tensor without layout comes second, when the first is already on its way.
        write_safetensors(path, {"a": torch.zeros(4), "b": torch.zeros(4).to_sparse()}, None)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
