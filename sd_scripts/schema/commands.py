"""The commands, the sections of options each one takes, and the objects that their options become."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .dataset import CaptionOptions, DatasetOptions
from .finding import Finding
from .gui import GuiOptions
from .launcher import LauncherOptions
from .logging import LoggingOptions
from .loss import LossOptions
from .model import ModelOptions
from .network import NetworkOptions
from .networkargs import NetworkArgsOptions
from .optimizer import OptimizerOptions
from .run import RunOptions
from .sampling import SamplingOptions
from .saving import SavingOptions
from .training import TrainingOptions
from .validation import ValidationOptions


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one run, section by section. Nothing writes to it after parsing.

    `given` are the keys that were set on the command line or in the file; `warnings` are doubts about them that did not
    stop the run.
    """

    command: str = ""
    given: frozenset[str] = frozenset()
    warnings: tuple[Finding, ...] = ()

    def values(self) -> dict[str, Any]:
        """All options as one flat mapping from key to value."""
        flat: dict[str, Any] = {}
        for name in section_classes(type(self)):
            part = getattr(self, name)
            flat.update({entry.name: getattr(part, entry.name) for entry in dataclasses.fields(part)})
        return flat


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What every trainer takes."""

    model: ModelOptions = field(default_factory=ModelOptions)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True, kw_only=True)
class TrainNetworkConfig(TrainConfig):
    """What the trainer of LoRA and its relatives takes."""

    network: NetworkOptions = field(default_factory=NetworkOptions)


def section_classes(config: type[Config]) -> dict[str, type]:
    """The sections of a config class: attribute -> section class."""
    own = {entry.name for entry in dataclasses.fields(Config)}
    hints = typing.get_type_hints(config)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(config) if entry.name not in own}


@dataclass(frozen=True)
class Command:
    """A trainer: its script, the family and method it stands for, and its options."""

    name: str
    module: str
    family: str
    method: str
    config: type[Config]
    form: Mapping[str, type] = field(default_factory=dict)

    @cached_property
    def sections(self) -> dict[str, type]:
        """Attribute on the config object -> section class, in order."""
        return section_classes(self.config)


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            name="train_network",
            module="sd_scripts/train_network.py",
            family="sd",
            method="network",
            config=TrainNetworkConfig,
            form={"launcher": LauncherOptions, "network_args": NetworkArgsOptions, "gui": GuiOptions},
        ),
    )
}
