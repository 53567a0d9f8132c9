"""The files inside a training state folder: written completely or not at all, and never run when read."""

import json
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import atomic_path, flush_folder

# accelerate's names, so that either program finds its way in the other's folder.
WEIGHTS, OPTIMIZER, SCHEDULER, SCALER = "model.safetensors", "optimizer.bin", "scheduler.bin", "scaler.pt"
OLD_WEIGHTS = "pytorch_model.bin"
PROGRESS = "train_state.json"
# Ours: it lists all other files, so it comes last and its presence means that the state is whole.
MANIFEST = "state.json"
_READ_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OSError,
)


def random_states_name(process_index: int | str) -> str:
    """The file with the random streams of one process; of all with "*"."""
    return f"random_states_{process_index}.pkl"


def _beside(folder: Path, ending: str) -> Path:
    """A hidden name in the same place, so that renaming stays within one file system."""
    return folder.with_name(f".{folder.name}.{ending}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as UTF-8, complete or absent."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


@contextmanager
def writing(
    folder: Path, is_main: bool, barrier: Callable[[], None], about: dict[str, Any], expected: Sequence[str]
) -> Iterator[Path]:
    """Yield a hidden folder to write into; at the end the main process gives it the name `folder`.

    Args:
        folder: the final name. A folder of that name is replaced only once the new one is whole.
        is_main: this process gives the name and cleans up.
        barrier: waits for all processes. It is called three times whatever happens, so that one process with a full
            disk does not leave the others waiting.
        about: written into the manifest by the main process at the end of the block.
        expected: files that must be there at the end, whichever process writes them.

    Raises:
        OSError: in the process whose disk refused, and in the main process; nothing stays then.
    """
    temporary, replaced = _beside(folder, "part"), _beside(folder, "old")
    failure: OSError | None = None
    try:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    except OSError as error:
        failure = error
    barrier()
    try:
        yield temporary
    except OSError as error:
        failure = failure or error
    except BaseException:  # a bug, or the person's Ctrl-C: no waiting for the others, but nothing stays behind
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    barrier()
    try:
        if is_main and failure is None:
            _finish(folder, temporary, replaced, about, expected)
    except OSError as error:
        failure = error
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    barrier()
    if failure is not None:
        raise failure
    if not folder.is_dir():
        raise OSError(f"the main process could not write {folder}")


def _finish(folder: Path, temporary: Path, replaced: Path, about: dict[str, Any], expected: Sequence[str]) -> None:
    missing = [name for name in expected if not (temporary / name).exists()]
    if missing:
        raise OSError(f"another process could not write {missing[0]}")
    files = {
        path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "crc32": _checksum(path)}
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    write_json(temporary / MANIFEST, {**about, "files": files})
    flush_folder(temporary)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    flush_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def locate(folder: Path) -> Path:
    """The state folder, or the one it was about to replace if the program ended in just that moment.

    Raises UserError when there is neither, or when it holds no state.
    """
    replaced = _beside(folder, "old")
    if not folder.exists() and (replaced / MANIFEST).exists():
        return replaced
    if not folder.is_dir():
        raise UserError(f"The state folder '{folder}' does not exist.", "resume", _others(folder))
    if not any((folder / name).exists() for name in (MANIFEST, WEIGHTS, OLD_WEIGHTS)):
        raise UserError(f"'{folder}' holds no training state.", "resume", _others(folder))
    return folder


def _others(folder: Path) -> str:
    """Names of whole states beside the one that cannot be used."""
    if not folder.parent.is_dir():
        return ""
    names = sorted(path.parent.name for path in folder.parent.glob(f"*-state/{MANIFEST}") if path.parent != folder)
    return f"Whole states beside it: {', '.join(names[-5:])}." if names else ""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of one of our states, every file checked against it; None for a state of another program.

    Raises UserError when a file is missing or was changed or cut off.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_json(folder / MANIFEST)
    for name, known in manifest.get("files", {}).items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            trouble = f"{name} is missing"
        elif size != known["bytes"]:
            trouble = f"{name} has {size} bytes instead of {known['bytes']}"
        elif _checksum(path) != known["crc32"]:
            trouble = f"{name} was changed"
        else:
            continue
        raise UserError(f"The training state '{folder}' is damaged: {trouble}.", "resume", _others(folder))
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.", "resume") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not what was expected.", "resume")
    return content


def read_weights_of(folder: Path) -> dict[str, Tensor]:
    """The network weights of a state folder, from either of accelerate's file names. Raises UserError."""
    path = folder / WEIGHTS
    try:
        if path.exists():
            return load_file(str(path), device="cpu")
        loaded: dict[str, Tensor] = torch.load(folder / OLD_WEIGHTS, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise UserError(f"The weights in '{folder}' cannot be read: {_reason(error)}.", "resume") from error
    return loaded


def read_torch(path: Path) -> Any:
    """A file of torch.save, restricted to data. Raises UserError when it is damaged or holds code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise UserError(f"'{path}' cannot be read: {_reason(error)}.", "resume") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds code instead of data"
    return str(error).strip().split("\n")[0].rstrip(".")
