"""Learning rate schedulers by name. Every curve is a function of the step that multiplies each group's base rate.

Steps are counted as accelerate counts them: a prepared scheduler is stepped once per process at every optimizer step,
so a run of N steps on P processes covers N * P scheduler steps. Warm-up and decay given as a number of steps are not
multiplied (two processes pass through them in half the time, as in sd-scripts); given as a ratio they are.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training.notice import Notice
from sd_scripts.training.optimizers import CreatedOptimizer, parse_arguments

Curve = Callable[[int], float]
Ramp = Callable[[float], float]
# Packages whose schedulers may be named by a dotted path without --allow_plugins.
KNOWN_PACKAGES = ("torch", "transformers", "diffusers", "pytorch_optimizer")


@dataclass(frozen=True)
class Shape:
    """What a curve is made from: lengths in scheduler steps, and the arguments of this kind of curve."""

    total: int
    warmup: int
    decay: int
    base_lr: float
    extra: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or `default` where it is not given."""
        value = self.extra.get(name)
        return default if value is None else value

    def rising(self, step: int) -> float:
        """The straight line from 0 to 1 over the warm-up."""
        return step / max(1, self.warmup)

    def progress(self, step: int) -> float:
        """0 at the end of the warm-up, 1 at the end of the run."""
        return (step - self.warmup) / max(1, self.total - self.warmup)


def _wave(progress: float, cycles: float) -> float:
    """Cosine from 1 down, `cycles` whole waves long: half a wave ends at 0."""
    return 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * progress))


def _constant(shape: Shape) -> Curve:
    return lambda step: 1.0


def _constant_with_warmup(shape: Shape) -> Curve:
    return lambda step: shape.rising(step) if step < shape.warmup else 1.0


def _linear(shape: Shape) -> Curve:
    return lambda step: shape.rising(step) if step < shape.warmup else max(0.0, 1.0 - shape.progress(step))


def _cosine(shape: Shape) -> Curve:
    cycles = shape.get("num_cycles", 0.5)
    return lambda step: shape.rising(step) if step < shape.warmup else max(0.0, _wave(shape.progress(step), cycles))


def _cosine_with_restarts(shape: Shape) -> Curve:
    cycles = shape.get("num_cycles", 1)

    def curve(step: int) -> float:
        if step < shape.warmup:
            return shape.rising(step)
        progress = shape.progress(step)
        return 0.0 if progress >= 1.0 else max(0.0, _wave((cycles * progress) % 1.0, 0.5))

    return curve


def _polynomial(shape: Shape) -> Curve:
    power, last = shape.get("power", 1.0), shape.get("lr_end", 1e-7)
    if shape.base_lr <= last:
        raise UserError(
            f"lr_scheduler polynomial falls to {last:g}; learning_rate {shape.base_lr:g} is not above it.",
            "lr_scheduler",
        )

    def curve(step: int) -> float:
        if step < shape.warmup:
            return shape.rising(step)
        if step > shape.total:
            return last / shape.base_lr
        left = 1.0 - shape.progress(step)
        return ((shape.base_lr - last) * left**power + last) / shape.base_lr

    return curve


def _inverse_sqrt(shape: Shape) -> Curve:
    scale = shape.get("timescale") or shape.warmup or 10_000
    shift = scale - shape.warmup
    return lambda step: shape.rising(step) if step < shape.warmup else 1.0 / math.sqrt((step + shift) / scale)


def _floor_ratio(shape: Shape, name: str) -> float:
    if shape.get("min_lr") is not None:
        return float(shape.get("min_lr")) / shape.base_lr
    ratio = shape.get("min_lr_rate")
    if ratio is None:
        raise UserError(f"lr_scheduler {name} needs lr_scheduler_min_lr_ratio.", "lr_scheduler_min_lr_ratio")
    return float(ratio)


def _cosine_with_min_lr(shape: Shape) -> Curve:
    low, cycles = _floor_ratio(shape, "cosine_with_min_lr"), shape.get("num_cycles", 0.5)

    def curve(step: int) -> float:
        if step < shape.warmup:
            return shape.rising(step)
        return max(0.0, _wave(shape.progress(step), cycles) * (1.0 - low) + low)

    return curve


