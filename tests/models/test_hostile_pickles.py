"""No file that is read can run code, wherever it is read; and the source holds none of the ways that would let it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_scripts.finetune import blip
from sd_scripts.models.modules import open_model
from sd_scripts.models.weights import open_weights, read_pickle
from sd_scripts.networks.base import read_weights
from sd_scripts.networks.embedding_file import _read as read_embedding
from sd_scripts.schema.errors import UserError
from sd_scripts.trainer.resume import refuse_code
from sd_scripts.training.state_files import read_torch, read_weights_of

ROOT = Path(__file__).resolve().parents[2]


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def _state_weights(path: Path) -> object:
    path.rename(path.with_name("pytorch_model.bin"))
    return read_weights_of(path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "model": read_pickle,
    "layers of a model": open_model,
    "opened model": lambda path: open_weights(path).below(""),
    "network": read_weights,
    "embedding": read_embedding,
    "state": read_torch,
    "weights of a state": _state_weights,
    "captioner": blip._weights,
}


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_file_never_runs(tmp_path: Path, reader: str, old: bool) -> None:
    made, file = tmp_path / "made", tmp_path / "evil.pt"
    content = {"state_dict": {"a": torch.zeros(2)}, "model": {}, "x": Evil(made)}
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError):
        READERS[reader](file)
    assert not made.exists()


def test_the_probe_would_be_noticed(tmp_path: Path) -> None:
    function, arguments = Evil(tmp_path / "made").__reduce__()
    function(*arguments)
    assert (tmp_path / "made").is_dir()


def test_states_of_deepspeed_need_permission() -> None:
    with pytest.raises(UserError, match="DeepSpeed"):
        refuse_code(True, False)
    assert refuse_code(True, True) is None and refuse_code(False, False) is None


FORBIDDEN = (
    r"weights_only\s*=\s*False",
    r"\bpickle\.loads?\(",
    r"allow_pickle\s*=\s*True",
    r"trust_remote_code\s*=\s*True",
    r"shell\s*=\s*True",
    r"os\.system\(",
    r"os\.popen\(",
    r"(?<![\w.])eval\(",
    r"(?<![\w.])exec\(",
    r"yaml\.(?:unsafe_)?load\(",
    r"gr\.load\(",
)


def test_the_source_holds_no_way_in() -> None:
    files = [path for folder in ("kohya_gui", "sd_scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match[0]}" for rule in FORBIDDEN for match in re.finditer(rule, text)]
        loads = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
        found += [f"{path.name}: {call}" for call in loads if "weights_only=True" not in call]
    assert not found
