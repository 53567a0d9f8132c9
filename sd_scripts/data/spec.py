"""What a run trains on, described: data sets and their subsets, made once and never changed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_scripts.schema.buckets import Bucketing
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.dataset_kinds import Kind


def bucket_step_multiple(command: str) -> int:
    """What sides of buckets must be multiples of, in pixels: SDXL's U-Net halves a latent twice."""
    return 32 if COMMANDS[command].family == "sdxl" else 8


@dataclass(frozen=True)
class SubsetSpec:
    """One folder or metadata file of pictures that are treated alike.

    kind: where captions come from; conditioning_data_dir: one more picture for each, a loss mask or a control picture;
    face_crop_aug_range: least and most size of the crop in faces; place: file and table that describe it, where there
    is one. The other names are those of the options.
    """

    kind: Kind
    image_dir: Path | None
    num_repeats: int
    captions: CaptionRules
    caption_extension: str = ".caption"
    class_tokens: str | None = None
    is_reg: bool = False
    metadata_file: Path | None = None
    conditioning_data_dir: Path | None = None
    conditioning_must_match: bool = False
    flip_aug: bool = False
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    alpha_mask: bool = False
    cache_info: bool = False
    resize_interpolation: str | None = None
    custom_attributes: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two subsets the same."""
        if self.kind == "finetune":
            return str(self.metadata_file), ""
        return str(self.image_dir), str(self.conditioning_data_dir or "")

    @property
    def name(self) -> str:
        """Last part of the folder or metadata file, for tables and metadata."""
        path = self.metadata_file if self.kind == "finetune" else self.image_dir
        return os.path.basename(os.path.normpath(path)) if path is not None else ""

    @property
    def cacheable(self) -> bool:
        """Whether a picture looks the same at every use, so that it needs to be encoded only once."""
        return not (self.color_aug or self.random_crop)


@dataclass(frozen=True)
class DatasetSpec:
    """Subsets that share batches, and how these are made. resolution is None only with a metadata file that has it."""

    subsets: tuple[SubsetSpec, ...]
    batch_size: int
    bucketing: Bucketing | None
    network_multiplier: float = 1.0
    prior_loss_weight: float = 1.0
    validation_split: float = 0.0
    validation_seed: int | None = None

    @property
    def kind(self) -> Kind:
        """Kind of all its subsets."""
        return self.subsets[0].kind


@dataclass(frozen=True)
class PluginSpec:
    """A data set class of somebody else: dotted path, values for its constructor, whether it may be imported."""

    name: str
    arguments: Mapping[str, Any]
    allowed: bool


@dataclass(frozen=True)
class Blueprint:
    """All data sets of a run. source: the file or folder it was made from; masks: whether conditioning pictures are
    loss masks (else control pictures); warnings: sentences to show before training; plugin: a class that supplies
    the batches instead of data sets.
    """

    datasets: tuple[DatasetSpec, ...]
    source: str
    masks: bool = True
    cache_latents: bool = False
    cache_to_disk: bool = False
    skip_cache_check: bool = False
    warnings: tuple[str, ...] = ()
    plugin: PluginSpec | None = None

    @property
    def from_file(self) -> bool:
        """Whether a description file was given (metadata then lists the data sets)."""
        return Path(self.source).suffix.lower() in (".toml", ".json") and Path(self.source).is_file()
