"""The writer of tensor files: equal to the library's byte for byte, one tensor at a time, complete or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_scripts.tensorfile import TYPES, write_safetensors


def samples() -> dict[str, torch.Tensor]:
    """Tensors of every type, shapes of 0 to 4 axes, names that sort differently than they were made."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for number, kind in enumerate(TYPES):
        values = torch.randint(0, 2, (number % 4 + 1, 3), generator=random)
        found[f"z{number}.weight"] = values.to(kind)
        found[f"a{number}.weight"] = values.T.contiguous().to(kind)
    found["scalar"] = torch.tensor(1.5)
    found["nothing"] = torch.zeros(0, 4)
    found["four"] = torch.randn(2, 3, 1, 2, generator=random)
    return found


@pytest.mark.parametrize("metadata", [None, {}, {"ss_note": 'über "alles" \\ \n 猫'}])
def test_files_are_the_librarys_byte_for_byte(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(samples(), str(tmp_path / "theirs.safetensors"), metadata=metadata or None)
    write_safetensors(tmp_path / "ours.safetensors", samples(), metadata)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_tensors_are_cast_laid_out_and_shared_ones_written_twice(tmp_path: Path) -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": weights, "b": weights.T, "ids": torch.arange(3), "kept": weights[:1], "param": weights[0]}
    write_safetensors(tmp_path / "f.safetensors", tensors, dtype=torch.float16, unchanged={"kept"})
    found = load_file(str(tmp_path / "f.safetensors"))
    assert {name: value.dtype for name, value in found.items()} == {
        "a": torch.float16,
        "b": torch.float16,
        "ids": torch.int64,
        "kept": torch.float32,
        "param": torch.float16,
    }
    assert torch.equal(found["b"], weights.T.half())


def test_a_parameter_that_trains_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "f.safetensors", {"p": torch.nn.Parameter(torch.ones(2))})
    assert load_file(str(tmp_path / "f.safetensors"))["p"].tolist() == [1, 1]


def test_what_such_files_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="x is torch.complex64"):
        write_safetensors(tmp_path / "f.safetensors", {"x": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match="text only"):
        write_safetensors(tmp_path / "f.safetensors", {}, {"count": 3})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_the_header_is_filled_up_so_that_tensors_lie_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for length in range(9):
        write_safetensors(tmp_path / "f.safetensors", {"n" * (length + 1): torch.ones(1)})
        content = (tmp_path / "f.safetensors").read_bytes()
        header = int.from_bytes(content[:8], "little")
        assert header % 8 == 0
        assert json.loads(content[8 : 8 + header])
