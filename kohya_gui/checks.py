"""The plan: what a run will do, and everything that stands in its way, all at once and each beside its field."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui import command, confinement, dataset_view, estimate, findings, machine
from kohya_gui.dataset_view import DatasetView, Problem
from kohya_gui.estimate import Write, bytes_text, number_text, time_text
from kohya_gui.paths import Roots
from kohya_gui.settings import SpeedHistory
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete, fields, find_command
from sd_scripts.schema.rules import check
from sd_scripts.schema.steps import StepPlan, plan_steps

__all__ = ["PlanView", "Problem", "plan"]

_SPARE_BYTES = 500_000_000
_METHODS = {
    "full": "the whole model",
    "embedding": "Textual Inversion",
    "xti": "Textual Inversion (XTI)",
    "controlnet": "ControlNet",
    "lllite": "ControlNet-LLLite",
}
_VERSIONS = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}


@dataclass(frozen=True)
class PlanView:
    """What a run will do. `lines` are (label, text) pairs to show; `problems` errors first.

    `steps` and `epochs` are 0 while they cannot be told; `images` counts training pictures, `buckets` showings by size.
    `plan` is the command (None while none can be made), `seconds` the time expected from past jobs.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    steps: int = 0
    epochs: int = 0
    images: int = 0
    buckets: dict[Size, int] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    plan: command.Plan | None = None
    dataset: DatasetView | None = None
    seconds: float | None = None

    @property
    def can_start(self) -> bool:
        """Whether nothing stops the run."""
        return self.plan is not None and not any(problem.severity == "error" for problem in self.problems)


def plan(
    command_name: str,
    values: Mapping[str, Any],
    roots: Roots | None = None,
    *,
    history: SpeedHistory | None = None,
    allow_plugins: bool = False,
) -> PlanView:
    """Work out what these values would do. Never raises for what people can type; `problems` says it.

    Args:
        command_name: key of COMMANDS.
        values: the form's values; a missing key means the default.
        roots: folders the page may touch; paths outside are refused and not looked at. None allows all.
        history: speeds of past jobs, for the time.
        allow_plugins: as for `command.build`.
    """
    built, usable, problems = _build(command_name, values, allow_plugins)
    right = not problems
    full = complete(command_name, usable)
    if built is not None:
        # prompts typed into the form become a file of the job, which is not there yet
        trainer = command.trainer(command_name, usable)
        full |= {key: value for key, value in built.toml.items() if not (built.files and key == "sample_prompts")}
        problems += [Problem(f.severity, f.key, f.message, f.hint) for f in check(trainer, built.toml)]
    path_keys = tuple(key for key, option in fields(command_name).items() if option.kind in ("file", "folder", "model"))
    refused = confinement.refused(full, path_keys, roots)
    problems += refused.values()
    seen = {key: None if key in refused else value for key, value in full.items()}
    seen = confinement.absolute(seen, path_keys)
    found = find_command(command_name)
    seen["sdxl"] = bool(seen.get("sdxl")) or found.family == "sdxl"  # the switch, or a trainer for nothing else
    dataset = _dataset(seen, command.trainer(command_name, usable), roots, problems)
    for find in (findings.base_model, findings.other_files, findings.output, findings.samples, findings.packages):
        problems += find(seen)
    problems += findings.devices(seen)
    length = _length(seen, dataset)
    version = _version(seen)
    size = estimate.file_size(seen, version)
    written = estimate.writes(seen, length.total_steps, length.epochs, size) if length.total_steps else []
    problems += _disk(seen, written)
    expected = history.seconds(seen, length.total_steps) if history is not None and length.total_steps else None
    lines = [("Training", _training(seen, version, found.method)), *_lines(seen, dataset, length, written)]
    if expected is not None:
        runs = "the last similar job" if expected[1] == 1 else f"the last {expected[1]} similar jobs"
        lines.append(("Time", f"about {time_text(expected[0])}, as {runs} of this machine"))
    lines += [("Note", note) for note in (built.notes if built else [])]
    return PlanView(
        lines=lines,
        problems=_sorted(problems),
        steps=length.total_steps,
        epochs=length.epochs,
        images=dataset.images,
        buckets=dataset.buckets,
        writes=written,
        plan=built if right else None,
        dataset=dataset,
        seconds=expected[0] if expected else None,
    )


def _build(
    name: str, values: Mapping[str, Any], allow_plugins: bool
) -> tuple[command.Plan | None, dict[str, Any], list[Problem]]:
    """The command of the values that can be used, these values, and what is wrong with the others."""
    usable = {key: value for key, value in values.items() if value is not None}
    problems: list[Problem] = []
    # each wrong value hides what comes after it, so it is taken out and the rest looked at again
    while True:
        try:
            built = command.build(name, usable, allow_plugins=allow_plugins)
        except UserError as error:
            problems.append(Problem("error", error.key, error.message, error.hint))
            if error.key is None or error.key not in usable:
                return None, {}, problems
            usable.pop(error.key)
            continue
        return built, command.typed(name, usable), problems


