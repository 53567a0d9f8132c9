"""Model files converted, mixed, pruned and made to LCM tensor by tensor: the results, and how little is in memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from script_kit import ROOT

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_text_encoders, make_unet, make_vae
from sd_scripts.models.expected import text_shapes, unet_shapes, vae_shapes
from sd_scripts.models.loading import load_sd, load_sdxl
from sd_scripts.models.modules import open_model
from sd_scripts.models.saving import save_diffusers_folder, save_single_file
from sd_scripts.networks.names import peft_key
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.tools_models import LcmConvertOptions
from sd_scripts.tools import convert_diffusers20_original_sd as convert
from sd_scripts.tools import lcm_convert, merge_models, prune

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def same_json(one: Path, other: Path) -> bool:
    """Whether two JSON files say the same, but for the version of the library that wrote one."""
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    return {**first, "transformers_version": ""} == {**second, "transformers_version": ""}


@pytest.mark.parametrize("source", ["tiny_sd1", "tiny_sd2_file", "shallow_sdxl"])
def test_conversion_equals_loading_and_saving(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(source)
    options = ModelOptions(pretrained_model_name_or_path=str(path), v2="sd2" in source)
    model = (load_sdxl if "sdxl" in source else load_sd)(options, None)
    made, known = tmp_path / "made.safetensors", tmp_path / "known.safetensors"
    assert convert.main([str(path), str(made), "--fp16", "--metadata", '{"a": "b"}']) == 0
    save_single_file(model, known, torch.float16, {"a": "b"})
    assert made.read_bytes() == known.read_bytes()
    made, known = tmp_path / "made", tmp_path / "known"
    assert convert.main([str(path), str(made), "--use_safetensors"]) == 0
    save_diffusers_folder(model, known)
    files = sorted(file.relative_to(known) for file in known.rglob("*") if file.is_file())
    assert sorted(file.relative_to(made) for file in made.rglob("*") if file.is_file()) == files
    for file in files:
        one, other = made / file, known / file
        assert one.read_bytes() == other.read_bytes() or (file.suffix == ".json" and same_json(one, other)), file


def test_folders_of_older_libraries(tiny_sd1: Path, tiny_sd1_file: Path, tmp_path: Path) -> None:
    """VAE attention under its first names and as convolutions, a text encoder without its level, shards, old .bin."""
    folder, out = tmp_path / "old", tmp_path / "out.safetensors"
    shutil.copytree(tiny_sd1, folder)
    vae, text, unet = (folder / part for part in ("vae", "text_encoder", "unet"))
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    for new, old in former.items():
        for name in [name for name in weights if f"attentions.0.{new}." in name]:
            value = weights.pop(name)
            weights[name.replace(new, old)] = value[:, :, None, None] if value.ndim == 2 else value
    save_file(weights, vae / "diffusion_pytorch_model.safetensors")
    weights = load_file(text / "model.safetensors")
    (text / "model.safetensors").unlink()
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()}
    torch.save(plain | {"embeddings.position_ids": torch.arange(77)[None]}, text / "pytorch_model.bin")
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    shards = {name: f"shard-{number % 3}.safetensors" for number, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: value for name, value in weights.items() if shards[name] == shard}, unet / shard)
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert convert.main([str(folder), str(out)]) == 0
    assert out.read_bytes() == tiny_sd1_file.read_bytes()


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_the_expected_weights_are_those_of_the_modules(version: str) -> None:
    config = model_config(version)
    with torch.device("meta"):
        modules = [make_unet(config["unet"]), make_vae(config["vae"]), *make_text_encoders(config)]
    expected = [unet_shapes(config["unet"]), vae_shapes(config["vae"])]
    names = ("text_encoder", "text_encoder_2")[: len(modules) - 2]
    expected += [text_shapes(config[name], projected=name == "text_encoder_2") for name in names]
    for module, shapes in zip(modules, expected, strict=True):
        weights = module.state_dict().items()
        assert {name.removeprefix("text_model."): tuple(value.shape) for name, value in weights} == shapes
    assert unet_shapes({**config["unet"], "down_block_types": ["AnotherBlock"]}) is None


def test_damaged_models_are_refused_before_anything_is_written(
    tiny_sd1_file: Path, tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(tiny_sd1_file)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    cases = {
        "lacks": {key: value for key, value in weights.items() if key != name},
        "other shapes": weights | {name: weights[name][:-1].clone()},
        "unknown": weights | {"model.diffusion_model.input_blocks.1.1.transformer_blocks.9.x.weight": torch.zeros(1)},
    }
    broken, target = tmp_path / "broken.safetensors", tmp_path / "out"
    for words, tensors in cases.items():
        save_file(tensors, broken)
        assert convert.main([str(broken), str(target)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    broken.write_bytes(tiny_sd1_file.read_bytes()[:-100])
    folder = tmp_path / "folder"
    shutil.copytree(tiny_sd1, folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
    for source in (broken, folder):
        assert convert.main([str(source), str(target)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "folder"]


def test_a_full_disk_is_one_sentence(tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
        codes = [convert.main([str(tiny_sd1), str(tmp_path / name)]) for name in ("a.safetensors", "b.ckpt", "c")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert codes == [2, 2, 2]
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 3 and said.count("\n") == 3
    assert not list(tmp_path.iterdir())


def test_a_model_over_itself_and_its_job(tiny_sd1_file: Path, tmp_path: Path) -> None:
    path, job = tmp_path / "model.safetensors", tmp_path / "job"
    shutil.copyfile(tiny_sd1_file, path)
    assert convert.main([str(path), str(path), "--fp16", "--overwrite", "--job_dir", str(job)]) == 0
    assert all(value.dtype != torch.float32 for value in load_file(path).values())
    events = [json.loads(line) for line in (job / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["kind"] for event in events if event["kind"] != "phase"] == ["start", "save", "end"]
    phases = [(event["done"], event["of"]) for event in events if event["kind"] == "phase"]
    assert phases[-1][0] == phases[-1][1] > 1000
    assert events[-1]["written"] == 1 and str(path) in events[-1]["reason"]
    assert (job / "kept" / "000000.safetensors").read_bytes() == tiny_sd1_file.read_bytes()
    folder, second = tmp_path / "folder", tmp_path / "second"
    for _ in range(2):
        assert convert.main([str(path), str(folder), "--overwrite", "--job_dir", str(second)]) == 0
    assert len(list((second / "kept").iterdir())) == len([file for file in folder.rglob("*") if file.is_file()])


# ---- mixed


def test_mixing_equals_sums_in_double_precision(tiny_sd2_file: Path, tiny_sd2: Path, tmp_path: Path) -> None:
    first = load_file(tiny_sd2_file)
    other = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in first.items()}
    second, out = tmp_path / "second.safetensors", tmp_path / "third.safetensors"
    save_file({key: value.half() if value.is_floating_point() else value for key, value in other.items()}, second)
    argv = ["--models", str(tiny_sd2), str(second), "--ratios", "0.3", "0.7", "--output", str(out)]
    assert merge_models.main(argv) == 0
    mixed = load_file(out)
    assert mixed.keys() == first.keys()
    for key, value in first.items():
        if value.is_floating_point():
            want = value.double() * 0.3 + other[key].half().double() * 0.7
            torch.testing.assert_close(mixed[key].double(), want, rtol=1e-6, atol=1e-6)
    with safe_open(out, "pt") as file:
        notes = file.metadata()
    assert notes["modelspec.merged_from"] == f"{tiny_sd2.name}, second"
    assert notes["modelspec.architecture"] == "stable-diffusion-v2-512"


def test_loras_and_other_predictions_are_not_mixed(
    tiny_sd2: Path, tiny_sd2_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, other, out = (tmp_path / f"{name}.safetensors" for name in ("lora", "other", "out"))
    save_file({f"{QUERY}.lora_down.weight": torch.zeros(1, 64)}, lora)
    save_file(load_file(tiny_sd2_file) | {"v_pred": torch.zeros(1)}, other)
    for models, words in (((lora, lora), "a LoRA, not a model"), ((tiny_sd2, other), "predicts v")):
        assert merge_models.main(["--models", *map(str, models), "--output", str(out)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not out.exists()


def test_what_is_not_finite_or_too_large_is_named(
    tiny_sd1_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, name = load_file(tiny_sd1_file), "model.diffusion_model.out.2.bias"
    odd, out = tmp_path / "odd.safetensors", tmp_path / "out.safetensors"
    mix = ["--models", str(tiny_sd1_file), str(odd), "--output", str(out)]
    for value, work, words in (
        (1e5, lambda: convert.main([str(odd), str(out), "--fp16"]), f"{name} reaches 100000"),
        (1e5, lambda: prune.main([str(odd), str(out), "--half"]), f"{name} reaches 100000"),
        (3e5, lambda: merge_models.main([*mix, "--saving_precision", "fp16"]), "larger than the number format"),
        (float("nan"), lambda: merge_models.main(mix), f"{odd}: {name} holds values that are not finite"),
    ):
        save_file(weights | {name: torch.full_like(weights[name], value)}, odd)
        assert work() == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


# ---- pruned


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_pruning_keeps_the_model(
    ending: str, tiny_sd1_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(tiny_sd1_file)
    schedule = {"betas": torch.rand(1000, dtype=torch.float64), "alphas_cumprod": torch.rand(1000)}
    ballast = {"model_ema.diffusion_modelx": torch.zeros(900), "first_stage_model.loss.x": torch.zeros(9)}
    fat, thin = tmp_path / "fat.ckpt", tmp_path / f"thin{ending}"
    content = {"state_dict": weights | schedule | ballast, "optimizer_states": [{"exp_avg": torch.zeros(10_000)}]}
    torch.save(content, fat)
    assert prune.main([str(fat), str(thin), "--half"]) == 0
    assert "2 entries are left out: first_stage_model.loss.x, model_ema" in capsys.readouterr().out
    pruned = load_file(thin) if ending == ".safetensors" else torch.load(thin, weights_only=True)["state_dict"]
    assert pruned.keys() == weights.keys() | schedule.keys()
    assert torch.equal(pruned["betas"], schedule["betas"])
    for name, value in weights.items():
        assert torch.equal(pruned[name], value.half() if value.is_floating_point() else value)
    assert thin.stat().st_size < fat.stat().st_size / 1.8
    model = load_sd(ModelOptions(pretrained_model_name_or_path=str(thin)), torch.float32)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(model.unet.conv_in.weight, weights[key].half().float())


def test_pruning_refuses_in_one_sentence(
    tiny_sd1: Path, tiny_sd1_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.ckpt")
    torch.save({"a": os.mkdir}, tmp_path / "evil.ckpt")
    for source, target, words in (
        (tiny_sd1, "x.safetensors", "is a folder"),
        ("nowhere.ckpt", "x.safetensors", "does not exist"),
        (tmp_path / "a.ckpt", "x.ckpt", "is not a Stable Diffusion model"),
        (tmp_path / "evil.ckpt", "x.ckpt", "more than weights"),
        (tiny_sd1_file, "x.pt", "must end in"),
        (tiny_sd1_file, "a.ckpt", "already"),
    ):
        assert prune.main([str(source), str(tmp_path / target)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


# ---- LCM


def lcm_lora(path: Path, base: Path, *, kohya: bool = False) -> dict[str, torch.Tensor]:
    """A LoRA of two layers and the changes it makes at strength 1, in the names of PEFT or kohya."""
    torch.manual_seed(3)
    tensors, changes = {}, {}
    with open_model(base) as model:
        names = [QUERY, CONV] if QUERY in model.places else model.targets()[-2:]
        for name in names:
            out, width, *kernel = model.places[name].shape
            down, up = torch.randn(4, width, *kernel), torch.randn(out, 4, *(1 for _ in kernel))
            changes[name] = (up.flatten(1).double() @ down.flatten(1).double()).reshape(model.places[name].shape)
            for word, value in (("lora_down.weight", down), ("lora_up.weight", up)):
                key = f"{name}.{word}" if kohya else peft_key(f"{name}.{word}")
                assert key is not None
                tensors[key] = value
            if kohya:
                tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path)
    return changes


@pytest.mark.parametrize(
    ("base", "flags", "kohya"),
    [("tiny_sd1_file", [], False), ("tiny_sd1", [], True), ("shallow_sdxl", ["--ssd-1b"], False)],
)
def test_lcm_is_fused(base: str, flags: list[str], kohya: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(base)
    folder = tmp_path / "lora"
    folder.mkdir()
    changes = lcm_lora(folder / "pytorch_lora_weights.safetensors", source, kohya=kohya)
    argv = ["--name", str(tmp_path / "my lcm"), "--model", str(source), "--lora-scale", "0.5", *flags]
    assert lcm_convert.main([*argv, "--lcm_lora", str(folder)]) == 0
    target = tmp_path / "my lcm.safetensors"
    with open_model(source) as before, open_model(target) as after:
        for name in before.places:
            change = changes[name] * 0.5 if name in changes else 0
            want = before.weight(name).double() + change
            torch.testing.assert_close(after.weight(name).double(), want, rtol=1e-5, atol=1e-5)
        notes = after.stored.metadata
    assert notes["modelspec.usage_hint"].startswith("Sampler LCM")
    assert notes["modelspec.merged_from"].endswith(", pytorch_lora_weights")


def test_the_lora_comes_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--latent-consistency--lcm-lora-ssd-1b"
    file = repository / "snapshots" / "abc" / "pytorch_lora_weights.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    options = LcmConvertOptions(name="x", model="y")
    assert lcm_convert.lora_file(options, "ssd-1b") == file
    with pytest.raises(UserError, match="lcm-lora-sdxl"):
        lcm_convert.lora_file(options, "sdxl")


def test_lcm_refuses_in_one_sentence(
    tiny_sd1: Path, tiny_sd2: Path, shallow_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "lora.safetensors"
    lcm_lora(lora, shallow_sdxl)
    out = tmp_path / "out.safetensors"
    for model, flags, words in (
        (tiny_sd1, [], "lcm-lora-sdv1-5"),
        (tiny_sd1, ["--sdxl"], "not Stable Diffusion XL"),
        (tiny_sd1, ["--ssd_1b"], "not SSD-1B"),
        (shallow_sdxl, [], "Give --ssd_1b"),
        (shallow_sdxl, ["--sdxl", "--ssd-1b"], "both on"),
        (tiny_sd2, [], "no LCM LoRA"),
        (tiny_sd1, ["--lcm_lora", str(tmp_path)], "has nothing that fits|makes a change of shape"),
        (tiny_sd1, ["--lcm_lora", str(tmp_path / "none.safetensors")], "There is no file"),
    ):
        assert lcm_convert.main(["--name", str(out), "--model", str(model), *flags]) == 2
        said = capsys.readouterr().err
        assert any(word in said for word in words.split("|")) and said.count("\n") == 1, said
    assert not out.exists()


# ---- light


def test_the_tools_start_without_the_big_libraries(tiny_sd1_file: Path, tmp_path: Path) -> None:
    lcm_lora(tmp_path / "lora.safetensors", tiny_sd1_file)
    code = f"""
import sys
from sd_scripts.tools import convert_diffusers20_original_sd as convert, lcm_convert, merge_models, prune
model, out = {str(tiny_sd1_file)!r}, {str(tmp_path)!r}
assert convert.main([model, out + "/folder"]) == 0
assert convert.main([out + "/folder", out + "/back.safetensors"]) == 0
assert merge_models.main(["--models", model, out + "/back.safetensors", "--output", out + "/mixed.ckpt"]) == 0
assert prune.main([out + "/mixed.ckpt", out + "/thin.ckpt"]) == 0
assert lcm_convert.main(["--name", out + "/lcm", "--model", model, "--lcm_lora", out + "/lora.safetensors"]) == 0
print(sorted({{"diffusers", "transformers", "peft", "huggingface_hub", "accelerate"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