def _cosine_warmup_with_min_lr(shape: Shape) -> Curve:
    """As cosine_with_min_lr one step ahead: no step has the rate 0, and the warm-up may begin at `warmup_lr_rate`.

    The counting is that of transformers' schedule of this name.
    """
    low, cycles = _floor_ratio(shape, "cosine_warmup_with_min_lr"), shape.get("num_cycles", 0.5)
    start = shape.get("warmup_lr_rate")

    def curve(step: int) -> float:
        if step < shape.warmup:
            if start is None:
                return shape.rising(step + 1)
            return start + (1.0 - start) * step / max(1, shape.warmup - 1)
        return max(0.0, _wave(shape.progress(step + 1), cycles) * (1.0 - low) + low)

    return curve


def _warmup_stable_decay(shape: Shape) -> Curve:
    low, cycles = shape.get("min_lr_ratio", 0.0), shape.get("num_cycles", 0.5)
    stable_end = shape.total - shape.decay
    # Ways up from 0 to 1; the decay goes the same way backwards, a cosine decay in as many waves as num_cycles says.
    forms: dict[str, Ramp] = {
        "linear": lambda progress: progress,
        "cosine": lambda progress: _wave(1.0 - progress, 0.5),
        "1-sqrt": lambda progress: 1.0 - math.sqrt(1.0 - progress),
    }
    rise, fall = shape.get("warmup_type", "linear"), shape.get("decay_type", "cosine")
    for name, value in (("warmup_type", rise), ("decay_type", fall)):
        if value not in forms:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(forms)}.", "lr_scheduler_args")

    def curve(step: int) -> float:
        if step < shape.warmup:
            return forms[rise](shape.rising(step)) * (1.0 - low) + low
        if step < stable_end:
            return 1.0
        if step < shape.total:
            gone = (step - stable_end) / max(1, shape.decay)
            factor = _wave(gone, cycles) if fall == "cosine" else forms[fall](1.0 - gone)
            return max(0.0, factor * (1.0 - low) + low)
        return float(low)

    return curve


def _piecewise_constant(shape: Shape) -> Curve:
    """`step_rules="1:10,0.1:20,0.005"`: times 1 before step 10, times 0.1 before step 20, then times 0.005."""
    rules = shape.get("step_rules")
    if not isinstance(rules, str):
        raise UserError(
            "lr_scheduler piecewise_constant needs its rules.",
            "lr_scheduler_args",
            "Example: lr_scheduler_args step_rules='1:10,0.1:20,0.005'",
        )
    *pairs, rest = rules.split(",")
    try:
        limits = sorted((int(limit), float(factor)) for factor, limit in (pair.split(":") for pair in pairs))
        last = float(rest)
    except ValueError as error:
        raise UserError(
            f"step_rules '{rules}' cannot be read ({error}).", "lr_scheduler_args", "Example: '1:10,0.1:20,0.005'"
        ) from error
    return lambda step: next((factor for limit, factor in limits if step < limit), last)


@dataclass(frozen=True)
class Entry:
    """One scheduler name: its curve, where its arguments come from, and what else --lr_scheduler_args may give."""

    curve: Callable[[Shape], Curve]
    options: Mapping[str, Callable[[OptimizerOptions], Any]] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    warms_up: bool = True


def _half_cycles(options: OptimizerOptions) -> float:
    """These two count half waves: num_cycles 1 falls once."""
    return options.lr_scheduler_num_cycles / 2


