"""Model files converted, mixed and read out: nothing lost on the way there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from script_kit import Run

from sd_scripts.tools import convert_diffusers20_original_sd as convert
from sd_scripts.tools import merge_models, show_metadata


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_there_and_back_is_bit_equal(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(f"tiny_{kind}_file")
    folder, ckpt, back = tmp_path / "a folder", tmp_path / "ü.ckpt", tmp_path / "back.safetensors"
    assert convert.main([str(source), str(folder), "--use_safetensors"]) == 0
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert convert.main([str(folder), str(ckpt), "--epoch", "3", "--global_step", "40"]) == 0
    content = torch.load(ckpt, weights_only=True)
    assert (content["epoch"], content["global_step"]) == (3, 40)
    assert convert.main([str(ckpt), str(back)]) == 0
    original, returned = load_file(source), load_file(back)
    assert alike(original, {name: returned[name] for name in original})


def test_a_folder_opens_in_diffusers_and_is_written_as_asked(tiny_sd2_file: Path, tmp_path: Path, script: Run) -> None:
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "my model"
    done = script("tools/convert_diffusers20_original_sd.py", "--v2", "--fp16", tiny_sd2_file, out)
    assert done.returncode == 0, done.stderr
    assert (out / "unet" / "diffusion_pytorch_model.bin").is_file()
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float16, local_files_only=True)
    weights = load_file(tiny_sd2_file)
    assert torch.equal(pipeline.unet.conv_in.weight, weights["model.diffusion_model.input_blocks.0.0.weight"].half())


def test_precision_metadata_variant_and_reference(tiny_sd1: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    notes = "{'title': 'Mine', 'steps': 3}"
    assert convert.main([str(tiny_sd1), str(out), "--save_precision_as", "bf16", "--metadata", notes]) == 0
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"title": "Mine", "steps": "3"}
        assert file.get_tensor("model.diffusion_model.out.2.weight").dtype == torch.bfloat16

    copied = tmp_path / "half"
    assert convert.main([str(tiny_sd1), str(copied), "--use_safetensors", "--fp16"]) == 0
    for path in list(copied.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    scheduler = copied / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"steps_offset": 7}))
    again = tmp_path / "again"
    argv = [str(copied), str(again), "--variant", "fp16", "--reference_model", str(copied), "--use_safetensors"]
    assert convert.main(argv) == 0
    assert json.loads((again / "scheduler" / "scheduler_config.json").read_text())["steps_offset"] == 7
    assert load_file(again / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{m}", "{o}", "--v2"], "is Stable Diffusion 1.x, not"),
        (["{m}", "{o}", "--v1", "--v2"], "both on"),
        (["{m}", "{o}", "--fp16", "--bf16"], "Two number formats"),
        (["{m}", "{o}", "--metadata", "abc"], "no object"),
        (["{m}", "{m}"], "already"),
        (["nowhere.safetensors", "{o}"], "There is no model"),
        (["{m}", "{o}", "--variant", "none"], "variant"),
        (["{m}", "{o}.pt"], "end in .safetensors"),
        (["{m}", "{o}", "--save_precision_as", "fp8"], "fp16, bf16 or float"),
    ],
)
def test_conversion_refuses_in_one_sentence(
    argv: list[str], words: str, tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([item.format(m=tiny_sd1, o=tmp_path / "out") for item in argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two(tiny_sd1_file: Path, tmp_path: Path) -> list[Path]:
    """The small model, and one like it with other weights and one more and one less."""
    weights = load_file(tiny_sd1_file)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}
    del other["model.diffusion_model.out.2.bias"]
    other["model_ema.decay"] = torch.zeros(())
    save_file(other, tmp_path / "other.safetensors")
    return [tiny_sd1_file, tmp_path / "other.safetensors"]


def test_models_are_mixed(two: list[Path], tmp_path: Path, script: Run) -> None:
    out = tmp_path / "mixed.safetensors"
    done = script("tools/merge_models.py", "--models", *two, "--ratios", 0.75, 0.25, "--output", out, "--show_skipped")
    assert done.returncode == 0, done.stderr
    assert "model_ema.decay" in done.stdout and "out.2.bias" in done.stdout
    first, mixed = load_file(two[0]), load_file(out)
    assert set(mixed) == set(first)
    for name, value in first.items():
        step = 0.25 if value.is_floating_point() and not name.endswith("diffusion_model.out.2.bias") else 0
        torch.testing.assert_close(mixed[name], value + step if step else value)


def test_only_the_unet_is_mixed_equally(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mixed.ckpt"
    argv = ["--models", *map(str, two), "--output", str(out), "--unet_only", "--saving_precision", "fp16"]
    assert merge_models.main(argv) == 0
    first, mixed = load_file(two[0]), torch.load(out, weights_only=True)["state_dict"]
    assert set(mixed) == set(first)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    torch.testing.assert_close(mixed[name], (first[name] + 0.5).half())
    vae = next(name for name in first if name.startswith("first_stage_model"))
    assert torch.equal(mixed[vae], first[vae].half())


def test_mixing_refuses_in_one_sentence(
    two: list[Path], tiny_sd2_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.safetensors")
    for argv, words in (
        (["--models", str(two[0]), str(tiny_sd2_file), "--output", out], "2.x. Only models of one kind"),
        (["--models", str(two[0]), "--ratios", "1", "2", "--output", out], "2 ratios for 1 models"),
        (["--models", str(two[0])], "output is missing"),
        (["--output", out], "models is missing"),
        (["--models", str(two[0]), "--output", out, "--device", "nothing"], "device"),
        (["--models", str(two[0]), "--output", str(two[1])], "already"),
    ):
        assert merge_models.main(argv) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not Path(out).exists()


def test_metadata_is_shown_as_json(tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a ü.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ss_b": "猫", "ss_a": '{"n": 1}'})
    done = script("tools/show_metadata.py", "--model", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{\n    "ss_a": "{\\"n\\": 1}",\n    "ss_b": "\\u732b"\n}\n'
    save_file({"x": torch.zeros(1)}, path)
    assert show_metadata.main(["--model", str(path)]) == 0
    assert "No metadata" in capsys.readouterr().out
    ckpt = tmp_path / "model.ckpt"
    torch.save({"x": torch.zeros(1)}, ckpt)
    assert show_metadata.main(["--model", str(ckpt)]) == 2
    assert "only .safetensors files hold any" in capsys.readouterr().err
    path.write_bytes(b"<html>")
    for wrong in (path, tmp_path / "none"):
        assert show_metadata.main(["--model", str(wrong)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
