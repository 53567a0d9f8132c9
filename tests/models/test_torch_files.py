"""Files for torch.load that are written tensor by tensor."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_scripts.models.lazy import Lazy, LazyFiles, made
from sd_scripts.models.torchfile import write_torch_stream
from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_safetensors

TENSORS = {
    "half": torch.arange(6).reshape(2, 3).half(),
    "brain": torch.arange(6).reshape(3, 1, 2).bfloat16(),
    "whole": torch.arange(5),
    "yes": torch.tensor([True, False]),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 3),
}


@pytest.mark.parametrize("more", [{}, {"eighth": torch.ones(3).to(torch.float8_e4m3fn)}])
def test_torch_reads_what_was_written(more: dict[str, Tensor], tmp_path: Path) -> None:
    tensors, asked = TENSORS | more, []
    entries = {name: (value.dtype, value.shape) for name, value in tensors.items()}

    def make(name: str) -> Tensor | memoryview:
        asked.append(name)
        value = tensors[name]
        return memoryview(value.view(torch.uint8).numpy()).cast("B") if name == "half" else value

    path = tmp_path / "x.ckpt"
    write_torch_stream(path, entries, make, {"epoch": 3})
    assert asked == list(tensors)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for mapped in (False, True):
        content = torch.load(path, weights_only=True, mmap=mapped)
        assert content["epoch"] == 3 and list(content["state_dict"]) == list(tensors)
        for name, value in tensors.items():
            read = content["state_dict"][name]
            assert read.dtype == value.dtype and read.shape == value.shape
            assert torch.equal(read.float(), value.float())
            if not more and value.numel():
                assert not mapped or read.data_ptr() % 64 == 0
    write_torch_stream(path, entries, make)
    assert list(torch.load(path, weights_only=True)) == list(tensors)


def test_a_wrong_tensor_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="a has 8 bytes, announced were 12"):
        write_torch_stream(path, {"a": (torch.float32, (3,))}, lambda name: torch.zeros(2))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_lazy_tensors_are_made_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = {"a": torch.arange(12.0).reshape(6, 2), "b": torch.arange(2)}
    write_safetensors(path, stored)
    files = LazyFiles()
    weights = files(path, None)
    lazy = weights.take(["a", "b"])
    first, _, third = lazy["a"].chunk(3)
    joined = torch.cat([third, first.clone()])[:, :, None, None].squeeze()
    assert isinstance(joined, Lazy) and joined.shape == (4, 2) and lazy["b"].dtype == torch.int64
    assert torch.equal(made(joined), torch.tensor([[8.0, 9], [10, 11], [0, 1], [2, 3]]))
    assert torch.equal(made(lazy["a"].T.contiguous()), stored["a"].T)
    assert made(stored["b"]) is stored["b"]
    with pytest.raises(ValueError, match="types of their file"):
        weights.take(["a"], torch.float16)
    files.forget()
    assert torch.equal(made(lazy["b"]), stored["b"])
    files.close()
    with pytest.raises(UserError, match="There is no file"):
        files(tmp_path / "none.safetensors", None)
