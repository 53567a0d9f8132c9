"""Scripts that write or change small text files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_kit import Run

from sd_scripts.tools import caption, cleanup_captions, create_txt_from_images, prepare_presets, rename_depth_mask


def test_the_same_caption_for_all(pictures: Path, tmp_path: Path, script: Run) -> None:
    (pictures / "rocket.caption").write_text("by hand")
    done = script("tools/caption.py", pictures, "--caption_text", "a photo, 写真", "--file_pattern", "*.PNG")
    assert done.returncode == 0, done.stderr
    assert "0 captions written, 4 were there already" in done.stdout
    assert (pictures / "rocket.caption").read_text() == "by hand"
    text = tmp_path / "caption.txt"
    text.write_text("from a file\n")
    argv = [str(pictures), "--caption_file", str(text), "--overwrite", "--file_pattern", "r*.png, 猫.*"]
    assert caption.main([*argv, "--caption_file_ext", "cap"]) == 0
    assert sorted(path.name for path in pictures.glob("*.cap")) == ["rocket.cap", "猫.cap"]
    assert (pictures / "猫.cap").read_text() == "from a file"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{p}"], "Exactly one"),
        (["{p}", "--caption_text", "a", "--caption_file", "b"], "Exactly one"),
        (["{p}", "--caption_file", "none"], "There is no file"),
        (["{p}", "--caption_text", "a", "--file_pattern", "*.gif"], "No file"),
        (["{p}/none", "--caption_text", "a"], "does not exist"),
    ],
)
def test_the_same_caption_refuses(
    argv: list[str], words: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption.main([item.format(p=pictures) for item in argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_tags_are_taken_out(pictures: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "rocket.txt").write_text("Solo, red_lips,  night,blue eyes, stars\n", encoding="utf-8")
    before = (pictures / "an astronaut.txt").stat().st_mtime_ns
    (pictures / "an astronaut.txt").write_text("an astronaut, flag")
    done = script("tools/cleanup_captions.py", pictures, "-e", "txt")
    assert done.returncode == 0, done.stderr
    assert (pictures / "rocket.txt").read_text() == "night, stars"
    assert (pictures / "猫.txt").read_text() == "猫"
    assert before and (pictures / "an astronaut.txt").read_text() == "an astronaut, flag"
    assert cleanup_captions.main([str(pictures), "--extension", ".txt", "--keywords", "stars", "an Astronaut"]) == 0
    assert (pictures / "rocket.txt").read_text() == "night"
    assert (pictures / "an astronaut.txt").read_text() == "flag"
    assert cleanup_captions.main([str(pictures), "-e", ".none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_captions_from_names(pictures: Path, script: Run) -> None:
    for name in ("grey cat_01_x.png", "rocket_2.png"):
        (pictures / name).write_bytes((pictures / "猫.png").read_bytes())
    done = script("tools/create_txt_from_images.py", pictures)
    assert done.returncode == 0, done.stderr
    assert "2 captions written, 4 were there already" in done.stdout
    assert (pictures / "grey cat_01_x.txt").read_text() == "grey cat"
    assert (pictures / "猫.txt").read_text().startswith("1girl")
    assert create_txt_from_images.main([str(pictures), "--overwrite"]) == 0
    assert (pictures / "猫.txt").read_text() == "猫"


def test_depth_masks_are_renamed(tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a b-0000.png", "c-0000.png", "c.png"):
        (tmp_path / name).write_text(name)
    done = script("tools/rename_depth_mask.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a b.mask", "c.mask", "c.png"}
    (tmp_path / "c-0000.png").write_text("new")
    assert rename_depth_mask.main([str(tmp_path)]) == 2
    assert "already" in capsys.readouterr().err
    assert rename_depth_mask.main([str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "c.mask").read_text() == "new"
    assert rename_depth_mask.main([str(tmp_path)]) == 2


def test_presets_lose_what_is_personal(tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "train_data_dir": "/me", "learning_rate": 0.1, "wandb_api_key": "secret", "epoch": 3, "sample_prompts": "x",
        "output_name": "n", "LoRA_type": "Standard", "pretrained_model_name_or_path": "m", "resume": "",
    }  # fmt: skip
    first = tmp_path / "my [1] ü.json"
    first.write_text(json.dumps(settings))
    (tmp_path / "b.json").write_text('{"logging_dir": "l", "b": 1, "a": "ü"}')
    done = script("tools/prepare_presets.py", first, tmp_path / "b*.json")
    assert done.returncode == 0, done.stderr
    assert first.read_text() == json.dumps({"LoRA_type": "Standard", "epoch": 3, "learning_rate": 0.1}, indent=4)
    assert json.loads((tmp_path / "b.json").read_text()) == {"a": "ü", "b": 1}
    (tmp_path / "c.json").write_text("[1]")
    before = first.read_text()
    assert prepare_presets.main([str(first), str(tmp_path / "c.json")]) == 2
    assert prepare_presets.main([str(tmp_path / "none*.json")]) == 2
    assert first.read_text() == before
    assert capsys.readouterr().err.count("\n") == 2
