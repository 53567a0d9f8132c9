"""Making the optimizer that the options ask for, with the special rules some of them need."""

import ast
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training.notice import Notice
from sd_scripts.training.optimizer_table import OptimizerEntry, find, load_class

# Self-adapting optimizers multiply their own estimate by the rate; below this it is surely a rate meant for AdamW.
_LOW_FOR_ONE_RATE = 0.1


@dataclass
class CreatedOptimizer:
    """An optimizer and what the rest of the run must know about it.

    `name` is `module.Class` and `args` the arguments as text, both as sd-scripts writes them into metadata.
    `relative_step` says that Adafactor chooses the rate itself, starting near `initial_lr`; `schedule_free` that no
    scheduler may change the rate. `notices` are to be shown.
    """

    optimizer: Optimizer
    name: str
    args: str
    group_names: list[str]
    initial_lr: float
    rules: str = ""
    relative_step: bool = False
    notices: list[Notice] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The text of `ss_optimizer`: module.Class(key=value,...)."""
        return f"{self.name}({self.args})" if self.args else self.name

    @property
    def schedule_free(self) -> bool:
        """True if the learning rate scheduler is to be left out."""
        return self.rules == "schedule_free"

    @property
    def switches(self) -> bool:
        """True if training and evaluation use different weights (schedule-free optimizers)."""
        return callable(getattr(self.optimizer, "train", None)) and callable(getattr(self.optimizer, "eval", None))

    def train_mode(self) -> None:
        """Put the weights in place that gradients are taken at. Harmless for other optimizers."""
        if self.switches:
            self.optimizer.train()

    def eval_mode(self) -> None:
        """Put the averaged weights in place, the ones to save and to sample with."""
        if self.switches:
            self.optimizer.eval()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation weights inside the block, and afterwards the training weights exactly as they were.

        Switching back and forth rounds; the copies keep a run with samples equal, bit for bit, to one without.
        """
        if not self.switches:
            yield
            return
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        kept = [param.detach().clone() for param in params]
        self.eval_mode()
        try:
            yield
        finally:
            self.train_mode()
            with torch.no_grad():
                for param, value in zip(params, kept):
                    param.copy_(value)

    def learning_rates(self) -> dict[str, float]:
        """The present learning rate of each group by its name."""
        return {
            name: float(self.initial_lr if group["lr"] is None else group["lr"])
            for name, group in zip(self.group_names, self.optimizer.param_groups)
        }

    def adapted_rates(self) -> dict[str, float]:
        """For optimizers that find their own rate: their estimate d times the learning rate; else empty."""
        return {
            name: float(group["d"]) * float(group["lr"])
            for name, group in zip(self.group_names, self.optimizer.param_groups)
            if "d" in group
        }