_MIN_RATE: Mapping[str, Callable[[OptimizerOptions], Any]] = {
    "num_cycles": _half_cycles,
    "min_lr_rate": lambda options: options.lr_scheduler_min_lr_ratio,
}
ENTRIES: Mapping[str, Entry] = {
    "constant": Entry(_constant, warms_up=False),
    "constant_with_warmup": Entry(_constant_with_warmup),
    "linear": Entry(_linear),
    "cosine": Entry(_cosine, extra=("num_cycles",)),
    "cosine_with_restarts": Entry(_cosine_with_restarts, {"num_cycles": lambda given: given.lr_scheduler_num_cycles}),
    "polynomial": Entry(_polynomial, {"power": lambda options: options.lr_scheduler_power}, ("lr_end",)),
    "piecewise_constant": Entry(_piecewise_constant, extra=("step_rules",)),
    "inverse_sqrt": Entry(_inverse_sqrt, {"timescale": lambda options: options.lr_scheduler_timescale}),
    "cosine_with_min_lr": Entry(_cosine_with_min_lr, _MIN_RATE, ("min_lr",)),
    "cosine_warmup_with_min_lr": Entry(_cosine_warmup_with_min_lr, _MIN_RATE, ("min_lr", "warmup_lr_rate")),
    "warmup_stable_decay": Entry(
        _warmup_stable_decay,
        {"num_cycles": _half_cycles, "min_lr_ratio": lambda options: options.lr_scheduler_min_lr_ratio},
        ("warmup_type", "decay_type"),
    ),
}


