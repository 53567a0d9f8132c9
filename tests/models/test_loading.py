"""Every way a model arrives: folders of both text-encoder layouts, single files, pickles, other VAEs, hub ids."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_scripts.models.build import LoadedModel
from sd_scripts.models.loading import load_sd, load_vae
from sd_scripts.models.saving import save_diffusers_folder
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(path: Path | str, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
    return load_sd(ModelOptions(pretrained_model_name_or_path=str(path), **options), dtype)


def assert_same(got: LoadedModel, want: LoadedModel) -> None:
    for part in ("unet", "text_encoder", "vae"):
        mine, theirs = getattr(got, part).state_dict(), getattr(want, part).state_dict()
        assert mine.keys() == theirs.keys()
        for name in theirs:
            assert torch.equal(mine[name].flatten(), theirs[name].flatten()), f"{part} {name}"


def output(model: LoadedModel) -> torch.Tensor:
    """What the whole chain of text encoder and U-Net gives for fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    ids = model.tokenizer("a photo of a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model.text_encoder(ids).last_hidden_state
        return model.unet(latents, torch.tensor([500]), hidden).sample


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_folder_and_single_file_give_the_same_bits(version: str, request: pytest.FixtureRequest) -> None:
    want = build_tiny(version)
    folder = load(request.getfixturevalue(f"tiny_{version}"))
    single = load(request.getfixturevalue(f"tiny_{version}_file"))
    assert_same(folder, want)
    assert_same(single, want)
    assert (folder.version, single.version) == (version, version)
    assert (folder.from_single_file, single.from_single_file) == (False, True)
    # Mapped weights lie at other addresses than fresh ones, which picks other kernels: equal to rounding only.
    torch.testing.assert_close(output(folder), output(want), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output(single), output(want), rtol=1e-4, atol=1e-5)


def test_sd2_single_file_runs_convolutions_and_a_folder_linear_layers(tiny_sd2: Path, tiny_sd2_file: Path) -> None:
    place = "down_blocks.0.attentions.0.proj_in"
    assert isinstance(load(tiny_sd2_file).unet.get_submodule(place), torch.nn.Conv2d)
    assert isinstance(load(tiny_sd2).unet.get_submodule(place), torch.nn.Linear)


def test_a_text_encoder_written_by_newest_transformers_loads(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new names"
    shutil.copytree(tiny_sd1, folder)
    shutil.rmtree(folder / "text_encoder")
    want = build_tiny("sd1")
    want.text_encoder.save_pretrained(str(folder / "text_encoder"))
    names = load_file(str(folder / "text_encoder" / "model.safetensors")).keys()
    assert not any(name.startswith("text_model.") for name in names)
    assert_same(load(folder), want)


def test_a_missing_text_weight_is_an_error_and_never_random(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(tiny_sd1, folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(str(file))
    del weights["text_model.encoder.layers.3.mlp.fc1.weight"]
    save_file(weights, str(file))
    with pytest.raises(UserError, match=r"text encoder in .* lacks 1 of 196 weights .*layers\.3\.mlp\.fc1"):
        load(folder)


def test_a_weight_too_many_or_of_another_shape_is_an_error(tiny_sd1_file: Path, tmp_path: Path) -> None:
    weights = load_file(str(tiny_sd1_file))
    path = tmp_path / "odd.safetensors"
    save_file(weights | {"model.diffusion_model.control.weight": torch.zeros(2)}, str(path))
    with pytest.raises(UserError, match="unknown kind .*control"):
        load(path)
    save_file(weights | {"model.diffusion_model.out.2.bias": torch.zeros(5)}, str(path))
    with pytest.raises(UserError, match="other shapes for 1"):
        load(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
@pytest.mark.parametrize("nested", [True, False])
def test_pickled_checkpoints(tiny_sd1_file: Path, tmp_path: Path, suffix: str, nested: bool) -> None:
    weights = load_file(str(tiny_sd1_file))
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": weights, "epoch": 3, "global_step": 7} if nested else weights, path)
    assert_same(load(path), build_tiny("sd1"))


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "callback": Path("x")}, path)
    with pytest.raises(UserError, match="could run foreign code") as caught:
        load(path)
    assert "safetensors" in caught.value.hint
    assert "it asks for pathlib" in caught.value.message and "weights_only" not in caught.value.message
    path.write_bytes(pickle.dumps({"state_dict": {"callback": Path("x")}}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="could run foreign code"):
            load(path)


def test_half_precision_and_variant_files(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fp16"
    save_diffusers_folder(build_tiny("sd1"), folder, torch.float16)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    model = load(folder)
    assert model.unet.dtype == torch.float32
    want = build_tiny("sd1").unet.conv_in.weight.half().float()
    assert torch.equal(model.unet.conv_in.weight, want)
    # The full weights win where both are there.
    shutil.copy(tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet")
    assert torch.equal(load(folder).unet.conv_in.weight, build_tiny("sd1").unet.conv_in.weight)


def test_dtype_and_no_half_vae(tiny_sd1: Path) -> None:
    model = load(tiny_sd1, torch.bfloat16, no_half_vae=True)
    assert (model.unet.dtype, model.text_encoder.dtype, model.vae.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    assert load(tiny_sd1, torch.bfloat16).vae.dtype == torch.bfloat16


def test_changing_loaded_weights_leaves_the_file_alone(tiny_sd1_file: Path) -> None:
    before = tiny_sd1_file.read_bytes()
    with torch.no_grad():
        for weight in load(tiny_sd1_file).unet.parameters():
            weight.add_(1.0)
    assert tiny_sd1_file.read_bytes() == before


def _vae_weights(model: LoadedModel, layout: str) -> dict[str, torch.Tensor]:
    from sd_scripts.models import convert

    weights = model.vae.state_dict()
    if layout == "original":
        return convert.vae_to_original(weights)
    if layout == "prefixed":
        return {f"first_stage_model.{name}": value for name, value in convert.vae_to_original(weights).items()}
    if layout == "old diffusers":
        back = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name, value in weights.items():
            for new, old in back.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            renamed[name] = value
        return renamed
    return weights


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers", "old diffusers"])
def test_external_vae_files(layout: str, tiny_sd1: Path, tmp_path: Path) -> None:
    other = build_tiny("sd1", seed=5)
    path = tmp_path / "vae.safetensors"
    save_file({name: value.contiguous() for name, value in _vae_weights(other, layout).items()}, str(path))
    model = load(tiny_sd1, vae=str(path))
    for name, value in other.vae.state_dict().items():
        assert torch.equal(model.vae.state_dict()[name], value), name


def test_external_vae_folders(tiny_sd1: Path, tiny_sd2: Path) -> None:
    want = build_tiny("sd1").vae.state_dict()
    for folder in (tiny_sd1, tiny_sd1 / "vae"):
        got = load_vae(str(folder), torch.float32).state_dict()
        assert all(torch.equal(got[name], want[name]) for name in want)
    with pytest.raises(UserError, match="no model file") as caught:
        load_vae(str(tiny_sd2 / "nothing.pt"), torch.float32)
    assert caught.value.key == "vae"


def test_a_single_file_without_vae_needs_one(tiny_sd1: Path, tiny_sd1_file: Path, tmp_path: Path) -> None:
    weights = {name: value for name, value in load_file(str(tiny_sd1_file)).items() if "first_stage" not in name}
    path = tmp_path / "pruned.safetensors"
    save_file(weights, str(path))
    with pytest.raises(UserError, match="holds no VAE"):
        load(path)
    assert_same(load(path, vae=str(tiny_sd1)), build_tiny("sd1"))


def test_v2_on_a_1x_model_is_a_contradiction(tiny_sd1: Path, tiny_sd1_file: Path) -> None:
    for path in (tiny_sd1, tiny_sd1_file):
        with pytest.raises(UserError, match=r"v2 is set, but .* Stable Diffusion 1\.x") as caught:
            load(path, v2=True)
        assert caught.value.key == "v2"


def test_prediction_type_comes_from_the_option_and_from_the_folder(
    tiny_sd2: Path, tiny_sd2_v: Path, tiny_sd2_file: Path
) -> None:
    assert load(tiny_sd2, v2=True).prediction_type == "epsilon"
    assert load(tiny_sd2_file, v2=True, v_parameterization=True).prediction_type == "v_prediction"
    quiet = load(tiny_sd2_v, v2=True, v_parameterization=True)
    assert (quiet.prediction_type, quiet.notes) == ("v_prediction", [])
    told = load(tiny_sd2_v, v2=True)
    assert told.prediction_type == "v_prediction"
    assert "predicts v" in told.notes[0]


def test_full_size_versions_are_told_by_the_cross_attention() -> None:
    from sd_scripts.schema.headers import single_file_version

    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert [single_file_version({key: (320, width)}) for width in (768, 1024)] == ["sd1", "sd2"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"], "Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["blocks.0.something.weight"], "not a Stable Diffusion model"),
        (["lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.lora_up.weight"], "a LoRA, not a base model"),
    ],
)
def test_other_models_are_refused_by_name(names: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(4, 4) for name in names}, str(path))
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert caught.value.key == "pretrained_model_name_or_path"


def test_an_inpainting_model_is_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_sd1, folder)
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}), encoding="utf-8")
    with pytest.raises(UserError, match="an inpainting model"):
        load(folder)


@pytest.mark.parametrize("name", ["", "nothing/here at all.safetensors", "/no/such/folder/anywhere"])
def test_nothing_there(name: str) -> None:
    with pytest.raises(UserError, match=r"No base model|There is no"):
        load(name)


def test_a_hub_id_is_read_from_the_cache_while_offline(
    tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    entry = tmp_path / "models--someone--small-model"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(revision, encoding="utf-8")
    shutil.copytree(tiny_sd1, entry / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(load("someone/small-model"), build_tiny("sd1"))
    with pytest.raises(UserError, match="not reachable") as caught:
        load("someone/another-model")
    assert "offline" in caught.value.hint
