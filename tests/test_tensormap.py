"""The reader of tensor files: the library's values in place, nothing written, little memory, nothing foreign run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import TYPES, write_stream
from sd_scripts.tensormap import open_tensors


def samples() -> dict[str, torch.Tensor]:
    """A tensor of every type, one without elements and one without axes."""
    random = torch.Generator().manual_seed(0)
    found = {f"t{n}.weight": torch.randint(0, 2, (3, n + 1), generator=random).to(t) for n, t in enumerate(TYPES)}
    return found | {"nothing": torch.zeros(0, 4), "scalar": torch.tensor(2.5), "conv": torch.randn(2, 3, 3, 3)}


def test_values_types_shapes_and_notes_are_the_librarys(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file(samples(), str(path), metadata={"ss_note": "猫"})
    before = path.read_bytes()
    with open_tensors(path) as found:
        theirs = load_file(str(path))
        assert set(found.names) == set(theirs)
        assert found.metadata == {"ss_note": "猫"}
        for name, value in theirs.items():
            assert found.get(name).dtype == found.dtypes[name] == value.dtype
            assert found.get(name).shape == torch.Size(found.shapes[name]) == value.shape
            assert bytes(found.raw(name)) == bytes(value.reshape(-1).view(torch.uint8).tolist())
        found.forget()
        assert torch.equal(found.get("conv"), theirs["conv"])
    assert path.read_bytes() == before


def test_a_file_streams_into_a_new_one_byte_for_byte(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(samples(), str(source), metadata={"ss_note": "x"})
    with open_tensors(source) as found:
        entries = {name: (found.dtypes[name], found.shapes[name]) for name in found.names}
        write_stream(target, entries, found.raw, found.metadata)
        assert target.read_bytes() == source.read_bytes()
        # over its own source: the source is read to its end before the new file takes its name
        write_stream(source, entries, found.get, found.metadata)
    assert source.read_bytes() == target.read_bytes()


@pytest.mark.parametrize(
    "made", [torch.zeros(2), torch.zeros(3, dtype=torch.float16), memoryview(b"1234")], ids=["shape", "type", "bytes"]
)
def test_a_tensor_other_than_announced_leaves_no_file(made: torch.Tensor | memoryview, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_stream(tmp_path / "f.safetensors", {"x": (torch.float32, (3,))}, lambda name: made)
    assert list(tmp_path.iterdir()) == []


def test_torch_files_are_read_with_their_counts(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3, "global_step": 70}, tmp_path / "m.ckpt")
    found = open_tensors(tmp_path / "m.ckpt")
    assert found.names == ["w"] and found.counts == (3, 70) and found.metadata == {}
    assert found.get("w").tolist() == [1, 1] and len(found.raw("w")) == 8


def test_missing_and_torn_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        open_tensors(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="cannot be read"):
        open_tensors(tmp_path / "torn.safetensors", "model")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        open_tensors(tmp_path / "empty.safetensors")


MEASURE = """
import resource, sys, torch
from sd_scripts.tensormap import open_tensors
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0.0
with open_tensors(sys.argv[1]) as found:
    for name in found.names:
        total += float(found.get(name)[::4096].sum())
        found.forget()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts memory this way and gives pages back")
def test_a_forgotten_file_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    entries = {f"t{number}": (torch.float32, (1 << 20,)) for number in range(64)}
    write_stream(path, entries, lambda name: torch.ones(1 << 20))
    grown = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    # kilobytes; the file has 256 MB
    assert int(grown.stdout) < 64 * 1024