def parse_arguments(items: Sequence[str] | None, key: str) -> dict[str, Any]:
    """`["betas=(0.9,0.99)", "decouple=True"]` -> values, read as Python literals and never run as code.

    Raises UserError naming the item that is no `key=value` or whose value is no literal.
    """
    values: dict[str, Any] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"{key}: '{item}' is not of the form key=value.", key)
        try:
            values[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise UserError(
                f"{key}: the value of '{item}' is not a number, True, False, None, a list or a quoted text.",
                key,
                f"A text needs quotes: {name.strip()}='{text.strip()}'" if text.strip().isidentifier() else "",
            ) from error
    return values


def wanted_type(options: OptimizerOptions) -> str:
    """--optimizer_type, or what the two older flags stand for.

    Raises UserError when they contradict each other.
    """
    old = [("use_8bit_adam", "AdamW8bit")] if options.use_8bit_adam else []
    old += [("use_lion_optimizer", "Lion")] if options.use_lion_optimizer else []
    if len(old) == 2:
        raise UserError("use_8bit_adam and use_lion_optimizer ask for two optimizers; give one.", "use_8bit_adam")
    if not old:
        return options.optimizer_type or ""
    flag, name = old[0]
    if options.optimizer_type and options.optimizer_type.lower() != name.lower():
        raise UserError(
            f"{flag} means optimizer_type {name}, but optimizer_type is {options.optimizer_type}.",
            flag,
            f"Leave {flag} out.",
        )
    return name


def _adafactor(
    options: OptimizerOptions, arguments: dict[str, Any], groups: list[dict[str, Any]]
) -> tuple[float | None, list[Notice]]:
    """Adafactor's rules; changes `arguments` and `groups`, returns the rate to pass."""
    notices = []
    arguments.setdefault("relative_step", True)
    if not arguments["relative_step"] and arguments.get("warmup_init"):
        notices.append(
            Notice(
                "adafactor_warmup_init",
                "Adafactor's warmup_init needs relative_step, so relative_step=True is used.",
                "Remove warmup_init=True to set the learning rate yourself.",
                "optimizer_args",
            )
        )
        arguments["relative_step"] = True
    if arguments["relative_step"]:
        for group in groups:
            group.pop("lr", None)
        notices.append(
            Notice(
                "adafactor_relative_step",
                "Adafactor chooses the learning rate itself; the given rates and scheduler are not used.",
                "Give relative_step=False in optimizer_args to set them.",
                "optimizer_args",
            )
        )
        return None, notices
    unusual = {
        "max_grad_norm": (options.max_grad_norm != 0.0, "max_grad_norm 0"),
        "lr_scheduler": (options.lr_scheduler != "constant_with_warmup", "lr_scheduler constant_with_warmup"),
        "optimizer_args": (arguments.get("clip_threshold", 1.0) != 1.0, "clip_threshold=1.0"),
    }
    for key, (differs, advice) in unusual.items():
        if differs:
            message = f"Adafactor with a set learning rate usually goes with {advice}."
            notices.append(Notice("adafactor_unusual", message, "", key))
    return options.learning_rate, notices


def _one_rate(groups: list[dict[str, Any]], rate: float, name: str) -> list[Notice]:
    """One learning rate for all groups: the first one's. These optimizers stop with an error otherwise."""
    rates = [group.get("lr", rate) for group in groups]
    notices = []
    if any(other != rates[0] for other in rates):
        shown = ", ".join(f"{value:g}" for value in rates)
        notices.append(
            Notice(
                "one_rate",
                f"{name} takes one learning rate for everything; of {shown} the first is used.",
                "Set unet_lr and text_encoder_lr to the same value.",
                "learning_rate",
            )
        )
        for group in groups:
            group["lr"] = rates[0]
    if rates[0] <= _LOW_FOR_ONE_RATE:
        notices.append(
            Notice(
                "low_rate",
                f"{name} finds the learning rate itself and multiplies it by the given {rates[0]:g}.",
                "1.0 is usual.",
                "learning_rate",
            )
        )
    return notices


def _build(
    entry: OptimizerEntry, groups: list[dict[str, Any]], rate: float | None, arguments: dict[str, Any]
) -> Optimizer:
    made = load_class(entry)
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"The optimizer {entry.name} evaluates the loss itself; that is not possible.", "optimizer_type"
        )
    taken = inspect.signature(made.__init__).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        foreign = [name for name in arguments if name not in taken or name in ("self", "params", "lr")]
        if foreign:
            allowed = ", ".join(name for name in taken if name not in ("self", "params", "lr"))
            raise UserError(
                f"optimizer_args: {entry.name} has no argument '{foreign[0]}'.", "optimizer_args", f"It has {allowed}."
            )
    fixed = {name: value for name, value in entry.fixed.items() if name not in arguments}
    try:
        return made(groups, lr=rate, **fixed, **arguments)
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"The optimizer {entry.name} refuses its arguments: {error}.", "optimizer_args") from error


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that come again."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def create(
    groups: Sequence[ParameterGroup], options: OptimizerOptions, *, allow_plugins: bool = False
) -> CreatedOptimizer:
    """Make the optimizer for these parameter groups and put it into training mode.

    Args:
        groups: what is trained; a group without a rate gets `learning_rate`.
        options: the optimizer section.
        allow_plugins: a dotted path into an unknown package may be imported.

    Raises:
        UserError: nothing to train, unknown name, missing package, arguments that cannot be read or are refused.
    """
    filled = [group for group in groups if group.params]
    if not filled:
        raise UserError("There is nothing to train: every learning rate is 0 or no module was chosen.", "learning_rate")
    entry = find(wanted_type(options), allow_plugins)
    given = parse_arguments(options.optimizer_args, "optimizer_args")
    # Given arguments come first in the printed text, added ones last.
    arguments = {**given, **{name: value for name, value in entry.preset.items() if name not in given}}
    made: list[dict[str, Any]] = [
        {**group.extra, "params": list(group.params), **({} if group.lr is None else {"lr": group.lr})}
        for group in filled
    ]
    rate: float | None = options.learning_rate
    notices: list[Notice] = []
    if entry.rules == "adafactor":
        rate, notices = _adafactor(options, arguments, made)
    elif entry.rules == "one_rate":
        notices = _one_rate(made, options.learning_rate, entry.name)
    optimizer = _build(entry, made, rate, arguments)
    created = CreatedOptimizer(
        optimizer=optimizer,
        name=f"{type(optimizer).__module__}.{type(optimizer).__name__}",
        args=",".join(f"{key}={value}" for key, value in arguments.items()),
        group_names=_distinct([group.name for group in filled]),
        initial_lr=options.learning_rate,
        rules=entry.rules,
        relative_step=rate is None,
        notices=notices,
    )
    created.train_mode()
    return created
