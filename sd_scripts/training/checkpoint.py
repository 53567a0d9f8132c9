"""Saving the whole state of a training, so that it can go on as if it had never been interrupted."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.naming import last_stem
from sd_scripts.tensorfile import write_safetensors, write_torch
from sd_scripts.training import rng, state_files
from sd_scripts.training.notice import Notice
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.spread_state import SHARDS, WRITTEN, Shards, Whole, check_shards, load_whole

FORMAT, VERSION = "kohya-gui training state", 1
# Never written into a state: it may be copied to others.
_SECRET = ("wandb_api_key", "huggingface_token")
# Options that change nothing about how the weights develop.
_HARMLESS = (
    "resume", "output_", "save_", "sample_", "log", "console_", "wandb_", "huggingface_", "metadata_", "no_metadata",
    "training_comment", "max_train_", "config_file", "job_dir", "plan_only", "async_upload", "persistent_",
    "max_data_loader_", "cache_latents", "vae_batch_size", "skip_cache_check", "initial_", "skip_until_", "validat",
    "max_validation_", "ddp_timeout", "lowram", "highvram", "allow_plugins", "debug_dataset",
)  # fmt: skip


class Stateful(Protocol):
    """Anything with a state that JSON or torch.save can hold.

    `load_state_dict` may return sentences on what is not as it was, so that the run cannot go on exactly.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take the state over."""


@dataclass
class StateParts:
    """The living parts of a run.

    module: what is trained, not wrapped by accelerate; scheduler: wrapped or not; scaler: the loss scaler, if one is
    used; loader: its state must fit into JSON; whole or shards: where weights or optimizer are spread over processes.
    """

    module: nn.Module
    created: CreatedOptimizer
    scheduler: Stateful
    scaler: Any | None = None
    loader: Stateful | None = None
    whole: Whole | None = None
    shards: Shards | None = None


@dataclass
class LoadedState:
    """What a state said apart from what was put into the parts.

    progress: what `save_state` was given, None for another program's state; step: finished optimizer steps, if known;
    exact: the run can go on bit for bit; processes: how many wrote it, if known. Random streams need no putting back:
    every batch starts them anew.
    """

    folder: Path
    progress: dict[str, Any] | None
    step: int | None
    exact: bool
    processes: int | None = None
    notices: list[Notice] = field(default_factory=list)


def save_state(
    folder: Path,
    parts: StateParts,
    progress: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    process_index: int = 0,
    num_processes: int = 1,
    gather: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda own: [own],
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write a state folder; every process calls it at the same place. It is whole or absent.

    The first process writes, so the others need not see its disks; only of `shards` each writes its own.

    Args:
        folder: where; one of that name is replaced.
        parts: the parts of the run, in training mode.
        progress: the loop's own numbers, for JSON; "step" and "epoch" among them.
        options: all option values, to tell later what was changed; secrets are left out.
        facts: figures that must be the same on resuming, such as the number of pictures.
        process_index, num_processes: this process among all.
        gather: every process's dict, in their order, in the first process at least.
        barrier: waits for all processes; needed where there are `shards`.

    Raises:
        OSError: the disk refuses; an older state of that name is then still there.
    """
    is_main = process_index == 0
    source = parts.whole or parts.shards
    weights = source.weights() if source else _tensors(parts.module)
    optimizer = parts.whole.optimizer() if parts.whole else None
    streams = gather(rng.capture())
    if not is_main and parts.shards is None:
        return folder
    about = _about(parts, progress, options or {}, facts or {}, num_processes)
    written = [f"{SHARDS}/{WRITTEN}{index}" for index in range(num_processes)] if parts.shards else []
    with state_files.writing(folder, is_main, barrier if parts.shards else lambda: None, about, written) as inside:
        if parts.shards:
            parts.shards.write(inside / SHARDS)
            (inside / SHARDS / f"{WRITTEN}{process_index}").touch()
        if is_main:
            write_safetensors(inside / state_files.WEIGHTS, weights)
            if not parts.shards:
                write_torch(inside / state_files.OPTIMIZER, optimizer or parts.created.optimizer.state_dict())
            write_torch(inside / state_files.SCHEDULER, parts.scheduler.state_dict())
            if parts.scaler is not None:
                write_torch(inside / state_files.SCALER, parts.scaler.state_dict())
            short = {"current_epoch": int(progress.get("epoch", 0)), "current_step": int(progress.get("step", 0))}
            state_files.write_json(inside / state_files.PROGRESS, short)
            for index, stream in enumerate(streams):  # we never read them; accelerate does
                write_torch(inside / state_files.random_states_name(index), stream)
    return folder


