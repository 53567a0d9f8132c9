"""The objects that a command's options become, section by section."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from .controlnet import ControlNetOptions, LLLiteOptions
from .dataset import CaptionOptions, DatasetOptions
from .embedding import EmbeddingOptions
from .finding import Finding
from .full import FullOptions
from .logging import LoggingOptions
from .loss import LossOptions
from .model import ModelOptions
from .network import NetworkOptions
from .optimizer import OptimizerOptions
from .run import RunOptions
from .sampling import SamplingOptions
from .saving import SavingOptions
from .textcache import TextCacheOptions
from .training import TrainingOptions
from .validation import ValidationOptions


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one run, section by section. Nothing writes to it after parsing.

    `given` are the keys that were set on the command line or in the file; `warnings` are doubts about them that did not
    stop the run. An option that the command does not offer has its default.
    """

    command: str = ""
    given: frozenset[str] = frozenset()
    warnings: tuple[Finding, ...] = ()

    def values(self) -> dict[str, Any]:
        """All options as one flat mapping from key to value, also those that the command does not offer."""
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
    text_cache: TextCacheOptions = field(default_factory=TextCacheOptions)
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
    """What the trainers of LoRA and its relatives take."""

    network: NetworkOptions = field(default_factory=NetworkOptions)


@dataclass(frozen=True, kw_only=True)
class TrainFullConfig(TrainConfig):
    """What the trainers of the whole model take."""

    full: FullOptions = field(default_factory=FullOptions)


@dataclass(frozen=True, kw_only=True)
class TrainEmbeddingConfig(TrainConfig):
    """What the trainers of Textual Inversion take."""

    embedding: EmbeddingOptions = field(default_factory=EmbeddingOptions)


@dataclass(frozen=True, kw_only=True)
class TrainControlNetConfig(TrainConfig):
    """What the trainer of ControlNets takes."""

    controlnet: ControlNetOptions = field(default_factory=ControlNetOptions)


@dataclass(frozen=True, kw_only=True)
class TrainLLLiteConfig(TrainConfig):
    """What the trainer of ControlNet-LLLite takes; of the network's options only rank, dropout and weights."""

    network: NetworkOptions = field(default_factory=NetworkOptions)
    lllite: LLLiteOptions = field(default_factory=LLLiteOptions)


def section_classes(config: type[Config]) -> dict[str, type]:
    """The sections of a config class: attribute -> section class, in order."""
    own = {entry.name for entry in dataclasses.fields(Config)}
    hints = typing.get_type_hints(config)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(config) if entry.name not in own}
