"""A description of data sets on the page: every mistake is named before the run, as the trainer would name it."""

from pathlib import Path

import pytest

from kohya_gui import checks
from sd_scripts.data.config import build_blueprint
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse

FILE = """
[general]
resolution = 64
[[datasets]]
batch_size = 2
  [[datasets.subsets]]
  image_dir = 'PICTURES'
  num_repeats = 3
"""


def said(
    folder: Path, text: str, command: str = "train_network", **values: object
) -> tuple[checks.PlanView, list[str]]:
    file = folder / "data ü.toml"
    file.write_text(text, encoding="utf-8")
    view = checks.plan(command, {"dataset_config": str(file), **values})
    return view, [problem.message for problem in view.problems if problem.key == "dataset_config"]


@pytest.fixture
def pictures(photos: Path) -> str:
    return str(photos / "2_photo")


def test_a_right_file_is_counted(pictures: str, tmp_path: Path) -> None:
    view, messages = said(tmp_path, FILE.replace("PICTURES", pictures))
    assert messages == []
    assert (view.images, sum(view.buckets.values())) == (4, 12)


@pytest.mark.parametrize(
    ("old", "new", "table", "words"),
    [
        ("batch_size = 2", "batch_sizes = 2", "datasets[0]", "unknown key 'batch_sizes'"),
        ("batch_size = 2", "batch_size = 'two'", "datasets[0]", "whole number"),
        ("batch_size = 2", "batch_size = 0", "datasets[0]", "at least 1"),
        ("num_repeats = 3", "num_repeats = 'x'", "datasets[0].subsets[0]", "num_repeats"),
        ("num_repeats = 3", "is_reg = 'yes'", "datasets[0].subsets[0]", "true or false"),
        ("resolution = 64", "resolution = [1, 2, 3]", "general", "resolution"),
        ("[[datasets.subsets]]", "[datasets.subsets]", "datasets[0]", "[[datasets.subsets]]"),
        ("[[datasets]]", "[datasets]", "the top level", "no [[datasets]]"),
        ("[general]", "[genral]", "the top level", "unknown key 'genral'"),
        ("batch_size = 2", "batch_size = ", "data ü.toml", "TOML"),
    ],
)
def test_the_page_and_the_trainer_say_the_same(
    pictures: str, tmp_path: Path, old: str, new: str, table: str, words: str
) -> None:
    view, messages = said(tmp_path, FILE.replace(old, new).replace("PICTURES", pictures))
    assert len(messages) == 1 and not view.can_start
    assert "data ü.toml" in messages[0] and table in messages[0] and words in messages[0]
    config = parse("train_network", ["--dataset_config", str(tmp_path / "data ü.toml")], ("dataset",))
    with pytest.raises(UserError) as caught:
        build_blueprint(config.dataset, config.captions, config.validation, command="train_network")
    assert caught.value.message == messages[0]


def test_kinds_of_data_sets_are_those_of_the_trainer(pictures: str, tmp_path: Path) -> None:
    text = FILE.replace("PICTURES", pictures)
    _, messages = said(tmp_path, text, "train_controlnet")
    assert len(messages) == 1 and "conditioning_data_dir is missing" in messages[0]
    masked = text + f"  conditioning_data_dir = '{pictures}'\n"
    assert said(tmp_path, masked, masked_loss=True)[1] == []
    assert "used with masked_loss" in " ".join(
        f"{problem.message} {problem.hint}" for problem in said(tmp_path, masked)[0].problems
    )
