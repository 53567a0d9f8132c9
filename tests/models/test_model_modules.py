"""The layers of model files and folders: names, order, shapes and numbers, and models written again with changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_text_encoders, make_unet, make_vae
from sd_scripts.models.loading import load_sd, load_sdxl
from sd_scripts.models.modules import ModelFile, open_model, rewrite
from sd_scripts.models.saving import _folder_weights, original_state_dict
from sd_scripts.models.torchfile import write_torch_stream
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.tensorfile import TYPES, write_safetensors

DATA = Path(__file__).parents[1] / "networks" / "data"
MODULES: dict[str, list[list[Any]]] = json.loads((DATA / "lora_modules.json").read_text(encoding="utf-8"))
XL_MODULES = json.loads((DATA / "lora_modules_sdxl.json").read_text(encoding="utf-8"))
SOURCES = ("tiny_sd1_file", "tiny_sd1", "tiny_sd2_file", "tiny_sd2", "tiny_sdxl_file", "shallow_sdxl")


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def layers(path: Path) -> dict[str, nn.Module]:
    """The layers that a trainer runs, by kohya's names, in the order of the walk."""
    version = "sdxl" if "sdxl" in path.name else "sd2" if "sd2" in path.name else "sd1"
    options = ModelOptions(pretrained_model_name_or_path=str(path), v2=version == "sd2")
    model = (load_sdxl if version == "sdxl" else load_sd)(options, None)
    prefixes = ("lora_te1", "lora_te2") if version == "sdxl" else ("lora_te",)
    roots = [*zip(prefixes, map(text_view, model.text_encoders), strict=True), ("lora_unet", unet_view(model.unet))]
    return {
        f"{prefix}.{name}".replace(".", "_"): layer
        for prefix, root in roots
        for name, layer in root.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm))
    }


def test_layers_are_those_that_run(source: Path) -> None:
    want = layers(source)
    kinds = {nn.Linear: "linear", nn.Conv2d: "conv", nn.LayerNorm: "norm", nn.GroupNorm: "norm"}
    with open_model(source) as model:
        assert list(model.places) == list(want)
        for name, layer in want.items():
            assert isinstance(layer.weight, Tensor)
            kind = next(kind for key, kind in kinds.items() if isinstance(layer, key))
            assert model.places[name].kind == kind
            assert model.places[name].shape == layer.weight.shape
            assert torch.equal(model.weight(name), layer.weight)
            bias, mine = layer.bias, model.bias(name)
            assert (mine is None) == (bias is None)
            if mine is not None and isinstance(bias, Tensor):
                assert torch.equal(mine, bias)
        model.forget()
        name = model.targets()[0]
        assert torch.equal(model.weight(name), want[name].weight)


# ---- full size, headers alone


@cache
def full_size(version: str) -> LoadedModel:
    config = model_config(version)
    with torch.device("meta"):
        parts = make_unet(config["unet"]), make_text_encoders(config), make_vae(config["vae"])
    return LoadedModel(*parts, [], version, "epsilon")