def _dataset(values: Mapping[str, Any], trainer: str, roots: Roots | None, problems: list[Problem]) -> DatasetView:
    """The pictures; what is wrong with them or with their description is added to the problems."""
    wrong = findings.dataset_file(values, trainer)
    problems += wrong
    # of a file that cannot be used nothing is counted
    nothing = dict.fromkeys(("dataset_config", "train_data_dir", "reg_data_dir"))
    dataset = confinement.datasets(dataset_view.view({**values, **nothing} if wrong else values), roots)
    problems += [] if wrong else dataset.problems
    problems += findings.captions(dataset, "dataset_config" if values.get("dataset_config") else "train_data_dir")
    return dataset


def _length(values: Mapping[str, Any], dataset: DatasetView) -> StepPlan:
    try:
        return plan_steps(
            dataset.batches,
            batch_size=int(values["train_batch_size"]),
            max_train_steps=int(values["max_train_steps"]),
            max_train_epochs=int(values["max_train_epochs"]) if values.get("max_train_epochs") else None,
            processes=int(values["num_processes"]),
            accumulation=int(values["gradient_accumulation_steps"]),
        )
    except (ZeroDivisionError, ValueError):
        return StepPlan(0, 0, 0, 0, 0)


def _version(values: Mapping[str, Any]) -> str:
    text = str(values.get("pretrained_model_name_or_path") or "")
    found = findings.model_facts(text).version if text and not findings.is_hub_id(text) else "unknown"
    if found == "unknown" and values.get("sdxl"):
        return "sdxl"
    if found == "unknown":
        return "sd2" if values.get("v2") or "stable-diffusion-2" in text else "sd1"
    return found


def _lines(
    values: Mapping[str, Any], dataset: DatasetView, length: StepPlan, written: list[Write]
) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if dataset.images:
        lonely = len(dataset.lonely)
        odd = f" ({lonely} with one picture)" if lonely else ""
        buckets = f"{len(dataset.buckets)} bucket{'s' if len(dataset.buckets) != 1 else ''}{odd}"
        found = sum(folder.captions for folder in dataset.folders if not folder.regularisation)
        lines.append(
            (
                "Pictures",
                f"{dataset.images:,} ({found:,} with captions), {dataset.shown:,} showings an epoch, {buckets}",
            )
        )
    if length.total_steps:
        unit = "epoch" if length.epochs == 1 else "epochs"
        text = f"{length.total_steps:,} steps, {length.epochs:,} {unit} of {length.steps_per_epoch:,}"
        batch = length.total_batch_size
        lines.append(("Length", f"{text}; {batch} picture{'s' if batch != 1 else ''} a step"))
    lines.append(("Rates", _rates(values)))
    if written:
        final = next(item for item in reversed(written) if not item.state)
        others = len(written) - 1
        total = sum(item.size for item in written if item.size) if all(item.size for item in written) else None
        more = f" + {others} more" if others else ""
        lines.append(("Writes", f"{final.name}{more}, about {bytes_text(total)}" if total else f"{final.name}{more}"))
    return lines


def _training(values: Mapping[str, Any], version: str, method: str) -> str:
    kind = str(values.get("LoRA_type")) if method == "network" else _METHODS[method]
    rank = f" rank {values['network_dim']}" if values.get("network_dim") else ""
    precision = {"no": "32 bits"}.get(str(values["mixed_precision"]), str(values["mixed_precision"]))
    where = "GPU" if machine.has_gpu() else "processor"
    name = "LoRA" if kind == "Standard" else kind
    return f"{_VERSIONS.get(version, version)} · {name}{rank} · {precision} on the {where}"


def _rates(values: Mapping[str, Any]) -> str:
    general = float(values["learning_rate"])
    unet = general if values.get("unet_lr") is None else float(values["unet_lr"])
    text = values.get("text_encoder_lr") or [general]
    parts = []
    if not values.get("network_train_text_encoder_only"):
        parts.append(f"U-Net {number_text(unet)}")
    if not values.get("network_train_unet_only"):
        parts.append("text encoder " + ", ".join(number_text(float(rate)) for rate in text))
    schedule = str(values.get("lr_scheduler_type") or values["lr_scheduler"]).replace("_", " ")
    return f"{' · '.join(parts)} · {schedule} · {values.get('optimizer_type') or 'AdamW'}"


def _disk(values: Mapping[str, Any], written: list[Write]) -> list[Problem]:
    folder = str(values.get("output_dir") or "")
    free = machine.free_bytes(Path(os.path.abspath(folder))) if folder else None
    needed = sum(item.size or 0 for item in written)
    if free is None:
        return []
    if free < needed:
        text = f"The run writes about {bytes_text(needed)}, but {bytes_text(free)} are free."
        return [Problem("error", "output_dir", text, "Save less often, keep fewer files, or choose another disk.")]
    if free < needed + _SPARE_BYTES:
        return [Problem("warning", "output_dir", f"Only {bytes_text(free)} are free on the disk.", "Free some space.")]
    return []


def _sorted(problems: list[Problem]) -> list[Problem]:
    unique: dict[tuple[str, str | None, str, str], Problem] = {}
    for problem in problems:
        unique.setdefault((problem.severity, problem.key, problem.message, problem.hint), problem)
    return sorted(unique.values(), key=lambda problem: problem.severity != "error")
