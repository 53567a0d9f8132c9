"""From options and description files to blueprints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_kit import blueprint

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
TWO = SUBSET + SUBSET
META = "[[datasets]]\n[[datasets.subsets]]\nmetadata_file = 'm.json'\n"
FIRST = "data.toml, datasets[0].subsets[0]: "


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        (SUBSET + "num_repeat = 2\n", FIRST, ["'num_repeat'", "Did you mean num_repeats?"]),
        (TWO + "flipaug = true\n", "data.toml, datasets[1].subsets[0]: ", ["'flipaug'", "flip_aug"]),
        (SUBSET + "zzz = 1\n", FIRST, ["unknown key 'zzz'", "Allowed here: ", "caption_prefix, "]),
        ("[general]\nshufle_caption = true\n" + SUBSET, "data.toml, general: ", ["shufle_caption", "shuffle_caption"]),
        (SUBSET + "resolution = 512\n", FIRST, ["'resolution' cannot stand here", "[general] or [[datasets]]"]),
        ("resolution = 512\n" + SUBSET, "data.toml, the top level: ", ["belongs under"]),
        ("genral = 1\n" + SUBSET, "data.toml, the top level: ", ["Did you mean general?"]),
        ("x = 1\n" + SUBSET, "data.toml, the top level: ", ["Allowed are general and datasets."]),
        ("[general]\nimage_dir = 'x'\n" + SUBSET, "data.toml, general: ", ["image_dir", "[[datasets.subsets]]"]),
        (SUBSET + "num_repeats = '2'\n", FIRST, ["num_repeats is '2'", "whole number"]),
        (SUBSET + "num_repeats = 2.0\n", FIRST, ["num_repeats is 2.0", "whole number"]),
        (SUBSET + "num_repeats = true\n", FIRST, ["whole number"]),
        (SUBSET + "flip_aug = 1\n", FIRST, ["true or false"]),
        (SUBSET + "caption_prefix = 7\n", FIRST, ["a text in quotes"]),
        (SUBSET + "caption_dropout_rate = nan\n", FIRST, ["must be a number"]),
        (SUBSET + "caption_dropout_rate = 1.5\n", FIRST, ["caption_dropout_rate is 1.5", "at most 1"]),
        (SUBSET + "keep_tokens = -1\n", FIRST, ["keep_tokens is -1", "at least 0"]),
        (SUBSET + "resize_interpolation = 'cubical'\n", FIRST, ["'cubical'", "bicubic, cubic"]),
        (SUBSET + "custom_attributes = 3\n", FIRST, ["a table"]),
        (SUBSET + "face_crop_aug_range = [3, 2]\n", FIRST, ["ascending"]),
        (SUBSET + "face_crop_aug_range = 2.0\n", FIRST, ["ascending"]),
        (SUBSET.replace("'a'", "3"), FIRST, ["image_dir is 3", "a text in quotes"]),
        (SUBSET.replace("'a'", "''"), FIRST, ["image_dir is empty"]),
        (
            "[[datasets]]\nresolution = [1, 2, 3]\n[[datasets.subsets]]\nimage_dir = 'a'\n",
            "data.toml, datasets[0]: ",
            ["resolution is [1, 2, 3]", "[512, 768]"],
        ),
        (
            "[[datasets]]\nresolution = 'big'\n[[datasets.subsets]]\nimage_dir = 'a'\n",
            "data.toml, datasets[0]: ",
            ["resolution is 'big'"],
        ),
        (
            "[[datasets]]\nbatch_size = 0\n[[datasets.subsets]]\nimage_dir = 'a'\n",
            "data.toml, datasets[0]: ",
            ["batch_size is 0"],
        ),
        (
            SUBSET + "[[datasets.subsets]]\nmetadata_file = 'm.json'\n",
            "data.toml, datasets[0]: ",
            ["mixes", "subsets[1] has it, subsets[0] has not"],
        ),
        (
            SUBSET + "[[datasets.subsets]]\nimage_dir = 'b'\nconditioning_data_dir = 'c'\n",
            "data.toml, datasets[0]: ",
            ["mixes", "conditioning_data_dir", "separate [[datasets]]"],
        ),
        ("[[datasets]]\nresolution = 64\n", "data.toml, datasets[0]: ", ["[[datasets.subsets]]"]),
        ("[[datasets]]\nsubsets = []\n", "data.toml, datasets[0]: ", ["[[datasets.subsets]]"]),
        ("[[datasets]]\nsubsets = 3\n", "data.toml, datasets[0]: ", ["[[datasets.subsets]]"]),
        ("datasets = [3]\n", "data.toml, datasets[0]: ", ["must be a table"]),
        ("datasets = []\n", "data.toml, the top level: ", ["no [[datasets]]"]),
        ("general = 3\n" + SUBSET, "data.toml, general: ", ["must be a table"]),
        ("[general]\n", "data.toml, the top level: ", ["[[datasets]]"]),
        ("[general]\nresolution = 64\n", "data.toml, the top level: ", ["no [[datasets]]"]),
        ("", "data.toml, the top level: ", ["no [[datasets]]"]),
        ("[[datasets]]\n[[datasets.subsets]]\n", FIRST, ["image_dir is missing"]),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", FIRST, ["image_dir is missing"]),
        (META + "is_reg = true\n", FIRST, ["'is_reg'", "finetune", "Allowed here: "]),
        (META + "caption_extension = '.txt'\n", FIRST, ["'caption_extension'", "finetune"]),
        ("[[datasets]]\nclass_tokens = 'x'\n" + META[13:], "data.toml, datasets[0]: ", ["'class_tokens'"]),
        (
            '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\pics"\n',
            "data.toml is not valid TOML",
            ["single quotes"],
        ),
        (SUBSET + "num_repeats = 1\nnum_repeats = 2\n", "data.toml is not valid TOML", ["line 5"]),
        (SUBSET, "data.toml, datasets[0].subsets[0]: image_dir a does not exist.", ["A relative path starts at "]),
        (META, "data.toml, datasets[0].subsets[0]: metadata_file m.json does not exist.", []),
    ],
)
def test_errors_name_file_table_and_key(tmp_path: Path, text: str, start: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        blueprint(dataset_config=write(tmp_path, text))
    assert caught.value.key == "dataset_config"
    assert str(caught.value).startswith(start)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("general", "own", "start", "key"),
    [
        ("bucket_reso_steps = 12\nenable_bucket = true", "", "data.toml, general: bucket_reso_steps", "dataset_config"),
        ("", "bucket_reso_steps = 12", "data.toml, datasets[0]: bucket_reso_steps", "dataset_config"),
        ("enable_bucket = true", "min_bucket_reso = 256", "data.toml, datasets[0]: min_bucket_reso", "dataset_config"),
        ("resolution = 65", "", "data.toml, general: resolution", "dataset_config"),
        ("enable_bucket = true", "resolution = 4096", "data.toml, datasets[0]: max_bucket_reso", "max_bucket_reso"),
    ],
)
def test_sizes_that_do_not_go_together_name_the_table(
    folder: Folder, tmp_path: Path, general: str, own: str, start: str, key: str
) -> None:
    place = folder("a", SIZES)
    text = f"[general]\n{general}\n[[datasets]]\n{own}\n[[datasets.subsets]]\nimage_dir = '{place}'\n"
    with pytest.raises(UserError) as caught:
        blueprint(dataset_config=write(tmp_path, text))
    assert str(caught.value).startswith(start)
    assert caught.value.key == key


def test_steps_of_buckets_for_a_family(folder: Folder, tmp_path: Path) -> None:
    place = folder("1_a", SIZES)
    text = f"[[datasets]]\nbucket_reso_steps = 16\n[[datasets.subsets]]\nimage_dir = '{place}'\n"
    path = write(tmp_path, text)
    values = {"dataset_config": path, "enable_bucket": True}
    assert blueprint(**values).datasets
    with pytest.raises(UserError, match=r"datasets\[0\].*multiple of 32"):
        blueprint(bucket_step_multiple=32, **values)
    with pytest.raises(UserError, match="multiple of 32") as caught:
        blueprint(bucket_step_multiple=32, train_data_dir=place.parent, enable_bucket=True, bucket_reso_steps=48)
    assert caught.value.key == "bucket_reso_steps"
    assert blueprint(bucket_step_multiple=32, train_data_dir=place.parent, enable_bucket=True, bucket_reso_steps=32)
    assert blueprint(bucket_step_multiple=32, dataset_config=path, enable_bucket=False)


def test_comments_empty_tables_and_relative_paths(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder("a", SIZES)
    text = "\ufeff# pictures\n[general] # nothing\n[[datasets]]\n[[datasets.subsets]] # one\nimage_dir = 'train/a'\n"
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    (subset,) = blueprint(dataset_config=path).datasets[0].subsets
    assert (subset.name, subset.place) == ("a", "data.toml, datasets[0].subsets[0]")
    monkeypatch.chdir(tmp_path / "train")  # seen from the working folder, not from the file
    with pytest.raises(DataError, match="image_dir train/a does not exist"):
        blueprint(dataset_config=path)


def test_a_general_key_that_no_data_set_knows_is_said(folder: Folder, tmp_path: Path) -> None:
    place = folder("a", SIZES)
    (place / "m.json").write_text("{}")
    start = f"[general]\nclass_tokens = 'x'\n[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{place / 'm.json'}'\n"
    made = blueprint(dataset_config=write(tmp_path, start))
    assert "data.toml, general: class_tokens has no effect on these data sets" in made.warnings
    more = start + f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'\n"
    made = blueprint(dataset_config=write(tmp_path, more))
    assert not [warning for warning in made.warnings if "no effect" in warning]
    assert [spec.kind for spec in made.datasets] == ["finetune", "dreambooth"]
    assert [spec.subsets[0].class_tokens for spec in made.datasets] == [None, "x"]


def test_subset_keys_that_exclude_a_cache_are_named_with_their_table(folder: Folder, tmp_path: Path) -> None:
    place = folder("1_a", SIZES)
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'\nrandom_crop = true\nshuffle_caption = true\n"
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=r"random_crop exclude.*datasets\[0\]\.subsets\[0\]"):
        blueprint(dataset_config=path, cache_latents=True)
    with pytest.raises(UserError, match=r"shuffle_caption exclude.*datasets\[0\]\.subsets\[0\]"):
        blueprint(dataset_config=path, cache_text=True)
    with pytest.raises(UserError, match="caption_dropout_rate exclude"):
        blueprint(train_data_dir=tmp_path / "train", caption_dropout_rate=0.5, cache_text=True)


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
    assert any("datasets[0].subsets[2]: left out, its num_repeats is 0" in warning for warning in made.warnings)


def test_a_file_of_which_nothing_is_left_says_which_table_and_key(tmp_path: Path) -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'b'\nnum_repeats = 0\n"
    with pytest.raises(DataError) as caught:
        blueprint(dataset_config=write(tmp_path, text))
    assert caught.value.key == "dataset_config"
    for part in ("data.toml", "datasets[0].subsets[0]", "num_repeats is 0"):
        assert part in caught.value.message


def test_message_and_way_out_are_two_sentences() -> None:
    assert str(UserError("a is missing", "a", "Give it.")) == "a is missing. Give it."
    assert str(UserError("a is missing.", "a", "Give it.")) == "a is missing. Give it."
    assert str(UserError("a is missing")) == "a is missing"


def test_a_face_range_with_buckets_is_said_to_do_nothing(folder: Folder, tmp_path: Path) -> None:
    folder("2_dog", SIZES)
    made = blueprint(train_data_dir=tmp_path / "train", face_crop_aug_range="1,2", enable_bucket=True)
    assert any("face_crop_aug_range" in warning for warning in made.warnings)
