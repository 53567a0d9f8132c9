"""Registering pictures: repeats, balance, buckets, captions, metadata files, validation, facts."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import blueprint, save_photo
from PIL import Image

from sd_scripts.data.dataset import Dataset, build, dataset_seed
from sd_scripts.data.report import report_tables
from sd_scripts.schema.errors import DataError

Folder = Callable[..., Path]
HERE = Path(__file__).parent
STEPS: list[dict[str, Any]] = json.loads((HERE.parent / "schema" / "data" / "steps.json").read_text(encoding="utf-8"))
ORDERS: dict[str, Any] = json.loads((HERE / "data" / "batches.json").read_text(encoding="utf-8"))


def flat_picture(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", size).save(path)


def toml_of(tmp_path: Path, subsets: list[dict[str, Any]]) -> Path:
    lines = ["[[datasets]]"]
    for subset in subsets:
        lines.append("[[datasets.subsets]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in subset.items()]
    path = tmp_path / "data.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def registered(dataset: Dataset, root: Path) -> list[list[Any]]:
    return [
        [
            str(Path(record.path).relative_to(root)),
            record.repeats,
            dataset.subset_of(record).is_reg,
            dataset.subset_of(record).name,
        ]
        for record in dataset.records
    ]


@pytest.mark.parametrize("case", STEPS, ids=lambda c: c["id"])
def test_sizes_of_data_sets_against_recorded_numbers(tmp_path: Path, case: dict[str, Any]) -> None:
    given, wanted = case["in"], case["out"]
    subsets = []
    for subset in given["subsets"]:
        sizes = [[512, 512]] * subset["images"] if subset["sizes"] == "512x512" else subset["sizes"]
        for number, size in enumerate(sizes):
            flat_picture(tmp_path / subset["dir"] / f"im{number:02d}.png", tuple(size))
        path = str(tmp_path / subset["dir"])
        subsets.append({"image_dir": path, "num_repeats": subset["num_repeats"], "is_reg": subset["is_reg"]})
    made = blueprint(
        dataset_config=toml_of(tmp_path, subsets),
        resolution="{},{}".format(*given["resolution"]),
        enable_bucket=given["enable_bucket"],
        train_batch_size=given["batch_size"],
    )
    group, validation = build(made, 1)
    (dataset,) = group.datasets
    assert validation is None
    assert dataset.num_train_images == wanted["num_train_images"]
    assert dataset.num_reg_images == wanted["num_reg_images"]
    assert group.batches_per_epoch == wanted["batches_per_epoch"]
    if isinstance(wanted["registered"], dict):
        assert len(dataset.records) == wanted["registered"]["count"]
        assert group.repeated_images == wanted["registered"]["repeats_sum"]
    else:
        rows = registered(dataset, tmp_path)
        # the older version gave regularisation pictures the options of the last training folder; each keeps its own
        own = [[file, repeats, reg, file.split(os.sep)[0]] for file, repeats, reg, _ in wanted["registered"]]
        assert rows == own


@pytest.mark.parametrize("case", [c for c in ORDERS["batch_order"] if c["out"]["bucket_info"]][:4], ids=lambda c: "")
def test_bucket_facts_against_recorded_numbers(tmp_path: Path, case: dict[str, Any]) -> None:
    given = case["in"]
    subsets = []
    for image in given["images"]:
        flat_picture(tmp_path / image["key"] / f"{image['key']}.png", tuple(image["size"]))
        subsets.append({"image_dir": str(tmp_path / image["key"]), "num_repeats": image["repeats"]})
    made = blueprint(
        dataset_config=toml_of(tmp_path, subsets),
        resolution="512",
        enable_bucket=True,
        train_batch_size=given["batch_size"],
        min_bucket_reso=256,
    )
    group, _ = build(made, 1)
    info = group.facts()[0]["bucket_info"]
    assert info["buckets"] == case["out"]["bucket_info"]["buckets"]
    assert info["mean_img_ar_error"] == pytest.approx(case["out"]["bucket_info"]["mean_img_ar_error"])
    assert len(group) == case["out"]["len"]


def test_captions_come_from_files_or_class_words(folder: Folder, tmp_path: Path) -> None:
    folder("2_sks dog", [(64, 64)] * 4, ["a sks dog, Grass\nmore", None, "", "grass ,  sky"])
    group, _ = build(blueprint(train_data_dir=tmp_path / "train"), 1)
    captions = [record.caption for record in group.datasets[0].records]
    assert captions == ["a sks dog, Grass", "sks dog", "sks dog", "grass ,  sky"]
    assert group.tag_frequency() == {"2_sks dog": {"a sks dog": 1, "grass": 2, "sks dog": 2, "sky": 1}}
    assert any("1 caption files are empty" in warning for warning in group.warnings)
    assert any("for 1 of 4 pictures" in warning for warning in group.warnings)
    (row,) = group.report()
    assert (row["images"], row["captions"], row["repeats"]) == (4, 2, 2)


def test_wildcards_read_all_lines(folder: Folder, tmp_path: Path) -> None:
    folder("1_a", [(64, 64)], ["one\n\n two "])
    group, _ = build(blueprint(train_data_dir=tmp_path / "train", enable_wildcard=True), 1)
    assert group.datasets[0].records[0].caption == "one\ntwo"


def test_the_tables_and_a_wrong_ending_said_aloud(folder: Folder, tmp_path: Path) -> None:
    folder("2_[red] dog", [(64, 64), (96, 64)], ["a", "b"])
    made = blueprint(
        train_data_dir=tmp_path / "train", caption_extension=".caption", enable_bucket=True, bucket_reso_steps=16
    )
    group, _ = build(made, 1)
    advice = "2_[red] dog: no .caption caption found for 2 of 2 pictures, but the folder has 2 .txt"
    assert any(advice in warning for warning in group.warnings)
    folders, buckets = report_tables(group)
    assert folders.rows == (("2_[red] dog", "2", "2", "0", '2: "[red] dog"'),)
    assert buckets.rows == (("1", "64x64", "2", "2", "1"), ("1", "80x48", "2", "2", "1"))


def test_an_unreadable_picture_stops_with_its_name(folder: Folder, tmp_path: Path) -> None:
    place = folder("1_a", [(64, 64)])
    (place / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        build(blueprint(train_data_dir=tmp_path / "train"), 1)


def test_too_small_a_picture_is_named(folder: Folder, tmp_path: Path) -> None:
    folder("1_a", [(96, 12)])
    made = blueprint(
        train_data_dir=tmp_path / "train", enable_bucket=True, bucket_no_upscale=True, bucket_reso_steps=16
    )
    with pytest.raises(DataError, match=r"im00\.png.*96x12"):
        build(made, 1)


def test_several_resolutions_of_the_same_folder(folder: Folder, tmp_path: Path) -> None:
    place = folder("a", [(128, 128), (128, 64)])
    path = tmp_path / "data.toml"
    text = "".join(
        f"[[datasets]]\nresolution = {size}\nbatch_size = {batch}\nnetwork_multiplier = {multiplier}\n"
        f"[[datasets.subsets]]\nimage_dir = '{place}'\nnum_repeats = 2\n"
        for size, batch, multiplier in ((64, 1, 0.5), (128, 3, 2.0))
    )
    path.write_text(text, encoding="utf-8")
    group, _ = build(blueprint(dataset_config=path), 1)
    assert [len(dataset) for dataset in group.datasets] == [4, 2]
    assert group.locate(3)[0] is group.datasets[0]
    assert group.locate(4) == (group.datasets[1], 0)
    with pytest.raises(IndexError):
        group.locate(6)
    facts = group.facts()
    assert [entry["resolution"] for entry in facts] == [[64, 64], [128, 128]]
    assert [entry["subsets"][0]["img_count"] for entry in facts] == [2, 2]
    assert facts[0]["is_dreambooth"] is True
    json.dumps(facts)


def test_validation_takes_pictures_aside_for_good(folder: Folder, tmp_path: Path) -> None:
    folder("5_a", [(64, 64)] * 10)
    folder("1_a", [(64, 64)] * 4, root="reg")
    values = {"train_data_dir": tmp_path / "train", "reg_data_dir": tmp_path / "reg", "validation_split": 0.25}
    values |= {"flip_aug": True, "caption_dropout_rate": 0.5, "shuffle_caption": True}
    group, validation = build(blueprint(**values, validation_seed=3), 1)
    assert validation is not None
    train = {r.path for r in group.datasets[0].records if "reg" not in r.path}
    aside = {r.path for r in validation.datasets[0].records}
    assert (len(train), len(aside)) == (8, 2)
    assert not train & aside
    assert not any(os.sep + "reg" + os.sep in path for path in aside)
    assert all(r.repeats == 1 for r in validation.datasets[0].records)
    spec = validation.datasets[0].subsets[0].spec
    assert not spec.flip_aug
    assert not spec.captions.draws
    _, again = build(blueprint(**values, validation_seed=3), 99)
    assert again is not None
    assert {r.path for r in again.datasets[0].records} == aside
    others = [build(blueprint(**values, validation_seed=seed), 1)[1] for seed in range(6)]
    assert len({tuple(sorted(r.path for r in o.datasets[0].records)) for o in others if o is not None}) > 1


def test_too_few_pictures_for_validation_is_said(folder: Folder, tmp_path: Path) -> None:
    folder("5_a", [(64, 64)] * 2)
    group, validation = build(blueprint(train_data_dir=tmp_path / "train", validation_split=0.1), 1)
    assert validation is None
    assert any("sets no picture aside" in warning for warning in group.warnings)


def test_metadata_file(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for number, size in enumerate([(64, 64), (96, 64), (64, 96)]):
        save_photo(pictures / f"p{number}.png", size, number)
    np.savez(
        pictures / "gone.npz",
        latents=np.zeros((4, 8, 8), np.float32),
        original_size=np.array([64, 64]),
        crop_ltrb=np.array([0.0, 0, 64, 64]),
    )
    entries = {
        "p0": {"caption": "a photo", "tags": "one, two", "train_resolution": [64, 64]},
        str(pictures / "p1.png"): {"tags": "three", "train_resolution": [80, 48]},
        "p2": {"train_resolution": [48, 80]},
        "gone": {"caption": "no picture left", "train_resolution": [64, 64]},
    }
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps(entries), encoding="utf-8")
    group, _ = build(blueprint(in_json=meta, train_data_dir=pictures, resolution=None, dataset_repeats=3), 1)
    (dataset,) = group.datasets
    assert [r.caption for r in dataset.records] == ["a photo, one, two", "three", "", "no picture left"]
    assert [r.placement.bucket for r in dataset.records] == [(64, 64), (80, 48), (48, 80), (64, 64)]
    assert {r.repeats for r in dataset.records} == {3}
    assert dataset.records[3].npz_only
    assert dataset.records[3].cache_path == str(pictures / "gone.npz")
    assert group.facts()[0]["subsets"][0]["metadata_file"] == "meta.json"
    assert group.facts()[0]["is_dreambooth"] is False
    by_resolution, _ = build(blueprint(in_json=meta, train_data_dir=pictures, resolution="128", min_bucket_reso=64), 1)
    assert {r.placement.bucket for r in by_resolution.datasets[0].records} == {(128, 128)}
    entries["nowhere"] = {"caption": "x"}
    meta.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DataError, match="nowhere"):
        build(blueprint(in_json=meta, train_data_dir=pictures), 1)


def test_metadata_lines(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png", (64, 64))
    row = {"image_path": str(tmp_path / "a.png"), "caption": "c", "image_size": [640, 480]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    group, _ = build(blueprint(in_json=tmp_path / "m.jsonl", train_data_dir=tmp_path), 1)
    assert group.datasets[0].records[0].placement.image == (640, 480)


def test_masks_must_be_there_and_not_more(folder: Folder, tmp_path: Path) -> None:
    place = folder("a", [(64, 64), (64, 64)])
    masks = tmp_path / "masks"
    save_photo(masks / "im00.jpg", (64, 64))
    config = toml_of(tmp_path, [{"image_dir": str(place), "conditioning_data_dir": str(masks)}])
    with pytest.raises(DataError, match=r"1 of 2 pictures: im01\.png"):
        build(blueprint(dataset_config=config), 1)
    save_photo(masks / "im01.png", (64, 64))
    group, _ = build(blueprint(dataset_config=config), 1)
    assert [Path(str(r.conditioning)).name for r in group.datasets[0].records] == ["im00.jpg", "im01.png"]
    save_photo(masks / "extra.png", (64, 64))
    with pytest.raises(DataError, match=r"extra\.png"):
        build(blueprint(dataset_config=config), 1)


def test_sizes_are_remembered_until_the_picture_changes(folder: Folder, tmp_path: Path) -> None:
    place = folder("1_a", [(64, 64), (96, 64)], ["x", "y"])
    made = blueprint(train_data_dir=tmp_path / "train", cache_info=True)
    build(made, 1)
    stored = json.loads((place / "metadata_cache.json").read_text(encoding="utf-8"))
    entry = stored[str(place / "im01.png")]
    assert (entry["resolution"], entry["caption"]) == ([96, 64], "y")
    entry["resolution"] = [640, 480]  # a wrong answer shows that it is used
    (place / "metadata_cache.json").write_text(json.dumps(stored), encoding="utf-8")
    assert build(made, 1)[0].datasets[0].records[1].placement.image == (640, 480)
    save_photo(place / "im01.png", (32, 48), 2)
    assert build(made, 1)[0].datasets[0].records[1].placement.image == (32, 48)
    (place / "metadata_cache.json").write_text("torn", encoding="utf-8")
    assert build(made, 1)[0].datasets[0].records[0].placement.image == (64, 64)


def test_seed_of_the_order_follows_from_the_training_seed() -> None:
    assert dataset_seed(42) == dataset_seed(42) != dataset_seed(43)


def test_the_starting_picture_folders_named_in_a_missing_place(tmp_path: Path) -> None:
    config = toml_of(tmp_path, [{"image_dir": str(tmp_path / "gone")}])
    with pytest.raises(DataError, match="gone does not exist"):
        build(blueprint(dataset_config=config), 1)
