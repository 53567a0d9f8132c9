"""Reading weight files: the library's numbers, only what is asked for, and nothing kept open or mapped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_scripts.models.loading import load_sdxl
from sd_scripts.models.tiny import build_tiny
from sd_scripts.models.weights import open_part, open_weights, read_weights
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.tensormap import DTYPES


def sample(path: Path) -> Path:
    """A file with a tensor of every type, an empty one, and a scalar."""
    tensors = {f"a.{name}": torch.arange(6).reshape(2, 3).to(kind) for name, kind in DTYPES.items()}
    save_file(tensors | {"a.empty": torch.zeros(0, 3), "b.scalar": torch.tensor(2.5)}, str(path))
    return path


def test_every_type_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = sample(tmp_path / "all.safetensors")
    want, got = load_file(str(path)), read_weights(path)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert torch.equal(got[name].flatten().view(torch.uint8), value.flatten().view(torch.uint8))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_only_what_is_asked_for_in_the_asked_type(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    tensors = {"a.w": torch.rand(4), "a.ids": torch.arange(3), "b.w": torch.rand(2)}
    save_file(tensors, str(path)) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    weights = open_weights(path)
    assert weights.shapes == {"a.w": (4,), "a.ids": (3,), "b.w": (2,)}
    found = weights.below("a.", torch.float16)
    assert {name: value.dtype for name, value in found.items()} == {"w": torch.float16, "ids": torch.int64}
    assert torch.equal(found["w"], tensors["a.w"].half())
    own = weights.take(["b.w"])["b.w"]
    assert own.untyped_storage().nbytes() == own.nbytes


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, str(tmp_path / "model-00001-of-00002.safetensors"))
    save_file({"c": torch.full((2,), 2.0)}, str(tmp_path / "model-00002-of-00002.safetensors"))
    files = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files | {"b": files["a"]}}), encoding="utf-8")
    weights = open_part(tmp_path, ("model",))
    assert weights.shapes == {"a": (2,), "b": (3,), "c": (2,)}
    assert weights.take(["c", "a"], torch.float16)["c"].tolist() == [2, 2]
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        open_part(tmp_path, ("model",))


def test_a_header_that_lies_about_a_tensor_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for entry in (
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F7", "shape": [2], "data_offsets": [0, 8]},
    ):
        header = json.dumps({"w": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(UserError, match="cannot be read as safetensors: (its header is damaged|w is of type F7)"):
            read_weights(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the list of mapped files is Linux's")
@pytest.mark.parametrize("kind", ["file", "folder", "ckpt"])
def test_nothing_stays_mapped_or_open(kind: str, tiny_sdxl: Path, tiny_sdxl_file: Path, tmp_path: Path) -> None:
    path = {"file": tiny_sdxl_file, "folder": tiny_sdxl, "ckpt": tmp_path / "m.ckpt"}[kind]
    if kind == "ckpt":
        torch.save({"state_dict": load_file(str(tiny_sdxl_file))}, path)
    model = load_sdxl(ModelOptions(pretrained_model_name_or_path=str(path)), torch.float32)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert str(path) not in maps and not any(str(path) in name for name in opened)
    for part in (model.unet, *model.text_encoders, model.vae):
        for name, value in part.state_dict().items():
            assert value.untyped_storage().nbytes() == value.nbytes, name
    want = build_tiny("sdxl")
    assert torch.equal(model.text_encoders[1].text_projection.weight, want.text_encoders[1].text_projection.weight)