def _about(
    parts: StateParts,
    progress: Mapping[str, Any],
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    num_processes: int,
) -> dict[str, Any]:
    """What the manifest says of a state, apart from its files."""
    shown = {key: value for key, value in options.items() if key not in _SECRET}
    return {
        "format": FORMAT,
        "version": VERSION,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
        "processes": num_processes,
        "shards": parts.shards is not None,
        "optimizer": parts.created.name,
        "groups": [[name, len(group["params"])] for name, group in _named_groups(parts.created)],
        "scheduler": _scheduler_name(parts.scheduler),
        "progress": dict(progress),
        "loader": parts.loader.state_dict() if parts.loader is not None else None,
        "facts": dict(facts),
        "options": {key: _plain(value) for key, value in shown.items()},
    }


def _named_groups(created: CreatedOptimizer) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(created.group_names, created.optimizer.param_groups))


def _scheduler_name(scheduler: Any) -> str:
    return type(getattr(scheduler, "scheduler", scheduler)).__name__  # accelerate keeps the real one inside


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def load_state(
    folder: Path,
    parts: StateParts,
    *,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    num_processes: int = 1,
) -> LoadedState:
    """Put a saved state into the parts.

    States of sd-scripts and accelerate are read as far as weights, optimizer and scheduler go.

    Raises:
        UserError: no state, a damaged one, or one that does not fit this network or optimizer.
    """
    place = state_files.locate(folder)
    manifest = state_files.read_manifest(place)
    if manifest is not None:
        _check_kind(place, manifest, parts, num_processes)
    notices: list[Notice] = []
    if parts.shards:
        parts.shards.read(place / SHARDS)
    elif parts.whole:
        load_whole(place, parts.whole)
    else:
        _load_weights(place, parts.module, notices)
        _load_optimizer(place, parts.created)
    _load_scheduler(place, parts.scheduler, manifest)
    if parts.scaler is not None and (place / state_files.SCALER).exists():
        parts.scaler.load_state_dict(state_files.read_torch(place / state_files.SCALER))
    if manifest is None:
        return _foreign(place, notices)
    if parts.loader is not None and manifest.get("loader") is not None:
        differing = parts.loader.load_state_dict(manifest["loader"]) or []
        notices += [Notice("state_changed", f"{text[0].upper()}{text[1:]}.", "", "resume") for text in differing]
    notices += _differences(manifest, options or {}, facts or {}, num_processes)
    return LoadedState(
        folder=place,
        progress=dict(manifest["progress"]),
        step=manifest["progress"].get("step"),
        exact=not notices,
        processes=manifest.get("processes"),
        notices=notices,
    )


def _check_kind(folder: Path, manifest: Mapping[str, Any], parts: StateParts, num_processes: int) -> None:
    if manifest.get("format") != FORMAT:
        raise UserError(f"'{folder}' holds no training state of this program.", "resume")
    if int(manifest.get("version", 0)) > VERSION:
        raise UserError(f"The training state '{folder}' was written by a newer version.", "resume", "Update first.")
    check_shards(folder, manifest, parts.shards is not None, num_processes)
    saved = manifest.get("optimizer")
    if saved != parts.created.name:
        raise UserError(
            f"The training state was saved with the optimizer {saved}, but now it is {parts.created.name}.",
            "optimizer_type",
            "Choose the same optimizer, or start anew with network_weights.",
        )
    groups = [[name, len(group["params"])] for name, group in _named_groups(parts.created)]
    if manifest.get("groups") != groups:
        before, now = (", ".join(f"{name} ({count})" for name, count in item) for item in (manifest["groups"], groups))
        raise UserError(
            f"The training state trains {before}, but now it is {now}.", "resume", "Use the same settings as before."
        )


def _load_weights(folder: Path, module: nn.Module, notices: list[Notice]) -> None:
    saved, own = state_files.read_weights_of(folder), _tensors(module)
    lacking, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    for names, text in ((lacking, "lacks"), (surplus, "has besides")):
        if names:
            raise UserError(
                f"The training state '{folder}' is of another network: it {text} {names[0]} ({len(names)} in all).",
                "resume",
                "Use the same network settings as before.",
            )
    for name, tensor in own.items():
        if saved[name].shape != tensor.shape:
            shapes = f"{tuple(saved[name].shape)} instead of {tuple(tensor.shape)}"
            raise UserError(
                f"The training state is of another network: {name} is {shapes}.", "resume", "Same network_dim?"
            )
    if any(saved[name].dtype != tensor.dtype for name, tensor in own.items()):
        notices.append(Notice("state_precision", "The state's weights have another number format.", "", "full_bf16"))
    module.load_state_dict(saved, strict=False)


def _load_optimizer(folder: Path, created: CreatedOptimizer) -> None:
    """Load the optimizer's state with the very types it was saved in.

    torch casts state to the type of the parameter, which would round the 32-bit state of 16-bit parameters.
    """
    saved = state_files.read_torch(folder / state_files.OPTIMIZER)
    optimizer = created.optimizer
    params = [param for group in optimizer.param_groups for param in group["params"]]
    try:
        order = [number for group in saved["param_groups"] for number in group["params"]]
        _check_shapes(saved["state"], dict(zip(order, params)))
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"The optimizer state in '{folder}' does not fit: {error}.", "resume", "Use the same settings as before."
        ) from error
    for number, param in zip(order, params):
        for name, value in saved["state"].get(number, {}).items():
            loaded = optimizer.state[param].get(name)
            if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[param][name] = value.to(loaded.device, copy=True)


