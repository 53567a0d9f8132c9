"""A disk that takes no more: one kind of error whoever writes, nothing torn, the older file still whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sd_scripts.tensorfile import write_safetensors, write_torch, write_weights

resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
LARGE = {"w": torch.zeros(300_000)}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KB: the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.safetensors", write_safetensors),
        ("a.safetensors", write_weights),
        ("a.pt", write_torch),
        ("a.ckpt", write_weights),
    ],
)
def test_a_refusing_disk_is_an_oserror_and_leaves_the_older_file(
    name: str, write: Callable[[Path, dict[str, torch.Tensor]], None], tmp_path: Path, small_files: None
) -> None:
    path = tmp_path / name
    write(path, {"w": torch.ones(3)})
    whole = path.read_bytes()
    with pytest.raises(OSError) as raised:
        write(path, LARGE)
    assert raised.value.strerror
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="memory format"):
        write_safetensors(tmp_path / "a.safetensors", {"a": LARGE["w"].to_sparse()})
    assert not list(tmp_path.iterdir())
