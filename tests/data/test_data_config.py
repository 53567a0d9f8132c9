"""From options and description files to blueprints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_kit import blueprint, save_photo

from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]
SIZES = [(64, 64), (96, 64)]


def write(tmp_path: Path, text: str, name: str = "data.toml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_class_folders(folder: Folder, tmp_path: Path) -> None:
    folder("10_sks dog", SIZES)
    folder("2_cat", SIZES)
    folder("3_dog", SIZES, root="reg")
    made = blueprint(
        train_data_dir=tmp_path / "train",
        reg_data_dir=tmp_path / "reg",
        resolution="64,96",
        enable_bucket=True,
        max_bucket_reso=130,
        train_batch_size=3,
        flip_aug=True,
        keep_tokens=2,
        prior_loss_weight=0.5,
    )
    (spec,) = made.datasets
    assert [(s.name, s.num_repeats, s.class_tokens, s.is_reg) for s in spec.subsets] == [
        ("10_sks dog", 10, "sks dog", False),
        ("2_cat", 2, "cat", False),
        ("3_dog", 3, "dog", True),
    ]
    assert spec.bucketing is not None
    assert spec.bucketing.resolution == (64, 96)
    assert spec.bucketing.rounded_range() == (64, 192)
    assert (spec.batch_size, spec.prior_loss_weight) == (3, 0.5)
    assert all(s.flip_aug and s.captions.keep_tokens == 2 for s in spec.subsets)
    assert made.from_file is False


def test_flat_folder_and_passed_over_folders(folder: Folder, tmp_path: Path) -> None:
    folder("", SIZES)
    (spec,) = blueprint(train_data_dir=tmp_path / "train").datasets
    assert [(s.num_repeats, s.class_tokens) for s in spec.subsets] == [(1, "")]
    folder("4_x", SIZES)
    folder("0_y", SIZES)
    made = blueprint(train_data_dir=tmp_path / "train")
    assert [s.name for s in made.datasets[0].subsets] == ["4_x"]
    assert any("0_y" in warning and "im00.png" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({}, "train_data_dir", "no pictures are given"),
        ({"resolution": None}, "resolution", "not given"),
        ({"resolution": "65"}, "resolution", "multiples of 8"),
        ({"enable_bucket": True, "min_bucket_reso": 128}, "min_bucket_reso", "larger than"),
        ({"enable_bucket": True, "resolution": "2048"}, "max_bucket_reso", "smaller than"),
        ({"enable_bucket": True, "bucket_reso_steps": 12}, "bucket_reso_steps", "multiple of 8"),
        ({"train_batch_size": 0}, "train_batch_size", "at least 1"),
        ({"cache_latents": True, "color_aug": True}, "color_aug", "exclude"),
        ({"cache_latents_to_disk": True, "random_crop": True}, "random_crop", "exclude"),
        ({"validation_split": 1.5}, "validation_split", "between 0 and 1"),
    ],
)
def test_bad_options_are_sentences(
    folder: Folder, tmp_path: Path, values: dict[str, Any], key: str, words: str
) -> None:
    folder("1_a", SIZES)
    if values:
        values = {"train_data_dir": tmp_path / "train"} | values
    with pytest.raises(UserError, match=words) as caught:
        blueprint(**values)
    assert caught.value.key == key


def test_an_empty_root_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="neither pictures nor folders"):
        blueprint(train_data_dir=tmp_path)


def test_fallback_from_subset_to_command_line(folder: Folder, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        folder(name, SIZES)
    root = tmp_path / "train"
    path = write(
        tmp_path,
        f"""
        [general]
        shuffle_caption = true
        caption_extension = ".cap"
        enable_bucket = true
        keep_tokens = 1
        batch_size = 4
        resolution = 128

        [[datasets]]
        keep_tokens = 2
        network_multiplier = 2
          [[datasets.subsets]]
          image_dir = '{root / "a"}'
          num_repeats = 5
          keep_tokens = 3
          flip_aug = false
          class_tokens = "an a"
          [[datasets.subsets]]
          image_dir = '{root / "b"}'
          is_reg = true
          face_crop_aug_range = [1, 2.5]

        [[datasets]]
        resolution = [64, 96]
        batch_size = 1
        enable_bucket = false
        shuffle_caption = false
          [[datasets.subsets]]
          image_dir = '{root / "c"}'
          caption_dropout_rate = 1
        """,
    )
    made = blueprint(dataset_config=path, flip_aug=True, caption_tag_dropout_rate=0.25, dataset_repeats=7)
    first, second = made.datasets
    a, b = first.subsets
    (c,) = second.subsets
    assert first.bucketing is not None
    assert second.bucketing is not None
    assert (first.bucketing.resolution, first.bucketing.enabled, first.batch_size) == ((128, 128), True, 4)
    assert (second.bucketing.resolution, second.bucketing.enabled, second.batch_size) == ((64, 96), False, 1)
    assert (first.network_multiplier, second.network_multiplier) == (2.0, 1.0)
    assert [s.captions.keep_tokens for s in (a, b, c)] == [3, 2, 1]
    assert [s.flip_aug for s in (a, b, c)] == [False, True, True]
    assert [s.num_repeats for s in (a, b, c)] == [5, 7, 7]
    assert [s.captions.shuffle_caption for s in (a, b, c)] == [True, True, False]
    assert {s.caption_extension for s in (a, b, c)} == {".cap"}
    assert {s.captions.caption_tag_dropout_rate for s in (a, b, c)} == {0.25}
    assert (a.class_tokens, a.is_reg, b.is_reg, b.face_crop_aug_range) == ("an a", False, True, (1.0, 2.5))
    assert c.captions.caption_dropout_rate == 1
    assert made.from_file is True


def test_json_and_byte_order_mark(folder: Folder, tmp_path: Path) -> None:
    folder("a", SIZES)
    text = json.dumps({"datasets": [{"subsets": [{"image_dir": str(tmp_path / "train" / "a")}]}]})
    made = blueprint(dataset_config=write(tmp_path, "\ufeff" + text, "data.JSON"), train_data_dir="elsewhere")
    assert made.datasets[0].subsets[0].name == "a"
    assert any("not used" in warning for warning in made.warnings)


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SUBSET + "num_repeat = 2\n", ["data.toml", "number 1, subset 1", "'num_repeat'", "num_repeats"]),
        ("[general]\nshufle_caption = true\n" + SUBSET, ["[general]", "shufle_caption", "shuffle_caption"]),
        (SUBSET + "resolution = 512\n", ["'resolution' cannot stand here", "[[datasets]]"]),
        ("resolution = 512\n" + SUBSET, ["top level", "belongs under"]),
        ("[general]\nimage_dir = 'x'\n" + SUBSET, ["[general]", "image_dir", "[[datasets.subsets]]"]),
        (SUBSET + "num_repeats = '2'\n", ["num_repeats is '2'", "whole number"]),
        (SUBSET + "num_repeats = true\n", ["whole number"]),
        (SUBSET + "flip_aug = 1\n", ["true or false"]),
        (SUBSET + "face_crop_aug_range = [3, 2]\n", ["ascending"]),
        ("[[datasets]]\nresolution = [1, 2, 3]\n[[datasets.subsets]]\nimage_dir = 'a'\n", ["resolution", "[512, 768]"]),
        (SUBSET + "[[datasets.subsets]]\nmetadata_file = 'm.json'\n", ["mixes"]),
        ("[[datasets]]\nresolution = 64\n", ["[[datasets.subsets]]"]),
        ("[general]\n", ["[[datasets]]"]),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", ["image_dir is missing"]),
        ("[[datasets]]\n[[datasets.subsets]]\nmetadata_file='m.json'\nis_reg = true\n", ["is_reg", "finetune"]),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\pics"\n', ["not valid TOML", "single quotes"]),
    ],
)
def test_errors_name_file_table_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        blueprint(dataset_config=write(tmp_path, text))
    assert caught.value.key == "dataset_config"
    for word in words:
        assert word in str(caught.value)


def test_no_file_and_wrong_ending(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        blueprint(dataset_config=str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"\.toml or \.json"):
        blueprint(dataset_config=write(tmp_path, "", "data.yaml"))


def test_useless_subsets_are_left_out(folder: Folder, tmp_path: Path) -> None:
    folder("a", SIZES)
    place = tmp_path / "train" / "a"
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'\n" + (
        f"[[datasets.subsets]]\nimage_dir = '{place}'\nnum_repeats = 9\n"
        f"[[datasets.subsets]]\nimage_dir = 'b'\nnum_repeats = 0\n"
    )
    made = blueprint(dataset_config=write(tmp_path, text))
    assert [s.num_repeats for s in made.datasets[0].subsets] == [1]
    assert any("named twice" in warning for warning in made.warnings)
    assert any("repeats are 0" in warning for warning in made.warnings)


def test_masks_for_folders_and_subsets(folder: Folder, tmp_path: Path) -> None:
    folder("2_dog", SIZES)
    folder("1_dog", SIZES, root="reg")
    save_photo(tmp_path / "masks" / "2_dog" / "im00.png", (64, 64))
    made = blueprint(
        train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg", conditioning_data_dir=tmp_path / "masks"
    )
    dog, regular = made.datasets[0].subsets
    assert dog.conditioning_data_dir == tmp_path / "masks" / "2_dog"
    assert regular.conditioning_data_dir is None
    assert made.masks is True
    text = f"{SUBSET}conditioning_data_dir = 'm'\n"
    made = blueprint(dataset_config=write(tmp_path, text), control_images=True)
    assert made.datasets[0].kind == "controlnet"
    assert made.masks is False


def test_a_face_range_with_buckets_is_said_to_do_nothing(folder: Folder, tmp_path: Path) -> None:
    folder("2_dog", SIZES)
    made = blueprint(train_data_dir=tmp_path / "train", face_crop_aug_range="1,2", enable_bucket=True)
    assert any("face_crop_aug_range" in warning for warning in made.warnings)
