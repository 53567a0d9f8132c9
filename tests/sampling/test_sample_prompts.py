"""Prompt lines, prompt files, and the names and times of sample pictures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from sample_vectors import cases

from sd_scripts.sampling.output import parameters_text, sample_folder, sample_name, save_png, should_sample
from sd_scripts.sampling.prompts import PromptDefaults, SamplePrompt, parse_line, parse_prompts
from sd_scripts.schema.errors import UserError


@pytest.mark.parametrize(
    ("given", "expected"), cases("prompts.json", "lines"), ids=lambda v: str(v.get("line", ""))[:40]
)
def test_line_means_what_it_means_in_sd_scripts(given: dict, expected: dict) -> None:
    values, _notes = parse_line(given["line"])
    assert values == expected
    assert {key: type(value) for key, value in values.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("a cat --d -1", "'--d -1' is not an option"),
        ("a cat --l 1.2.3", "'1.2.3' is not a number"),
        ("a cat --w 12abc", "'abc' after it was left out"),
        ("a cat --s 5000", "1000 is used"),
        ("a cat --ss unipc", "'unipc' is no sampler"),
        ("a cat --zz 3", "'--zz 3' is not an option"),
    ],
)
def test_what_was_not_understood_is_said_with_its_line(line: str, note: str) -> None:
    (prompt,) = parse_prompts(["# first", line])
    assert len(prompt.notes) == 1
    assert note in prompt.notes[0]
    assert "line 2" in prompt.notes[0]


def test_a_clean_line_has_no_notes() -> None:
    (prompt,) = parse_prompts(["a cat --n bad, ugly --w 640 --h 768 --d 42 --l 7.5 --s 28 --ss euler_a --cn a b.png"])
    assert prompt == SamplePrompt("a cat", "bad, ugly", 640, 768, 28, 7.5, 42, "euler_a", "a b.png")


def test_defaults_and_sizes() -> None:
    plain, odd = parse_prompts(["a", "a --w 515 --h 10 --s 5 --l 3 --n x"])
    assert (plain.width, plain.height, plain.steps, plain.scale, plain.seed, plain.negative, plain.sampler) == (
        (512, 512, 30, 7.5, None, None, None)
    )
    assert (odd.width, odd.height, odd.steps, odd.scale, odd.negative) == (512, 64, 5, 3.0, "x")
    (other,) = parse_prompts(["a --w 70"], PromptDefaults(height=1024, size_multiple=16))
    assert (other.width, other.height) == (64, 1024)


def test_txt_skips_blank_lines_and_comments_and_counts_prompts(tmp_path: Path) -> None:
    file = tmp_path / "my prompts.txt"
    file.write_text("\ufeffa wétter cat\n\n  # no\n#no\n  b --d 1  \n", encoding="utf-8")
    first, second = parse_prompts(file)
    assert (first.prompt, first.index) == ("a wétter cat", 0)
    assert (second.prompt, second.seed, second.index) == ("b", 1, 1)


def test_toml_subsets_stand_on_the_base_table(tmp_path: Path) -> None:
    file = tmp_path / "prompts.toml"
    file.write_text(
        '[prompt]\nwidth = 640\nnegative_prompt = "bad"\n'
        '[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b --w 64"\nwidth = 128\nscale = 3\n'
        "guidance_scale = 2\nwidht = 5\n"
    )
    first, second = parse_prompts(file)
    assert (first.prompt, first.width, first.negative) == ("a", 640, "bad")
    # In a table the prompt is only a prompt; options have their own keys.
    assert (second.prompt, second.width, second.scale, second.index) == ("b --w 64", 128, 3.0, 1)
    assert second.extras == {"guidance_scale": 2.0}
    assert len(second.notes) == 1
    assert "did you mean 'width'" in second.notes[0]


def test_json_takes_lines_and_tables(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(["a --w 64", {"prompt": "b", "seed": 5, "sample_sampler": "heun", "height": None}]))
    first, second = parse_prompts(file)
    assert (first.prompt, first.width) == ("a", 64)
    assert (second.prompt, second.seed, second.sampler, second.height) == ("b", 5, "heun", 512)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", '[prompt]\nwidth = "wide"\n[[prompt.subset]]\nprompt = "a"', "subset 1: 'width' is 'wide'"),
        ("a.json", '["a", {"prompt": "b", "sample_steps": 0}]', "entry 2: 'sample_steps' is 0"),
        ("a.json", '[{"prompt": "b", "scale": true}]', "entry 1: 'scale' is True"),
        ("a.json", '[{"width": 64}]', "entry 1: 'prompt' is missing"),
        ("a.json", '{"prompt": "a"}', "no list of prompts"),
        ("a.json", "[", "not valid JSON"),
        ("a.toml", "prompt", "not valid TOML"),
        ("a.toml", "[other]", "no [prompt] table"),
        ("a.yaml", "a", "no .txt, .toml or .json"),
        ("a.txt", "a\n\nb (x:1.2.3) c", "line 3: the prompt weight ':1.2.3' is no number"),
        ("a.txt", "a --n (x:1..2)", "line 1: the prompt weight"),
        ("a.txt", "# only a comment\n", "holds no prompt"),
    ],
)
def test_a_wrong_file_is_one_sentence_naming_it(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(UserError) as error:
        parse_prompts(file)
    assert message in error.value.message
    assert str(file) in error.value.message
    assert error.value.key == "sample_prompts"


def test_a_missing_or_undecodable_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        parse_prompts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("süß".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        parse_prompts(tmp_path / "latin.txt")


@dataclass
class Triggers:
    sample_every_n_steps: int | None
    sample_every_n_epochs: int | None
    sample_at_first: bool


def _epoch_and_step(text: str) -> tuple[int | None, int]:
    epoch, step = (part.split("=")[1] for part in text.split(","))
    return (None if epoch == "None" else int(epoch)), int(step)


@pytest.mark.parametrize(("given", "expected"), cases("prompts.json", "triggers"))
def test_samples_are_due_when_sd_scripts_makes_them(given: dict, expected: dict) -> None:
    options = Triggers(given["sample_every_n_steps"], given["sample_every_n_epochs"], given["sample_at_first"])
    prompts = parse_prompts(given["prompt_file_lines"])
    for moment, images in expected["images_made"].items():
        epoch, step = _epoch_and_step(moment)
        made = len(prompts) if should_sample(step, epoch, options) else 0
        assert made == images, moment


def test_first_call_of_a_resumed_run_and_intervals_below_one() -> None:
    assert should_sample(500, None, Triggers(None, None, True), first=True)
    assert not should_sample(500, None, Triggers(500, None, False), first=True)
    assert not should_sample(500, None, Triggers(0, -1, False))
    assert should_sample(500, None, Triggers(100, 0, False))


@pytest.mark.parametrize(("given", "expected"), cases("prompts.json", "names"))
def test_file_names_and_effective_settings(given: dict, expected: dict, tmp_path: Path) -> None:
    table = dict(given["prompt_dict"])
    index = table.pop("enum")
    (tmp_path / "p.json").write_text(json.dumps([*["filler"] * index, table]))
    prompt = parse_prompts(tmp_path / "p.json")[index]
    when = time.mktime(time.strptime(given["time"], "%Y%m%d%H%M%S"))
    assert sample_name(given["output_name"], prompt, given["steps"], given["epoch"], when) == expected["file"]
    call = expected["call"]
    assert (prompt.width, prompt.height, prompt.steps) == (call["width"], call["height"], call["num_inference_steps"])
    assert (prompt.scale, prompt.negative) == (call["guidance_scale"], call["negative_prompt"])


def test_png_carries_its_prompt_and_leaves_no_other_file(tmp_path: Path) -> None:
    prompt = SamplePrompt("a cat, größe 猫", "bad", 64, 128, 20, 7.0, None, None)
    image = Image.new("RGB", (64, 128), (1, 2, 3))
    image.info.update(seed="77", sampler="euler_a")
    path = save_png(image, sample_folder(tmp_path / "out dir") / "x.png", prompt)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
    assert path.parent == tmp_path / "out dir" / "sample"
    with Image.open(path) as read:
        read.load()
        assert read.text["parameters"] == (
            "a cat, größe 猫\nNegative prompt: bad\nSteps: 20, Sampler: euler_a, CFG scale: 7, Seed: 77, Size: 64x128"
        )
        assert read.getpixel((0, 0)) == (1, 2, 3)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    broken = Image.new("F", (4, 4))  # PNG has no floating point pixels
    with pytest.raises(OSError):
        save_png(broken, target, SamplePrompt("a"))
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_parameters_without_seed_or_negative() -> None:
    assert parameters_text(SamplePrompt("a", scale=1.5)) == "a\nSteps: 30, CFG scale: 1.5, Size: 512x512"