def write_header(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A safetensors file of 16-bit zeros that takes no room on the disk."""
    table: dict[str, Any] = {}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.numel() * 2
        table[name] = {"dtype": TYPES[torch.float16], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture
def full_file(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    yield lambda version: write_header(tmp_path / f"{version}.safetensors", original_state_dict(full_size(version)))
    shutil.rmtree(tmp_path)


def described(model: ModelFile, conv: bool) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name in model.targets(conv):
        shape = model.places[name].shape
        kind = "linear" if len(shape) == 2 else "conv1x1" if shape[2:] == (1, 1) else "conv3x3"
        rows.append([name, kind, shape[1], shape[0]])
    return rows


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_targets_at_full_size(version: str, full_file: Callable[[str], Path]) -> None:
    with open_model(full_file(version)) as model:
        for conv in (False, True):
            assert described(model, conv) == [row[:4] for row in MODULES[version] if conv or row[4]]


def test_targets_of_sdxl_at_full_size(full_file: Callable[[str], Path]) -> None:
    with open_model(full_file("sdxl")) as model:
        for conv, kind in ((False, "default"), (True, "with_convolutions")):
            text = "\n".join(" ".join(str(part) for part in row) for row in described(model, conv))
            assert hashlib.sha256(text.encode()).hexdigest() == XL_MODULES[kind]["sha256"]


def test_a_folder_of_sd2_runs_linear_projections(tmp_path: Path) -> None:
    model = full_size("sd2")
    for part, weights in _folder_weights(model).items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write_header(tmp_path / part / f"{stem}.safetensors", dict(weights))
        (tmp_path / part / "config.json").write_text(json.dumps(model_config("sd2")[part]), encoding="utf-8")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    with open_model(tmp_path) as opened:
        wanted = [
            [name, "linear" if name.endswith(("_proj_in", "_proj_out")) else kind, *size]
            for name, kind, *size, _ in MODULES["sd2"]
        ]
        assert described(opened, True) == wanted


# ---- written again


def test_only_what_is_named_changes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / f"out{source.suffix}"
    seen: list[str] = []
    with open_model(source) as model:
        names = [*model.targets(True)[::3], *list(model.places)[5::70]]

        def changes(name: str) -> tuple[Tensor | None, Tensor | None]:
            seen.append(name)
            bias = model.bias(name)
            return model.weight(name) + 1, None if bias is None else bias - 2

        rewrite(model, target, changes, names, metadata={"note": "x"})
        assert sorted(seen) == sorted(set(names))
        with open_model(target) as again:
            assert list(again.stored.shapes) == list(model.stored.shapes)
            for name in model.places:
                assert torch.equal(again.weight(name), model.weight(name) + (name in names))
                bias, other = model.bias(name), again.bias(name)
                assert bias is None or (other is not None and torch.equal(other, bias - 2 * (name in names)))
            touched = {key for name in names for key in (model.places[name].weight, model.places[name].bias)}
            for key in model.stored.shapes.keys() - touched:
                assert again.stored.raw(key) == model.stored.raw(key)
            assert again.stored.metadata == ({} if source.is_dir() else {"note": "x"})
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    if source.is_dir():
        left = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
        assert left == {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}


def test_the_text_projection_changes_too(tiny_sdxl_file: Path, tmp_path: Path) -> None:
    name = "lora_te2_text_projection"
    with open_model(tiny_sdxl_file) as model:
        new = torch.arange(float(model.weight(name).numel())).reshape(model.places[name].shape)
        rewrite(model, tmp_path / "out.safetensors", lambda _: (new, None), [name])
    key = "conditioner.embedders.1.model.text_projection"
    assert torch.equal(load_file(tmp_path / "out.safetensors")[key], new.T)


def test_a_model_over_itself_and_in_another_format(tiny_sd2_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = load_file(tiny_sd2_file) | {"betas": torch.rand(10, dtype=torch.float64)}
    write_safetensors(path, weights, {"a": "b"})
    name = "lora_te_text_model_encoder_layers_3_self_attn_v_proj"
    with open_model(path) as model:
        rewrite(model, path, lambda name: (model.weight(name) * 2, None), [name], torch.float16)
        half = load_file(path)
        assert half["betas"].dtype == torch.float64
        key = model.places[name].weight
        rows = slice(*(model.places[name].rows or (0, 0)))
        want = weights[key].clone()
        want[rows] *= 2
        assert torch.equal(half[key], want.half())
    with open_model(path) as model:
        assert model.stored.metadata == {"a": "b"}
        rewrite(model, tmp_path / "model.ckpt", lambda _: (None, None), [name])
    content = torch.load(tmp_path / "model.ckpt", weights_only=True, mmap=True)
    assert (content["epoch"], content["global_step"]) == (0, 0)
    assert content["state_dict"].keys() == half.keys()
    assert all(torch.equal(value, half[key]) for key, value in content["state_dict"].items())
    with open_model(tmp_path / "model.ckpt") as model:
        assert model.weight(name).shape == (96, 96)


def test_shards_and_halves_of_a_folder(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd1, folder)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    names = sorted(weights)
    places = {name: f"diffusion_pytorch_model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        write_safetensors(folder / "unet" / file, {name: weights[name] for name in names if places[name] == file})
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    text = folder / "text_encoder" / "model.safetensors"
    plain = {name.removeprefix("text_model."): value for name, value in load_file(text).items()}
    text.unlink()
    write_torch_stream(
        folder / "text_encoder" / "pytorch_model.fp16.bin",
        {name: (torch.float16, value.shape) for name, value in plain.items()},
        lambda name: plain[name].half(),
    )
    with open_model(folder) as model, open_model(tiny_sd1) as first:
        rewrite(model, tmp_path / "out", lambda name: (model.weight(name) + 1, None), [model.targets()[0]])
        with open_model(tmp_path / "out") as again:
            for name in first.places:
                want = first.weight(name).half() if "lora_te" in name else first.weight(name)
                assert torch.equal(again.weight(name), want + (name == model.targets()[0]))
            assert len(again.stored.files) == 4
    assert (tmp_path / "out" / "unet" / index.name).is_file()


def test_refusals_leave_nothing_behind(tiny_sd1_file: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    def no_unet(path: Path) -> None:
        write_safetensors(path, {key: value for key, value in load_file(tiny_sd1_file).items() if "model.d" not in key})

    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "short.safetensors": (lambda path: path.write_bytes(tiny_sd1_file.read_bytes()[:-9]), "torn"),
        "lora.safetensors": (
            lambda path: write_safetensors(path, {"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}),
            "is a LoRA, not a whole model",
        ),
        "text.safetensors": (no_unet, "is a text encoder, not"),
        "none.safetensors": (lambda path: None, "There is no model"),
        "x.ckpt": (lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path), "not a Stable Diffusion"),
        "folder": (lambda path: (path / "unet").mkdir(parents=True), "model_index.json is missing"),
    }
    for name, (make, words) in cases.items():
        make(tmp_path / name)
        with pytest.raises(UserError, match=words) as error:
            open_model(tmp_path / name, "model")
        assert error.value.key == "model"
    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_sd1, folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="text_encoder holds no weights"):
        open_model(folder)
    with open_model(tiny_sd1_file) as model:
        bare = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        for names in (["lora_unet_other"], [bare]):
            with pytest.raises(UserError, match="has no"):
                rewrite(model, tmp_path / "out.safetensors", lambda _: (None, torch.zeros(1)), names)
    with open_model(tiny_sd1) as model:

        def full(name: str) -> tuple[Tensor, None]:
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            rewrite(model, tmp_path / "out", full, model.targets()[:1])
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
