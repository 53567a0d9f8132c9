"""The plan: what a run will do, and everything that stands in its way, all at once and each beside its field."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_gui import command, dataset_view, estimate, findings, findings_method, findings_pictures, machine, plan_lines
from kohya_gui.counting import Counter
from kohya_gui.dataset_view import DatasetView
from kohya_gui.effective import Effective, understand
from kohya_gui.estimate import Write, bytes_text
from kohya_gui.forecast import Forecast
from kohya_gui.model_kind import SWITCHES, detect
from kohya_gui.paths import Roots
from kohya_gui.problem import Problem
from kohya_gui.speeds import SpeedHistory
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.rules import check
from sd_scripts.schema.steps import StepPlan, plan_steps
from sd_scripts.schema.tabs import tab_of

__all__ = ["PlanView", "Problem", "pictures", "plan", "with_forecast"]

_SPARE_BYTES = 500_000_000
# what kohya_ss's switches are called on this form
_SHOWN_AS = dict.fromkeys(SWITCHES, "model_family")


@dataclass(frozen=True)
class PlanView:
    """What a run will do. `lines` are (label, text) pairs to show; `problems` errors first.

    `steps` and `epochs` are 0 while they cannot be told; `images` counts training pictures, `buckets` showings by size.
    `plan` is the command (None while none can be made), `seconds` the time expected from past jobs. `counting` says
    that the pictures are still being looked through. `values` are those that the command has.
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
    counting: bool = False
    trainer: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

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
    counter: Counter | None = None,
) -> PlanView:
    """Work out what these values would do. Never raises for what people can type; `problems` says it.

    Args:
        command_name: key of COMMANDS: the trainer, or the tab's command.
        values: the form's values; a missing key means the default.
        roots: folders the page may touch; paths outside are refused and not looked at. None allows all.
        history: speeds of past jobs, for the time.
        allow_plugins: as for `command.build`.
        counter: looks through many pictures in the background; without one the plan waits for them.
    """
    what = understand(command_name, values, roots, allow_plugins=allow_plugins)
    problems = [*what.problems, *_rules(what)]
    dataset, counting = pictures(what, counter)
    problems += _of_pictures(what, dataset, problems)
    length = _length(what.seen, dataset)
    written = _writes(what, length)
    problems += _findings(what, dataset, written)
    problems += _disk(what.seen, written)
    expected = None
    if history is not None and length.total_steps:
        expected = history.seconds(what.full, length.total_steps, what.trainer)
    return PlanView(
        lines=plan_lines.lines(what, dataset, length, written, expected, counting=counting, timed=history is not None),
        problems=_sorted(problems),
        steps=length.total_steps,
        epochs=length.epochs,
        images=dataset.images,
        buckets=dataset.buckets,
        writes=written,
        plan=what.built if what.right else None,
        dataset=dataset,
        seconds=expected[0] if expected else None,
        counting=counting,
        trainer=what.trainer,
        values=what.seen,
    )


def _rules(what: Effective) -> Iterator[Problem]:
    if what.built is not None:
        allowed = command.PLUGINS[0] in what.built.argv
        for found in check(what.trainer, {**what.built.toml, "allow_plugins": allowed}):
            if what.prepares and found.key == "in_json":
                continue  # it is made before the training
            yield Problem(found.severity, _SHOWN_AS.get(found.key or "", found.key), found.message, found.hint)


def pictures(what: Effective, counter: Counter | None = None) -> tuple[DatasetView, bool]:
    """The pictures of these values, and whether they are still being counted: then nothing is known of them yet."""
    values = {**what.seen, "prepares": what.prepares}
    if counter is None:
        return dataset_view.view(values, what.trainer, what.allowed), False
    found = counter.look(values, what.trainer, what.allowed)
    return (found, False) if found is not None else (DatasetView(), True)


def _of_pictures(what: Effective, dataset: DatasetView, before: list[Problem]) -> Iterator[Problem]:
    """What is wrong with the pictures; of a field that has an error already nothing more is said."""
    said = {problem.key for problem in before if problem.severity == "error"}
    needs_control = what.method in ("controlnet", "lllite")
    for problem in (*dataset.problems, *findings_pictures.pictures(dataset, what.seen, needs_control)):
        if problem.key not in said or problem.severity != "error":
            yield problem


def _findings(what: Effective, dataset: DatasetView, written: list[Write]) -> Iterator[Problem]:
    seen = dict(what.seen)
    if what.prepares:
        seen["in_json"] = None
    final = next((item.name for item in reversed(written) if not item.state), "")
    yield from _of_model(what, seen)
    yield from findings.other_files(seen)
    yield from findings.output(seen, final)
    yield from findings.samples(seen)
    yield from findings.packages(seen)
    yield from findings.devices(seen)
    yield from findings_method.resolution(seen, what.family)
    yield from findings_method.precision(seen, what.family)
    if what.method in ("embedding", "xti"):
        yield from findings_method.new_word(seen, dataset)


def _of_model(what: Effective, seen: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the base model; where the trainer takes no such model, the choice of the family is no help."""
    family = detect(str(seen.get("pretrained_model_name_or_path") or "")) or what.family
    refused = list(findings_method.family_fits(seen, what.trainer, family))
    tab = tab_of(what.tab_command)
    if what.tab_command == tab.command and len(tab.commands) > 1 and what.method != "xti":
        refused = []  # another trainer of the tab takes it
    yield from refused
    for problem in findings.base_model(seen, what.family):
        if not (refused and problem.key == "model_family"):
            yield problem


def _length(values: Mapping[str, Any], dataset: DatasetView) -> StepPlan:
    try:
        return plan_steps(
            dataset.batches,
            batch_size=dataset.batch_size,
            max_train_steps=int(values["max_train_steps"]),
            max_train_epochs=int(values["max_train_epochs"]) if values.get("max_train_epochs") else None,
            processes=int(values["num_processes"]),
            accumulation=max(int(values["gradient_accumulation_steps"]), 1),
        )
    except (ZeroDivisionError, ValueError, OverflowError):
        return StepPlan(0, 0, 0, 0, 0)


def _writes(what: Effective, length: StepPlan) -> list[Write]:
    if not length.total_steps:
        return []
    version = "sd2" if what.family == "sd2-v" else what.family
    size = estimate.file_size(what.seen, version, what.method)
    state = estimate.state_size(what.seen, version, what.method)
    lengths = length.total_steps, length.epochs, length.steps_per_epoch
    return estimate.writes(what.seen, lengths, size, state, what.method)


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


def with_forecast(view: PlanView, forecast: Forecast | None) -> PlanView:
    """The plan with what is known of its memory, and with what the trainer itself refused when it was asked."""
    if forecast is None:
        return view
    problems = _sorted([*view.problems, *forecast.problems(view.values)])
    lines = list(view.lines)
    at = next((number for number, (label, _) in enumerate(lines) if label == "Writes"), len(lines))
    line = forecast.line(view.values)
    if line:
        lines.insert(at, ("Memory", line))
    return replace(view, lines=lines, problems=problems)


def _sorted(problems: list[Problem]) -> list[Problem]:
    unique: dict[tuple[str, str | None, str, str], Problem] = {}
    for problem in problems:
        unique.setdefault((problem.severity, problem.key, problem.message, problem.hint), problem)
    return sorted(unique.values(), key=lambda problem: problem.severity != "error")
