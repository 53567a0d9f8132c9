"""What people see of the notes in a .safetensors file, also of files that mean no good."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema import metadata_view
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.metadata_view import Bucket, Folder, MetadataView, read_view

NOTES = {
    "ss_output_name": "cat",
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "None",
    "ss_training_started_at": "1700000000.123456",
    "ss_network_args": '{"conv_dim": "4", "dropout": null}',
    "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10, "img_count": 3}}',
    "ss_reg_dataset_dirs": '{"1_animal": {"n_repeats": 1, "img_count": 2}}',
    "ss_tag_frequency": '{"10_cat": {"cat": 3, "grass": 1}, "1_animal": {"dog": 2}}',
    "ss_bucket_info": '{"buckets": {"0": {"resolution": [448, 576], "count": 10}}, "mean_img_ar_error": 0.0}',
    "ss_resolution": "(512, 512)",
    "modelspec.title": "A cat",
    "sshs_model_hash": "ab" * 32,
    "ss_sd_model_hash": "1f8745f0",
    "my_note": "x",
}


def raw_file(path: Path, header: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


def written(path: Path, notes: dict[str, Any], **tensors: Any) -> Path:
    table = tensors or {"a.lora_down.weight": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}}
    return raw_file(path, json.dumps({"__metadata__": notes, **table}).encode())


def texts(view: MetadataView) -> dict[str, dict[str, str]]:
    return {group.title: {entry.key: entry.text for entry in group.entries} for group in view.groups}


def test_notes_are_sorted_into_groups(tmp_path: Path) -> None:
    path = written(tmp_path / "a ü.safetensors", NOTES)
    view = read_view(path)
    assert (view.name, view.size, view.tensors, view.parameters) == (path.name, path.stat().st_size, 1, 32)
    assert view.kinds == {"F16": 1} and view.about == "a LoRA" and view.raw == NOTES
    assert list(texts(view)) == ["About the file", "Training settings", "Dataset", "Fingerprints", "Other notes"]
    assert texts(view)["Training settings"] == {
        "ss_output_name": "cat",
        "ss_learning_rate": "0.0001",
        "ss_network_args": "conv_dim=4",
        "ss_training_started_at": "2023-11-14 22:13 UTC",
    }
    assert texts(view)["Dataset"] == {"ss_resolution": "(512, 512)"}
    assert set(texts(view)["Fingerprints"]) == {"sshs_model_hash", "ss_sd_model_hash"}
    assert texts(view)["Other notes"] == {"my_note": "x"}
    labels = {entry.key: entry.label for group in view.groups for entry in group.entries}
    assert labels["modelspec.title"] == "Title" and labels["my_note"] == "my_note"
    assert labels["ss_learning_rate"] == "Learning rate"


def test_the_dataset_is_a_table(tmp_path: Path) -> None:
    view = read_view(written(tmp_path / "a.safetensors", NOTES))
    assert view.folders == (Folder("10_cat", 3, 10), Folder("1_animal", 2, 1, True))
    assert view.buckets == (Bucket(448, 576, 10),)
    assert [(tag.text, tag.count, tag.folder) for tag in view.tags] == [
        ("cat", 3, "10_cat"),
        ("dog", 2, "1_animal"),
        ("grass", 1, "10_cat"),
    ]
    assert view.all_tags == 3


def test_a_dataset_file_tells_tags_and_sizes_for_each_dataset(tmp_path: Path) -> None:
    sets = [
        {
            "batch_size": 3,
            "tag_frequency": {"a": {"x": 1}},
            "bucket_info": {"buckets": {"0": {"resolution": [64, 64], "count": 1}}},
        },
        {"tag_frequency": {"b": {"y": 2}}, "bucket_info": None},
    ]
    view = read_view(written(tmp_path / "a.safetensors", {"ss_datasets": json.dumps(sets)}))
    assert [tag.text for tag in view.tags] == ["y", "x"] and view.buckets == (Bucket(64, 64, 1),)
    assert json.loads(texts(view)["Dataset"]["ss_datasets"])[0] == {"batch_size": 3}
    notes = {"ss_datasets": json.dumps(sets), "ss_tag_frequency": '{"a": {"x": 1}, "b": {"y": 2}}'}
    assert read_view(written(tmp_path / "a.safetensors", notes)).all_tags == 2


def test_only_pictures_are_pictures(tmp_path: Path) -> None:
    good = "data:image/png;base64,aGVsbG8="
    view = read_view(written(tmp_path / "a.safetensors", {"modelspec.thumbnail": good}))
    assert view.picture == good and view.groups == ()
    for bad in ("data:text/html;base64,aGVsbG8=", good + '"onload="x', "javascript:x", "http://x/y.png"):
        view = read_view(written(tmp_path / "a.safetensors", {"modelspec.thumbnail": bad}))
        assert view.picture == "" and texts(view) == {"About the file": {"modelspec.thumbnail": bad}}


def test_nothing_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {f"tag {number}": number for number in range(metadata_view.MOST_TAGS + 5)}
    notes = {"ss_tag_frequency": json.dumps({"f": tags}), "long": "x" * 50_000} | {f"n{n}": "1" for n in range(2_500)}
    view = read_view(written(tmp_path / "a.safetensors", notes))
    assert len(view.tags) == metadata_view.MOST_TAGS and view.all_tags == metadata_view.MOST_TAGS + 5
    others = texts(view)["Other notes"]
    assert len(others) == metadata_view.MOST_ENTRIES and len(others["long"]) == metadata_view.MOST_TEXT + 2


@pytest.mark.parametrize(
    "key, text",
    [
        ("ss_tag_frequency", "[" * 100_000),
        ("ss_tag_frequency", '{"a": ' * 50_000),
        ("ss_tag_frequency", '{"a": [1, 2], "b": {"c": "many", "d": 1e400, "e": true}}'),
        ("ss_tag_frequency", '{"a": {"b": ' + "9" * 5_000 + "}}"),
        ("ss_dataset_dirs", '{"a": 3, "b": {"img_count": "x"}}'),
        ("ss_bucket_info", '{"buckets": {"0": {"resolution": [1], "count": 1}, "1": 2}}'),
        ("ss_bucket_info", "null"),
        ("ss_datasets", '[1, {"tag_frequency": 3, "bucket_info": {"buckets": []}}]'),
        ("ss_training_started_at", "1e300"),
        ("ss_training_started_at", "nan"),
        ("ss_network_args", "{{{"),
        ("\ud800", "\ud800<script>"),
    ],
)
def test_unexpected_notes_are_plain_text(tmp_path: Path, key: str, text: str) -> None:
    view = read_view(written(tmp_path / "a.safetensors", {key: text}))
    assert view.raw == {key: text}
    assert all(isinstance(tag.count, int) for tag in view.tags)
    assert [bucket for bucket in view.buckets if not bucket.width] == []


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"[1]",
        b'{"__metadata__": [1]}',
        b'{"a": {"dtype": "F16"}}',
        b"\xff\xfe{",
    ],
)
def test_damaged_headers_are_one_sentence(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(UserError) as caught:
        read_view(raw_file(tmp_path / "a.safetensors", header))
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)


def test_other_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"x")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    (tmp_path / "page.safetensors").write_bytes(b"<!doctype html><html>")
    for name, words in (
        ("a.ckpt", "only .safetensors"),
        ("huge.safetensors", "torn"),
        ("page.safetensors", "web page"),
    ):
        with pytest.raises(UserError, match=words):
            read_view(tmp_path / name)
    for name in ("none.safetensors", "."):
        with pytest.raises(UserError):
            read_view(tmp_path / name)


def test_impossible_shapes_take_no_time(tmp_path: Path) -> None:
    tensors = {
        "a": {"dtype": "F16", "shape": [10**18] * 200_000, "data_offsets": [0, 0]},
        "b": {"dtype": "F16", "shape": [-1, 3], "data_offsets": [0, 0]},
        "c": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    }
    assert read_view(written(tmp_path / "a.safetensors", {}, **tensors)).parameters == 6


def test_notes_that_are_no_text_are_shown_as_text(tmp_path: Path) -> None:
    assert read_view(written(tmp_path / "a.safetensors", {"a": 1, "b": {"c": []}})).raw == {"a": "1", "b": "{'c': []}"}
    nested: Any = []
    for _ in range(600):
        nested = [nested]
    assert set(read_view(written(tmp_path / "a.safetensors", {"a": nested})).raw) == {"a"}