class AdafactorLR(LRScheduler):
    """Shows the rates that Adafactor with relative_step chose; it changes nothing that Adafactor reads."""

    def __init__(self, optimizer: Optimizer, initial_lr: float) -> None:
        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Per group the rate of its first parameter, before the first step the initial rate."""
        rates = []
        for group, start in zip(self.optimizer.param_groups, self.base_lrs):
            state = self.optimizer.state.get(group["params"][0])
            rates.append(float(self.optimizer._get_lr(group, state)) if state else float(start))
        return rates


@dataclass
class CreatedScheduler:
    """A scheduler, the name for metadata (`cosine`, `adafactor:0.0001`), and notices to be shown."""

    scheduler: LRScheduler
    name: str
    notices: list[Notice] = field(default_factory=list)


def step_count(value: int | float | None, total: int, key: str) -> int:
    """A number of steps, or a ratio (0 < value < 1, a float) of `total`, as a number of scheduler steps.

    Raises UserError for negative numbers and for fractions above 1.
    """
    number = value or 0
    if number < 0:
        raise UserError(f"{key} is {number}; it must not be negative.", key)
    if number < 1:
        return int(number * total)
    if number != int(number):
        raise UserError(f"{key} is {number}; give whole steps, or a ratio below 1 of the whole run.", key)
    return int(number)


def create(
    created: CreatedOptimizer,
    options: OptimizerOptions,
    total_steps: int,
    *,
    allow_plugins: bool = False,
) -> CreatedScheduler:
    """Make the scheduler for an optimizer. It steps once an optimizer step, however many processes there are.

    Args:
        created: what `optimizers.create` made; Adafactor's relative step and schedule-free optimizers decide over
            --lr_scheduler.
        options: the optimizer section.
        total_steps: optimizer steps of the whole run.
        allow_plugins: --lr_scheduler_type may name a foreign package.

    Raises:
        UserError: unknown name, arguments that do not fit it, warm-up for a scheduler without one.
    """
    optimizer, total = created.optimizer, total_steps
    if created.relative_step:
        return CreatedScheduler(AdafactorLR(optimizer, created.initial_lr), f"adafactor:{created.initial_lr}")
    if created.schedule_free:
        return CreatedScheduler(LambdaLR(optimizer, _constant(_bare(total))), "constant", _ignored(options))
    if options.lr_scheduler_type:
        return _custom(optimizer, options, allow_plugins)
    name = options.lr_scheduler
    if name == "adafactor" or name.startswith("adafactor:"):
        raise UserError(
            "lr_scheduler adafactor goes with the optimizer AdaFactor and relative_step=True only.", "lr_scheduler"
        )
    entry = ENTRIES.get(name)
    if entry is None:
        raise UserError(f"There is no lr_scheduler '{name}'.", "lr_scheduler", _advice(name))
    given = parse_arguments(options.lr_scheduler_args, "lr_scheduler_args")
    allowed = (*entry.options, *entry.extra)
    foreign = [key for key in given if key not in allowed]
    if foreign:
        known = f"It has {', '.join(allowed)}." if allowed else "It has none."
        raise UserError(f"lr_scheduler {name} has no argument '{foreign[0]}'.", "lr_scheduler_args", known)
    warmup = step_count(options.lr_warmup_steps, total, "lr_warmup_steps")
    if warmup and not entry.warms_up:
        raise UserError(
            f"lr_warmup_steps is {options.lr_warmup_steps}, but lr_scheduler {name} has no warm-up.",
            "lr_warmup_steps",
            "Use lr_scheduler constant_with_warmup, or lr_warmup_steps 0.",
        )
    decay = step_count(options.lr_decay_steps, total, "lr_decay_steps")
    extra = {**{key: read(options) for key, read in entry.options.items()}, **given}
    shape = Shape(total, warmup, decay, options.learning_rate, extra)
    return CreatedScheduler(LambdaLR(optimizer, entry.curve(shape)), name, _over(warmup, decay, total))


def _bare(total: int) -> Shape:
    return Shape(total, 0, 0, 1.0, {})


def _advice(name: str) -> str:
    if name == "reduce_lr_on_plateau":
        return "It would need a validation loss at every step."
    return f"Known are {', '.join(ENTRIES)}; a class of torch.optim.lr_scheduler goes into lr_scheduler_type."


def _ignored(options: OptimizerOptions) -> list[Notice]:
    """Say it where settings have no effect beside a schedule-free optimizer."""
    if options.lr_scheduler in ("constant", "") and not options.lr_warmup_steps and not options.lr_scheduler_type:
        return []
    message = "A schedule-free optimizer takes no learning rate scheduler; lr_scheduler and lr_warmup_steps do nothing."
    return [Notice("schedule_free", message, "For a warm-up give warmup_steps=N in optimizer_args.", "lr_scheduler")]


def _over(warmup: int, decay: int, total: int) -> list[Notice]:
    if warmup + decay <= total:
        return []
    message = f"Warm-up ({warmup}) and decay ({decay}) are longer than the run ({total} scheduler steps)."
    return [Notice("warmup_too_long", message, "Lower lr_warmup_steps or lr_decay_steps.", "lr_warmup_steps")]


def _is_scheduler(found: object) -> bool:
    return inspect.isclass(found) and issubclass(found, LRScheduler) and found is not LRScheduler


def _custom(optimizer: Optimizer, options: OptimizerOptions, allow_plugins: bool) -> CreatedScheduler:
    """--lr_scheduler_type: a class of torch.optim.lr_scheduler, or module.Class; arguments from --lr_scheduler_args."""
    name = options.lr_scheduler_type
    if options.lr_warmup_steps:
        raise UserError(
            f"lr_warmup_steps has no effect on lr_scheduler_type {name}.", "lr_warmup_steps", "Set it to 0."
        )
    module, _, cls = name.rpartition(".")
    if module and module.split(".")[0] not in KNOWN_PACKAGES and not allow_plugins:
        raise UserError(
            f"lr_scheduler_type '{name}' is code outside the known packages ({', '.join(KNOWN_PACKAGES)}).",
            "lr_scheduler_type",
            "Add --allow_plugins if you trust it.",
        )
    try:
        found: Any = getattr(importlib.import_module(module or "torch.optim.lr_scheduler"), cls, None)
    except ImportError as error:
        raise UserError(f"lr_scheduler_type '{name}' cannot be imported: {error}.", "lr_scheduler_type") from error
    if not _is_scheduler(found):
        raise UserError(f"lr_scheduler_type '{name}' is no learning rate scheduler.", "lr_scheduler_type")
    if cls == "ReduceLROnPlateau":
        raise UserError(f"lr_scheduler_type {name} needs a validation loss at every step.", "lr_scheduler_type")
    arguments = parse_arguments(options.lr_scheduler_args, "lr_scheduler_args")
    try:
        return CreatedScheduler(found(optimizer, **arguments), name)
    except (TypeError, ValueError) as error:
        raise UserError(f"lr_scheduler_type {name} refuses its arguments: {error}.", "lr_scheduler_args") from error