def _check_shapes(state: Mapping[int, Mapping[str, Any]], params: Mapping[int, Tensor]) -> None:
    for number, values in state.items():
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = values.get(name)
            if isinstance(value, Tensor) and value.dim() > 1 and value.shape != params[number].shape:
                raise ValueError(f"{name} is {tuple(value.shape)} for weights of {tuple(params[number].shape)}")


def _load_scheduler(folder: Path, scheduler: Stateful, manifest: Mapping[str, Any] | None) -> None:
    now = _scheduler_name(scheduler)
    if manifest is not None and manifest.get("scheduler") != now:
        raise UserError(
            f"The training state has a scheduler of the kind {manifest.get('scheduler')}, but now it is {now}.",
            "lr_scheduler",
            "Choose the same scheduler as before.",
        )
    try:
        state = state_files.read_torch(folder / state_files.SCHEDULER)
        if manifest is None and isinstance(state.get("last_epoch"), int):
            # Other programs step the scheduler once a process; there is one file of random states for each of them.
            state["last_epoch"] //= max(1, len(list(folder.glob(state_files.random_states_name("*")))))
        scheduler.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The scheduler state in '{folder}' does not fit: {error}.", "resume") from error


def _foreign(folder: Path, notices: list[Notice]) -> LoadedState:
    """The rest of a state that sd-scripts or accelerate wrote."""
    step = None
    if (folder / state_files.PROGRESS).exists():
        step = state_files.read_json(folder / state_files.PROGRESS).get("current_step")
    message = (
        "The state was written by another program: weights, optimizer and scheduler go on, the order of pictures not."
    )
    notices.append(Notice("state_foreign", message, "", "resume"))
    return LoadedState(folder, None, step if isinstance(step, int) else None, False, notices=notices)


def _differences(
    manifest: Mapping[str, Any], options: Mapping[str, Any], facts: Mapping[str, Any], num_processes: int
) -> list[Notice]:
    """What is not as it was when the state was saved, where that matters for the result."""
    found = []
    saved = manifest.get("options", {})
    for key in sorted(options):
        if key in saved and not key.startswith(_HARMLESS) and key not in _SECRET and saved[key] != _plain(options[key]):
            found.append(f"{key} was {saved[key]}, now {_plain(options[key])}")
    for key, value in manifest.get("facts", {}).items():
        if key in facts and facts[key] != value:
            found.append(f"{key} was {value}, now {facts[key]}")
    if manifest.get("processes") != num_processes:
        found.append(f"processes were {manifest.get('processes')}, now {num_processes}")
    if not found:
        return []
    message = f"Not as when the state was saved: {'; '.join(found)}. The training goes on, but not as it would have."
    return [Notice("state_changed", message, "Learning rates of the state are kept.", "resume")]


def pointer_path(output_dir: Path, output_name: str | None) -> Path:
    """The small file that names the newest state of a run."""
    return output_dir / f"{last_stem(output_name)}.latest-state.json"


def point_to(state: Path, output_name: str | None, step: int) -> None:
    """Note that `state` is the newest; call it after the state was written."""
    content = {"state": state.name, "step": step}
    state_files.write_json(pointer_path(state.parent, output_name), content)


def latest_state(output_dir: Path, output_name: str | None) -> Path | None:
    """The newest whole state of a run: the one pointed to, else the one with the most steps; None if there is none."""
    pointer = pointer_path(output_dir, output_name)
    if pointer.exists():
        named = output_dir / Path(str(state_files.read_json(pointer).get("state", ""))).name
        if (named / state_files.MANIFEST).exists():
            return named
    stem = last_stem(output_name)
    best: tuple[int, float, Path] | None = None
    for manifest in output_dir.glob(f"*-state/{state_files.MANIFEST}"):
        folder = manifest.parent
        if output_name and not folder.name.startswith((f"{stem}-", f"{stem}-step")):
            continue
        step = int(state_files.read_json(manifest).get("progress", {}).get("step", 0))
        candidate = (step, manifest.stat().st_mtime, folder)
        best = candidate if best is None or candidate[:2] > best[:2] else best
    return best[2] if best else None


def resolve_resume(resume: str, output_dir: str | None, output_name: str | None) -> Path:
    """The folder that --resume means: a path, or `latest` for the newest state of this output name.

    Raises UserError when `latest` finds none.
    """
    if resume != "latest" or Path(resume).exists():
        return Path(resume)
    found = latest_state(Path(output_dir or "."), output_name)
    if found is None:
        raise UserError(f"There is no saved state of '{last_stem(output_name)}' in '{output_dir}'.", "resume")
    return found
