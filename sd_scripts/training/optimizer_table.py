"""The optimizers known by name: one row each, and which packages may be named by a dotted path.

Nothing is imported until an optimizer is asked for: bitsandbytes alone takes seconds.
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from sd_scripts.schema.errors import UserError


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer.

    `rules` names the special treatment: "" none, "adafactor", "one_rate" (finds its own rate: one learning rate, near
    1, for all groups), "schedule_free" (the learning rate scheduler is left out). `preset` are arguments used where
    --optimizer_args gives none, `fixed` are always passed and not part of the printed arguments.
    """

    name: str
    module: str
    cls: str
    rules: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


# Import name -> what to write behind `pip install`.
PACKAGES: Mapping[str, str] = {
    "torch": "torch",
    "transformers": "transformers",
    "bitsandbytes": "bitsandbytes",
    "lion_pytorch": "lion-pytorch",
    "dadaptation": "dadaptation",
    "prodigyopt": "prodigyopt",
    "prodigyplus": "prodigy-plus-schedule-free",
    "schedulefree": "schedulefree",
    "pytorch_optimizer": "pytorch-optimizer",
    "came_pytorch": "came-pytorch",
}

_BNB = "bitsandbytes.optim"
_DADAPT = "dadaptation"
_TRIAL = "dadaptation.experimental"
_MOMENTUM: Mapping[str, Any] = {"momentum": 0.9}
_NESTEROV: Mapping[str, Any] = {"nesterov": True}

ENTRIES: tuple[OptimizerEntry, ...] = (
    OptimizerEntry("AdamW", "torch.optim", "AdamW"),
    OptimizerEntry("AdamW8bit", _BNB, "AdamW8bit"),
    OptimizerEntry("PagedAdamW", _BNB, "PagedAdamW"),
    OptimizerEntry("PagedAdamW8bit", _BNB, "PagedAdamW8bit"),
    OptimizerEntry("PagedAdamW32bit", _BNB, "PagedAdamW32bit"),
    OptimizerEntry("Lion", "lion_pytorch", "Lion"),
    OptimizerEntry("Lion8bit", _BNB, "Lion8bit"),
    OptimizerEntry("PagedLion8bit", _BNB, "PagedLion8bit"),
    OptimizerEntry("SGDNesterov", "torch.optim", "SGD", preset=_MOMENTUM, fixed=_NESTEROV),
    OptimizerEntry("SGDNesterov8bit", _BNB, "SGD8bit", preset=_MOMENTUM, fixed=_NESTEROV),
    OptimizerEntry("DAdaptation", _TRIAL, "DAdaptAdamPreprint", "one_rate"),
    OptimizerEntry("DAdaptAdamPreprint", _TRIAL, "DAdaptAdamPreprint", "one_rate"),
    OptimizerEntry("DAdaptAdaGrad", _DADAPT, "DAdaptAdaGrad", "one_rate"),
    OptimizerEntry("DAdaptAdam", _DADAPT, "DAdaptAdam", "one_rate"),
    OptimizerEntry("DAdaptAdan", _DADAPT, "DAdaptAdan", "one_rate"),
    OptimizerEntry("DAdaptAdanIP", _TRIAL, "DAdaptAdanIP", "one_rate"),
    OptimizerEntry("DAdaptLion", _DADAPT, "DAdaptLion", "one_rate"),
    OptimizerEntry("DAdaptSGD", _DADAPT, "DAdaptSGD", "one_rate"),
    OptimizerEntry("Prodigy", "prodigyopt", "Prodigy", "one_rate"),
    OptimizerEntry("AdaFactor", "transformers.optimization", "Adafactor", "adafactor"),
    OptimizerEntry("RAdamScheduleFree", "schedulefree", "RAdamScheduleFree", "schedule_free"),
    OptimizerEntry("AdamWScheduleFree", "schedulefree", "AdamWScheduleFree", "schedule_free"),
    OptimizerEntry("SGDScheduleFree", "schedulefree", "SGDScheduleFree", "schedule_free"),
)
_BY_NAME: Mapping[str, OptimizerEntry] = {entry.name.lower(): entry for entry in ENTRIES}

# torch.optim classes that cannot train a network here, and why.
_UNFIT: Mapping[str, str] = {
    "LBFGS": "evaluates the loss several times a step and takes one parameter group only",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "takes two-dimensional weights only",
    "Optimizer": "is the base of all optimizers, not one itself",
}


def _unknown(name: str) -> UserError:
    known = [entry.name for entry in ENTRIES]
    near = difflib.get_close_matches(name.lower(), [item.lower() for item in known], n=1)
    wanted = f"Did you mean {_BY_NAME[near[0]].name}? " if near else ""
    return UserError(
        f"There is no optimizer '{name}'.",
        "optimizer_type",
        f"{wanted}Known are {', '.join(known)}, every class of torch.optim as written there, and dotted paths.",
    )


def find(name: str, allow_plugins: bool = False) -> OptimizerEntry:
    """The row for an --optimizer_type: a known name in any case, a class of torch.optim, or a dotted path.

    Raises UserError for an unknown name, or a dotted path into a package that is not in `PACKAGES` while
    `allow_plugins` is off.
    """
    if not name:
        return _BY_NAME["adamw"]
    if name.lower() in _BY_NAME:
        return _BY_NAME[name.lower()]
    if "." not in name:
        if name in _UNFIT:
            raise UserError(f"The optimizer {name} {_UNFIT[name]}, so it cannot be used here.", "optimizer_type")
        if not _is_optimizer(getattr(importlib.import_module("torch.optim"), name, None)):
            raise _unknown(name)
        return OptimizerEntry(name, "torch.optim", name)
    module, _, cls = name.rpartition(".")
    if module.split(".")[0] not in PACKAGES and not allow_plugins:
        raise UserError(
            f"optimizer_type '{name}' is code outside the known packages ({', '.join(PACKAGES)}).",
            "optimizer_type",
            "Add --allow_plugins if you trust it.",
        )
    return OptimizerEntry(name, module, cls, _rules_of(module, cls))


def _rules_of(module: str, cls: str) -> str:
    """The special rules of a class that also has a row, when it is named by its path."""
    top = module.split(".")[0]
    for entry in ENTRIES:
        if entry.cls == cls and entry.module.split(".")[0] == top and entry.rules:
            return entry.rules
    return "schedule_free" if cls.lower().endswith("schedulefree") else ""


def _is_optimizer(found: object) -> bool:
    return inspect.isclass(found) and issubclass(found, Optimizer) and found is not Optimizer


def load_class(entry: OptimizerEntry) -> type[Optimizer]:
    """Import the optimizer's class.

    Raises UserError with the install line when the package is missing, and when the path names no optimizer.
    """
    top = entry.module.split(".")[0]
    package = PACKAGES.get(top, top)
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        # A package that is there but lacks the module is a wrong path; advice to install it would mislead.
        if isinstance(error, ModuleNotFoundError) and error.name not in (None, top) and entry.name not in _names():
            raise UserError(f"optimizer_type '{entry.name}': {error}.", "optimizer_type") from error
        raise UserError(
            f"The optimizer {entry.name} needs the package {package}, but it cannot be imported: {error}.",
            "optimizer_type",
            f"Install it with: pip install {package}",
        ) from error
    found: Any = getattr(module, entry.cls, None)
    if not _is_optimizer(found):
        raise UserError(f"'{entry.module}.{entry.cls}' is not an optimizer class.", "optimizer_type")
    made: type[Optimizer] = found
    return made


def _names() -> set[str]:
    return {entry.name for entry in ENTRIES}
