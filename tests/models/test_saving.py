"""Whole models written and read again, by us and by the libraries themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_text_encoders, make_unet, make_vae
from sd_scripts.models.loading import load_sd
from sd_scripts.models.saving import original_state_dict, save_diffusers_folder, save_single_file
from sd_scripts.models.tiny import build_tiny
from sd_scripts.models.tokenizer import build_tokenizer
from sd_scripts.schema.model import ModelOptions


def load(path: Path) -> LoadedModel:
    return load_sd(ModelOptions(pretrained_model_name_or_path=str(path)), torch.float32)


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_single_file_to_folder_and_back_is_bit_equal(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    start = request.getfixturevalue(f"tiny_{version}_file")
    folder = save_diffusers_folder(load(start), tmp_path / "as folder")
    again = save_single_file(load(folder), tmp_path / "again.safetensors")
    want, got = load_file(str(start)), load_file(str(again))
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert value.shape == got[name].shape
        assert torch.equal(value, got[name]), name


def test_full_size_names_are_those_of_the_original_files() -> None:
    """Counts and shapes that every SD 1.5 and SD 2.1 checkpoint has."""
    # Text: 12 layers of 16 entries and 5 around them; OpenCLIP: 24 layers of 12 entries and 6 around them.
    for version, count in (("sd1", 686 + 248 + 12 * 16 + 5), ("sd2", 686 + 248 + 24 * 12 + 6)):
        config = model_config(version)
        with torch.device("meta"):
            parts = (make_unet(config["unet"]), make_text_encoders(config), make_vae(config["vae"]))
            weights = original_state_dict(LoadedModel(*parts, [], version, "epsilon"))
        names = {name: tuple(value.shape) for name, value in weights.items()}
        assert len(names) == count
        unet = [name for name in names if name.startswith("model.diffusion_model.")]
        assert len(unet) == 686
        assert sum(name.startswith("first_stage_model.") for name in names) == 248
        assert names["model.diffusion_model.output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
        assert names["first_stage_model.decoder.up.2.upsample.conv.weight"] == (512, 512, 3, 3)
        assert names["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
        inner = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
        assert names[inner] == ((320, 320, 1, 1) if version == "sd1" else (320, 320))
    assert names["cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert names["cond_stage_model.model.positional_embedding"] == (77, 1024)


def test_the_folder_opens_in_diffusers_and_transformers(tmp_path: Path) -> None:
    want = build_tiny("sd1")
    folder = save_diffusers_folder(want, tmp_path / "model")
    names = load_file(str(folder / "text_encoder" / "model.safetensors")).keys()
    assert all(name.startswith("text_model.") for name in names)
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    for part in ("unet", "text_encoder", "vae"):
        mine, theirs = getattr(want, part).state_dict(), getattr(pipe, part).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    text = "a photo of a cat, 2024!"
    assert pipe.tokenizer(text).input_ids == want.tokenizer(text).input_ids
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_the_folder_says_v_prediction(tiny_sd2_v: Path) -> None:
    config = json.loads((tiny_sd2_v / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    assert config["prediction_type"] == "v_prediction"
    assert config["beta_start"] == 0.00085
    assert CLIPTokenizer.from_pretrained(str(tiny_sd2_v / "tokenizer"), local_files_only=True).pad_token_id == 0


@pytest.mark.parametrize(("version", "suffix"), [("sd1", ".safetensors"), ("sd1", ".ckpt"), ("sd2", ".safetensors")])
def test_the_single_file_opens_in_diffusers(
    version: str, suffix: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    want = build_tiny(version)
    folder = request.getfixturevalue(f"tiny_{version}")
    path = save_single_file(load(folder), tmp_path / f"model{suffix}")
    pipe = StableDiffusionPipeline.from_single_file(str(path), config=str(folder), local_files_only=True)
    for part in ("unet", "text_encoder", "vae"):
        mine, theirs = getattr(want, part).state_dict(), getattr(pipe, part).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), part


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_folder_of_older_files_opens_in_diffusers(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """From a single file of SD2, whose projections run as convolutions, to the published folders' matrices."""
    want = build_tiny(version)
    start = load(request.getfixturevalue(f"tiny_{version}_file"))
    folder = save_diffusers_folder(start, tmp_path / "model", safetensors=False)
    names = {str(file.relative_to(folder)) for file in folder.glob("*/*.bin")}
    assert names == {
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    }
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    for part in ("unet", "text_encoder", "vae"):
        mine, theirs = getattr(want, part).state_dict(), getattr(pipe, part).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), part


def test_the_parts_open_alone(tiny_sd2: Path) -> None:
    assert UNet2DConditionModel.from_pretrained(str(tiny_sd2), subfolder="unet").config.use_linear_projection
    assert AutoencoderKL.from_pretrained(str(tiny_sd2), subfolder="vae").config.latent_channels == 4
    _, report = CLIPTextModel.from_pretrained(str(tiny_sd2), subfolder="text_encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_precision_and_metadata_of_a_single_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = save_single_file(build_tiny("sd1"), tmp_path / "half.safetensors", torch.float16, {"note": "é"})
    with safe_open(str(path), "pt") as handle:
        assert handle.metadata() == {"note": "é"}
        assert handle.get_tensor("model.diffusion_model.out.2.bias").dtype == torch.float16
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.safetensors"]
    assert path.stat().st_mode & 0o044, "others may read the file where the umask lets them"


def test_an_existing_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_diffusers_folder(build_tiny("sd1"), folder)
    (folder / "left over.txt").write_text("old", encoding="utf-8")
    save_diffusers_folder(build_tiny("sd1", seed=1), folder)
    assert not (folder / "left over.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load(folder).unet.conv_in.weight, build_tiny("sd1", seed=1).unet.conv_in.weight)


def test_small_models_depend_on_the_seed_alone_and_leave_the_random_stream() -> None:
    torch.manual_seed(9)
    want = torch.rand(3)
    torch.manual_seed(9)
    first, second, other = build_tiny("sd1", 4), build_tiny("sd1", 4), build_tiny("sd1", 5)
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(first.unet.conv_out.weight, second.unet.conv_out.weight)
    assert not torch.equal(first.unet.conv_out.weight, other.unet.conv_out.weight)
    assert len(build_tokenizer("sd1")) == 49408
