"""The tagger with a network that knows colours, and what happens without ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_kit import write_tagger
from PIL import Image
from script_kit import Run

from sd_scripts.finetune import tag_images_by_wd14_tagger as tagging
from sd_scripts.finetune.tagger import Choice, TagList, joined, prepare, read_tags, replacements

ROWS = (
    "tag_id,name,category,count\n1,safe,9,1\n2,red_picture,0,1\n3,miss_blue,4,1\n4,>_<,0,1\n5,green_picture,0,1\n"
    '6,"dark, very_dark",0,1\n'
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Certain of a colour where its mean is above 128; of >_< always; of darkness never."""
    folder = tmp_path / "my taggers" / "some_one"
    folder.mkdir(parents=True)
    (folder / "selected_tags.csv").write_text(ROWS, encoding="utf-8")
    weights = np.zeros((3, 6), np.float32)
    weights[2, 1] = weights[0, 2] = weights[1, 4] = 0.05
    bias = np.array([5, -6.4, -6.4, 5, -6.4, -9], np.float32)
    write_tagger(folder / "model.onnx", weights, bias, 32)
    return folder.parent


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    folder = tmp_path / "colours ü"
    folder.mkdir()
    for name, colour in {"red": (255, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "none": (9, 9, 9)}.items():
        Image.new("RGB", (48, 48), colour).save(folder / f"{name} 色.png")
    return folder


def tags(folder: Path) -> dict[str, str]:
    return {path.stem.split()[0]: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


def test_every_picture_gets_its_tags(colours: Path, model: Path, script: Run) -> None:
    argv = ["--repo_id", "some/one", "--model_dir", model, "--onnx", "--batch_size", 3, "--frequency_tags"]
    done = script("finetune/tag_images_by_wd14_tagger.py", colours, *argv, "--remove_underscore")
    assert done.returncode == 0, done.stderr
    assert tags(colours) == {
        "red": "red picture, >_<\n",
        "blue": ">_<, miss blue\n",
        "yellow": "red picture, >_<, green picture\n",
        "none": ">_<\n",
    }
    assert ">_<: 4" in done.stdout and "red picture: 2" in done.stdout and "4 captions written" in done.stdout


def test_thresholds_undesired_tags_and_adding(colours: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(colours), "--model_dir", str(model / "some_one"), "--repo_id", "no/body"]
    (colours / "red 色.txt").write_text("by hand, red_picture")
    assert tagging.main([*argv, "--undesired_tags", "green_picture, >_<", "--character_threshold", "0.9999"]) == 0
    assert tags(colours) == {"red": "by hand, red_picture", "blue": "\n", "yellow": "red_picture\n", "none": "\n"}
    assert tagging.main([*argv, "--append_tags", "--caption_separator", ";", "--thresh", "0.99"]) == 0
    assert tags(colours)["red"] == "by hand, red_picture;red_picture;>_<\n"
    assert tagging.main([*argv, "--overwrite", "--caption_separator", ";"]) == 0
    assert tags(colours)["yellow"] == "red_picture;>_<;green_picture\n"
    assert "1 were there already" in capsys.readouterr().out


def test_tags_are_arranged(colours: Path, model: Path) -> None:
    (model / "some_one" / "selected_tags.csv").write_text(ROWS.replace("miss_blue", "miss_blue_(sea)"))
    argv = [str(colours), "--model_dir", str(model), "--repo_id", "some/one", "--remove_underscore", "--overwrite"]
    argv += ["--character_tag_expand", "--character_tags_first", "--use_rating_tags", "--prefix", "ohwx,"]
    assert tagging.main([*argv, "--tag_replacement", "red picture,crimson;>_<,"]) == 0
    assert tags(colours) == {
        "red": "ohwx, safe, crimson\n",
        "blue": "ohwx, safe, miss blue, sea\n",
        "yellow": "ohwx, safe, crimson, green picture\n",
        "none": "ohwx, safe\n",
    }
    assert tagging.main([*argv[:-3], "--use_rating_tags_as_last_tag", "--always_first_tags", "green picture, >_<"]) == 0
    assert tags(colours)["yellow"] == "green picture, >_<, red picture, safe\n"
    assert tagging.main([*argv, "--tag_replacement", "just one"]) == 2


def test_replacements_may_hold_the_signs_that_separate() -> None:
    assert replacements(r"a\,b,c;d,e\;f;") == {"a,b": "c", "d": "e;f"}


def test_a_network_of_another_kind(colours: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(colours), "--model_dir", str(model), "--repo_id", "some/one"]
    table = model / "some_one" / "selected_tags.csv"
    table.write_text(ROWS + "7,more,0,1\n")
    assert tagging.main(argv) == 2
    table.write_text("no,table\n1,2\n")
    assert tagging.main(argv) == 2
    table.write_text(ROWS)
    (model / "some_one" / "model.onnx").write_bytes(b"no network")
    assert tagging.main(argv) == 2
    said = capsys.readouterr().err
    assert "knows 6 tags" in said and "no list of tags" in said and "cannot be read as an ONNX" in said
    assert said.count("\n") == 3 and not tags(colours)


def test_without_the_runtime_it_says_what_to_install(
    colours: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    assert tagging.main([str(colours), "--model_dir", str(model), "--repo_id", "some/one"]) == 2
    said = capsys.readouterr().err
    assert "pip install onnxruntime" in said and said.count("\n") == 1


def test_a_tagger_that_cannot_be_had(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tagging.main([str(colours), "--model_dir", str(tmp_path / "none"), "--repo_id", "nobody/nothing"]) == 2
    said = capsys.readouterr().err
    assert "nobody/nothing" in said and "cannot be fetched" in said and said.count("\n") == 1


def test_pictures_are_white_squares_in_blue_green_red_order() -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = 255
    pixels[0, 0, 3] = 0
    made = prepare(pixels, 4)
    assert made.dtype == np.float32 and made.shape == (4, 4, 3)
    assert (made[0] == 255).all() and (made[3] == 255).all()
    assert made[1, 0].tolist() == [255, 255, 255] and made[1, 1].tolist() == [0, 0, 200]
    assert prepare(pixels, 8).shape == prepare(np.repeat(pixels, 9, axis=1), 8).shape == (8, 8, 3)


def test_the_list_of_tags_and_the_choice(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    known = read_tags(tmp_path / "t.csv")
    assert known == TagList(
        ("safe", "red_picture", "miss_blue", ">_<", "green_picture", "dark, very_dark"), (1, 3, 4, 5), (2,), (0,)
    )
    sure = np.array([1, 0.4, 0.6, 0.4, 0.3, 0.9])
    assert Choice(0.35, 0.5, frozenset(), True).tags(sure, known) == [
        "red picture",
        ">_<",
        "dark, very dark",
        "miss blue",
    ]
    assert Choice(0.35, 0.7, frozenset({">_<"}), False).tags(sure, known) == ["red_picture", "dark, very_dark"]
    assert joined("a, b", ["b", "c"], ", ") == "a, b, c" and joined("", ["b"], ", ") == "b"
