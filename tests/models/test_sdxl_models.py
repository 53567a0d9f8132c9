"""Stable Diffusion XL: every way it arrives, what is refused with which way out, and what other programs make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_text_encoders, make_unet, make_vae
from sd_scripts.models.loading import load_sd, load_sdxl
from sd_scripts.models.saving import original_state_dict, save_diffusers_folder, save_single_file
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import identify
from sd_scripts.schema.model import ModelOptions

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def load(path: Path | str, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
    return load_sdxl(ModelOptions(pretrained_model_name_or_path=str(path), **options), dtype)


def modules(model: LoadedModel) -> dict[str, nn.Module]:
    return dict(zip(PARTS, (model.unet, model.vae, *model.text_encoders), strict=True))


def assert_same(got: LoadedModel, want: LoadedModel) -> None:
    for name, module in modules(want).items():
        mine, theirs = modules(got)[name].state_dict(), module.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name


def rewritten(source: Path, target: Path, **changes: Tensor | None) -> Path:
    """A copy of a safetensors file with some tensors replaced or, for None, left out."""
    weights = load_file(str(source)) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, str(target))
    return target


def reconfigured(source: Path, target: Path, part: str, **changes: Any) -> Path:
    """A copy of a model folder with other values in the config of a part."""
    shutil.copytree(source, target)
    file = target / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return target


def test_folder_file_and_pickle_give_the_same_bits(tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    want = build_tiny("sdxl")
    said: list[str] = []
    options = ModelOptions(pretrained_model_name_or_path=str(tiny_sdxl))
    folder, single = load_sdxl(options, torch.float32, progress=said.append), load(tiny_sdxl_file)
    assert said[1:] == ["U-Net", "text encoder 1", "text encoder 2", "VAE"]
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(str(tiny_sdxl_file)), "epoch": 4, "global_step": 90}, pickled)
    third = load(pickled)
    for got in (folder, single, third):
        assert_same(got, want)
        assert (got.version, got.prediction_type, len(got.tokenizers)) == ("sdxl", "epsilon", 2)
        assert got.vae.config.scaling_factor == 0.13025
        assert [encoder.config.hidden_act for encoder in got.text_encoders] == ["quick_gelu", "gelu"]
    assert (folder.from_single_file, single.from_single_file) == (False, True)
    assert (third.origin.epoch, third.origin.step) == (4, 90)


def test_tokenizers_fill_as_their_encoders_want_it(tmp_path: Path, tiny_sdxl: Path) -> None:
    for _ in range(2):  # made and kept the first time, read the second time
        first, second = load(tiny_sdxl, tokenizer_cache_dir=str(tmp_path)).tokenizers
        assert first("a", padding="max_length", max_length=4).input_ids == [49406, 320, 49407, 49407]
        assert second("a", padding="max_length", max_length=4).input_ids == [49406, 320, 49407, 0]
    assert {path.name for path in tmp_path.iterdir()} == {
        "openai_clip-vit-large-patch14",
        "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k",
    }


def test_dtypes(tiny_sdxl_file: Path) -> None:
    model = load(tiny_sdxl_file, torch.bfloat16, no_half_vae=True)
    assert {name: module.dtype for name, module in modules(model).items()} == {
        "unet": torch.bfloat16,
        "vae": torch.float32,
        "text_encoder": torch.bfloat16,
        "text_encoder_2": torch.bfloat16,
    }
    # The VAE keeps the file's own numbers and has not been through 16 bits.
    assert torch.equal(model.vae.decoder.conv_in.weight, build_tiny("sdxl").vae.decoder.conv_in.weight)


def test_another_vae(tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    other = build_tiny("sdxl", seed=5)
    path = tmp_path / "vae.safetensors"
    save_file({name: value.contiguous() for name, value in other.vae.state_dict().items()}, str(path))
    for base in (tiny_sdxl, tiny_sdxl_file):
        vae = load(base, vae=str(path)).vae
        assert torch.equal(vae.encoder.conv_in.weight, other.vae.encoder.conv_in.weight)
        assert vae.config.scaling_factor == 0.13025


def test_v_prediction_is_seen(tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    marked = rewritten(tiny_sdxl_file, tmp_path / "v.safetensors", v_pred=torch.zeros(0))
    model = load(marked)
    assert model.prediction_type == "v_prediction"
    assert "predicts v" in model.notes[0]
    again = save_single_file(model, tmp_path / "again.safetensors")
    assert identify(str(again)).prediction == "v_prediction"
    folder = save_diffusers_folder(model, tmp_path / "folder")
    assert load(folder).prediction_type == "v_prediction"


def test_headers_tell_what_it_is(tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    facts = [identify(str(path)) for path in (tiny_sdxl, tiny_sdxl_file)]
    assert [(fact.version, fact.kind, fact.problem) for fact in facts] == [
        ("sdxl", "diffusers", ""),
        ("sdxl", "checkpoint", ""),
    ]
    torn = tmp_path / "torn"
    shutil.copytree(tiny_sdxl, torn)
    shutil.rmtree(torn / "text_encoder_2")
    assert identify(str(torn)).problem == "the folder is incomplete: text_encoder_2 missing"
    with pytest.raises(UserError, match="text_encoder_2.*is missing"):
        load(torn)


def test_the_wrong_command_names_the_right_ones(
    tiny_sd1: Path, tiny_sd2_file: Path, tiny_sdxl: Path, tiny_sdxl_file: Path
) -> None:
    for path in (tiny_sdxl, tiny_sdxl_file):
        with pytest.raises(UserError, match="is a Stable Diffusion XL model") as caught:
            load_sd(ModelOptions(pretrained_model_name_or_path=str(path)), torch.float32)
        named = [name for name, command in COMMANDS.items() if command.family == "sdxl"]
        assert [name for name in named if f"{name}.py" not in caught.value.hint] == []
    for path, name in ((tiny_sd1, "1.x"), (tiny_sd2_file, "2.x")):
        with pytest.raises(UserError, match=f"is a Stable Diffusion {name} model") as caught:
            load(path)
        assert "train_network.py, train_db.py" in caught.value.hint and "train_controlnet.py" in caught.value.hint
        assert "sdxl_" not in caught.value.hint


def test_the_refiner_is_refused(tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    weights = load_file(str(tiny_sdxl_file))
    path = tmp_path / "refiner.safetensors"
    moved = {
        name.replace("embedders.1.", "embedders.0."): v for name, v in weights.items() if "embedders.0." not in name
    }
    save_file(moved, str(path))
    folder = reconfigured(tiny_sdxl, tmp_path / "refiner", "unet", cross_attention_dim=1280)
    for place in (path, folder):
        assert "refiner" in identify(str(place)).problem
        with pytest.raises(UserError, match="is the refiner of Stable Diffusion XL") as caught:
            load(place)
        assert caught.value.hint == "Choose a Stable Diffusion XL base model."


@pytest.mark.parametrize(("channels", "kind"), [(9, "an inpainting model"), (8, "an image-editing model")])
def test_other_inputs_are_refused(
    channels: int, kind: str, tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path
) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = rewritten(tiny_sdxl_file, tmp_path / "x.safetensors", **{name: torch.zeros(32, channels, 3, 3)})
    folder = reconfigured(tiny_sdxl, tmp_path / "x", "unet", in_channels=channels)
    for place in (path, folder):
        with pytest.raises(UserError, match=kind):
            load(place)


def test_missing_parts_are_named(tiny_sdxl_file: Path, tmp_path: Path) -> None:
    weights = load_file(str(tiny_sdxl_file))
    for prefix, message in (
        ("conditioner.embedders.1.", "holds no second text encoder"),
        ("first_stage_model.", "holds no VAE"),
        ("model.diffusion_model.", "not a base model"),
        ("conditioner.embedders.1.model.text_projection", "text encoder 2 in .* lacks 1 of 517"),
        ("conditioner.embedders.0.transformer.text_model.final", "text encoder 1 in .* lacks 2 of 196"),
        ("model.diffusion_model.label_emb", r"incomplete: label_emb\.0\.0\.weight is missing"),
        ("model.diffusion_model.output_blocks.8.0.skip", "U-Net in .* lacks 2 of 1680"),
    ):
        path = tmp_path / "part.safetensors"
        save_file({name: value for name, value in weights.items() if not name.startswith(prefix)}, str(path))
        with pytest.raises(UserError, match=message):
            load(path)


def test_a_hub_model_of_another_kind_is_refused_by_its_configs(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    entry = tmp_path / "models--someone--large-model"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(revision, encoding="utf-8")
    snapshot = shutil.copytree(tiny_sdxl, entry / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(load("someone/large-model"), build_tiny("sdxl"))
    for file in snapshot.glob("*/*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"someone/large-model is a Stable Diffusion XL model"):
        load_sd(ModelOptions(pretrained_model_name_or_path="someone/large-model"), torch.float32)


def outputs(pipe: Any) -> list[Tensor]:
    """What each part of a pipeline gives for fixed inputs; texts of 20 and of no words."""
    ids = [
        tokenizer(["a photo of a cat " * 4, ""], padding="max_length", return_tensors="pt").input_ids
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    ]
    with torch.no_grad():
        first = pipe.text_encoder(ids[0], output_hidden_states=True).hidden_states[-2]
        second = pipe.text_encoder_2(ids[1], output_hidden_states=True)
        hidden = torch.cat([first, second.hidden_states[-2]], -1)
        generator = torch.Generator().manual_seed(3)
        latents = torch.randn(2, 4, 16, 16, generator=generator)
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)
        added = {"text_embeds": second.text_embeds, "time_ids": sizes}
        noise = pipe.unet(latents, torch.tensor([500, 20]), hidden, added_cond_kwargs=added).sample
        return [first, second.text_embeds, noise, pipe.vae.decode(latents).sample]


@pytest.fixture
def pipe_of_the_model() -> StableDiffusionXLPipeline:
    """diffusers' pipeline around the modules themselves, as they were before any writing."""
    from diffusers import EulerDiscreteScheduler

    model = build_tiny("sdxl")
    first, second = model.tokenizers
    return StableDiffusionXLPipeline(
        **modules(model), tokenizer=first, tokenizer_2=second, scheduler=EulerDiscreteScheduler()
    )


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "diffusers", "diffusers_safetensors"])
def test_diffusers_opens_what_is_saved_and_computes_the_same(
    kind: str,
    tiny_sdxl: Path,
    tiny_sdxl_file: Path,
    tmp_path: Path,
    pipe_of_the_model: StableDiffusionXLPipeline,
) -> None:
    if kind.startswith("diffusers"):
        path = save_diffusers_folder(load(tiny_sdxl_file), tmp_path / "m", safetensors=kind != "diffusers")
        pipe = StableDiffusionXLPipeline.from_pretrained(str(path), local_files_only=True)
        suffix = ".bin" if kind == "diffusers" else ".safetensors"
        assert len(list(path.glob(f"*/*{suffix}"))) == 4
    else:
        path = save_single_file(load(tiny_sdxl), tmp_path / f"m.{kind}")
        pipe = StableDiffusionXLPipeline.from_single_file(str(path), config=str(tiny_sdxl), local_files_only=True)
    for got, want in zip(outputs(pipe), outputs(pipe_of_the_model), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_full_size_names_and_shapes_are_those_of_the_original_file() -> None:
    config = model_config("sdxl")
    with torch.device("meta"):
        parts = (make_unet(config["unet"]), make_text_encoders(config), make_vae(config["vae"]))
        shapes = {n: tuple(v.shape) for n, v in original_state_dict(LoadedModel(*parts, [], "sdxl", "epsilon")).items()}
    groups = {
        "model.diffusion_model.": 1680,
        "first_stage_model.": 248,
        "conditioner.embedders.0.transformer.text_model.": 197,
        "conditioner.embedders.1.model.": 390,
    }
    assert {prefix: sum(name.startswith(prefix) for name in shapes) for prefix in groups} == groups
    assert len(shapes) == 2515
    assert sum(value.numel() for value in parts[0].parameters()) == 2_567_463_684
    want = {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": (640, 640),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_fc.weight": (5120, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.logit_scale": (),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    }
    assert {name: shapes[name] for name in want} == want


def test_the_small_model_has_every_name_of_the_full_size_one() -> None:
    config = model_config("sdxl")
    with torch.device("meta"):
        parts = (make_unet(config["unet"]), make_text_encoders(config), make_vae(config["vae"]))
    full = LoadedModel(*parts, [], "sdxl", "epsilon")
    small = build_tiny("sdxl")
    for name, module in modules(full).items():
        assert modules(small)[name].state_dict().keys() == module.state_dict().keys()
    weights = sum(value.numel() for module in modules(small).values() for value in module.parameters())
    assert weights < 15_000_000
