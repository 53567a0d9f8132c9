"""Data sets: pictures registered with their repeats, sorted into buckets, in the order of every epoch."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from sd_scripts.data.bucket import BatchOrder, BucketCount
from sd_scripts.data.cache import cache_group
from sd_scripts.data.config import Blueprint, DatasetSpec, SubsetSpec
from sd_scripts.data.foreign import load_foreign
from sd_scripts.data.records import ImageRecord, Records
from sd_scripts.data.report import dataset_facts, report_rows, tag_frequency
from sd_scripts.data.subset import FoundSubset, find_images
from sd_scripts.data.text_cache import Encode, TextCache, cache_text
from sd_scripts.schema.buckets import Bucketer, Bucketing, Size
from sd_scripts.schema.captions import Replacements
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.steps import balance_regularisation, set_aside


@dataclass
class Dataset:
    """Pictures that share batches. Buckets are (size, pictures with repeats), ascending by size."""

    spec: DatasetSpec
    subsets: list[FoundSubset]
    records: Records
    seed: int
    validation: bool = False
    buckets: list[BucketCount] = field(init=False)
    order: BatchOrder = field(init=False)

    def __post_init__(self) -> None:
        members = self.records.members()
        self.buckets = [BucketCount(size, len(part)) for size, part in zip(self.records.bucket_sizes, members)]
        self.order = BatchOrder(members, self.spec.batch_size, self.seed)

    def __len__(self) -> int:
        return len(self.order)

    def subset_of(self, record: ImageRecord) -> SubsetSpec:
        """Description of the subset a picture belongs to."""
        return self.subsets[record.subset].spec

    @property
    def num_train_images(self) -> int:
        """Training pictures with repeats, regularisation not counted."""
        return self.records.shown([not subset.spec.is_reg for subset in self.subsets])

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures with the repeats asked for, before balancing."""
        return sum(len(s.images) * s.spec.num_repeats for s in self.subsets if s.spec.is_reg)

    def has_masks(self, conditioning_masks: bool) -> bool:
        """Whether any picture may have a loss mask; `conditioning_masks`: conditioning pictures are such masks."""
        specs = [subset.spec for subset in self.subsets]
        return any(s.alpha_mask or (conditioning_masks and s.conditioning_data_dir is not None) for s in specs)

    @property
    def mean_ar_error(self) -> float:
        """Mean difference between the shapes of pictures and their buckets, every picture counted once."""
        return self.records.mean_ar_error


@dataclass
class DatasetGroup:
    """All data sets of a run together; their batches are numbered through.

    seed: training seed, from which all draws of batches follow; validation: fixed order, no augmentation;
    foreign: batches of a `dataset_class` in the place of data sets; replacements: done to every caption, see
    `schema.captions.compose`; text_cache: outputs of the text encoders once they are cached.
    """

    blueprint: Blueprint
    datasets: list[Dataset]
    seed: int
    validation: bool = False
    warnings: list[str] = field(default_factory=list)
    foreign: Sequence[Any] | None = None
    replacements: Replacements = ()
    text_cache: TextCache | None = None

    def __len__(self) -> int:
        return self.batches_per_epoch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch for all processes together."""
        return sum(len(dataset) for dataset in self.datasets) if self.foreign is None else len(self.foreign)

    @property
    def images(self) -> int:
        """Number of different pictures registered."""
        return sum(len(dataset.records) for dataset in self.datasets)

    @property
    def repeated_images(self) -> int:
        """Pictures of one epoch, repeats and regularisation included."""
        if self.foreign is not None:
            return len(self.foreign) * self.batch_size
        return sum(bucket.count for dataset in self.datasets for bucket in dataset.buckets)

    @property
    def num_train_images(self) -> int:
        """Training pictures with repeats."""
        return sum(dataset.num_train_images for dataset in self.datasets)

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures with the repeats asked for."""
        return sum(dataset.num_reg_images for dataset in self.datasets)

    @property
    def batch_size(self) -> int:
        """Batch size of a device; the largest where data sets differ."""
        if self.blueprint.plugin is not None:
            return int(self.blueprint.plugin.arguments["batch_size"])
        return max(dataset.spec.batch_size for dataset in self.datasets)

    @property
    def buckets(self) -> list[BucketCount]:
        """Buckets of all data sets with their pictures, repeats included."""
        return [bucket for dataset in self.datasets for bucket in dataset.buckets]

    @property
    def cacheable(self) -> bool:
        """Whether every picture looks the same at every use."""
        return all(subset.spec.cacheable for dataset in self.datasets for subset in dataset.subsets)

    @property
    def latents_in_memory(self) -> bool:
        """Whether batches need no file at all."""
        if self.foreign is not None or (self.text_cache is not None and self.text_cache.memory is None):
            return False
        return all(dataset.records.all_latents_in_memory for dataset in self.datasets)

    def report(self) -> list[dict[str, Any]]:
        """One row a subset: dataset, folder, repeats, images, captions, class_tokens, reg."""
        return report_rows(self)

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """How often each tag stands in the captions of each folder."""
        return tag_frequency(self)

    def facts(self) -> list[dict[str, Any]]:
        """One entry a data set, as `ss_datasets` lists them in the metadata of trained files."""
        return dataset_facts(self)

    def locate(self, index: int) -> tuple[Dataset, int]:
        """Data set and number inside it of a batch of the group."""
        for dataset in self.datasets:
            if index < len(dataset):
                return dataset, index
            index -= len(dataset)
        raise IndexError(f"batch {index} beyond the last one")

    def cache_latents(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        to_disk: bool = False,
        batch_size: int = 1,
        device: Any = "cpu",
        process_index: int = 0,
        num_processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
        wait: Callable[[], None] | None = None,
        on_machine: tuple[int, int] | None = None,
        family: str = "sd",
        encoder_id: str = "",
    ) -> int:
        """Encode every picture once and keep the latents, in memory or in files beside the pictures.

        Args:
            encode: pixels [B, 3, H, W] in -1..1 on `device` -> unscaled latents [B, C, h, w].
            to_disk: files are read where they are there and still right, written where not. Processes share the work;
                `wait` is called before the others' files are used.
            on_machine: this process among those of its machine, and their number. What is not on this machine's disks
                after that is made by them.
            progress: is told pictures done and pictures in all.
            family: model family in the file names ("sd", "sdxl").
            encoder_id: anything that names the VAE; latents of another one are made again.

        Returns:
            Number of pictures that were encoded here.

        Raises:
            UserError: the pictures change from use to use, or the VAE gives NaN.
        """
        return cache_group(
            self,
            encode,
            to_disk=to_disk,
            batch_size=batch_size,
            device=device,
            process_index=process_index,
            num_processes=num_processes,
            progress=progress,
            wait=wait,
            on_machine=on_machine,
            family=family,
            encoder_id=encoder_id,
        )

    def cache_text_outputs(
        self,
        encode: Encode,
        *,
        to_disk: bool = False,
        batch_size: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
        wait: Callable[[], None] | None = None,
        on_machine: tuple[int, int] | None = None,
        encoder_id: str = "",
        max_token_length: int | None = None,
    ) -> int:
        """Encode every caption once and keep the outputs, in memory or in files beside the pictures.

        `encode` gives for each caption its outputs by name, float32; outputs of another `encoder_id` or
        `max_token_length` are made again; the rest is as in `cache_latents`. Set `replacements` before.

        Returns the number of captions that were encoded here. Raises UserError where captions change from use to use.
        """
        self.text_cache, encoded = cache_text(
            self,
            encode,
            to_disk=to_disk,
            batch_size=batch_size,
            process_index=process_index,
            num_processes=num_processes,
            progress=progress,
            wait=wait,
            on_machine=on_machine,
            encoder_id=encoder_id,
            max_token_length=max_token_length,
        )
        return encoded


def dataset_seed(seed: int) -> int:
    """Seed of the batch order that follows from the training seed."""
    return random.Random(seed).randint(0, 2**31)


def build(blueprint: Blueprint, seed: int) -> tuple[DatasetGroup, DatasetGroup | None]:
    """Data sets for training and, where validation_split is set, for validation (else None).

    Reads names, headers and captions; no pixels. Raises DataError naming the folder or file that cannot be used.
    """
    if blueprint.plugin is not None:
        plugin = blueprint.plugin
        offered = dict(plugin.arguments) | {"seed": seed}
        group = DatasetGroup(blueprint, [], seed, foreign=load_foreign(plugin.name, offered, plugin.allowed))
        return group, None
    found: dict[Any, FoundSubset] = {}
    train, validation, warnings = [], [], list(blueprint.warnings)
    for spec in blueprint.datasets:
        subsets = []
        for subset in spec.subsets:
            key = (subset.identity, subset.caption_extension, subset.captions, subset.class_tokens, subset.is_reg)
            if key not in found:
                found[key] = find_images(subset)
                warnings += found[key].warnings
            subsets.append(replace(found[key], spec=subset))
        kept, aside = _split(spec, subsets, seed)
        train.append(_dataset(spec, kept, dataset_seed(seed), warnings))
        if any(len(subset.images) for subset in aside):
            validation.append(_dataset(_still(spec), aside, dataset_seed(seed), warnings, validation=True))
        elif spec.validation_split > 0:
            warnings.append("validation_split sets no picture aside: the folders are too small for it")
    group = DatasetGroup(blueprint, train, seed, warnings=list(dict.fromkeys(warnings)))
    if not group.repeated_images:
        raise DataError(
            f"no pictures to train with in {blueprint.source}",
            key="train_data_dir",
            hint="Pictures are png, jpg, jpeg, webp, bmp or avif files.",
        )
    return group, DatasetGroup(blueprint, validation, seed, validation=True) if validation else None


def _still(spec: DatasetSpec) -> DatasetSpec:
    """The same without validation's own split, for the data set that is only measured."""
    return replace(spec, validation_split=0.0)


def _still_subset(subset: SubsetSpec) -> SubsetSpec:
    """A subset shown once, always alike: losses of different moments can then be compared."""
    rules = replace(
        subset.captions,
        shuffle_caption=False,
        enable_wildcard=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0,
    )
    return replace(subset, num_repeats=1, captions=rules, flip_aug=False, color_aug=False, random_crop=False)


def _split(spec: DatasetSpec, subsets: Sequence[FoundSubset], seed: int) -> tuple[list[FoundSubset], list[FoundSubset]]:
    """Subsets to train and subsets to measure. Regularisation pictures are all trained."""
    if spec.validation_split <= 0:
        return list(subsets), []
    choice = seed if spec.validation_seed is None else spec.validation_seed
    train, aside = [], []
    for subset in subsets:
        if subset.spec.is_reg:
            train.append(subset)
            continue
        kept, measure = set_aside(len(subset.images), spec.validation_split, choice)
        train.append(replace(subset, images=subset.images.take(kept)))
        measured = subset.images.take(measure)
        aside.append(replace(subset, spec=_still_subset(subset.spec), images=measured, warnings=[]))
    return train, aside


def _dataset(
    spec: DatasetSpec, subsets: list[FoundSubset], seed: int, warnings: list[str], validation: bool = False
) -> Dataset:
    regular = [number for number, subset in enumerate(subsets) if subset.spec.is_reg]
    chosen = [
        _rows(number, subset, np.full(len(subset.images), subset.spec.num_repeats))
        for number, subset in enumerate(subsets)
        if not subset.spec.is_reg
    ]
    target = sum(len(rows) * subsets[rows[0, 0]].spec.num_repeats for rows in chosen if len(rows))
    asked = [subsets[number].spec.num_repeats for number in regular for _ in range(len(subsets[number].images))]
    balanced = np.array(balance_regularisation(target, asked), dtype=np.int32)
    unused = int((balanced == 0).sum())
    if unused:
        warnings.append(f"{unused} of {len(asked)} regularisation pictures are not needed and left out")
    start = 0
    for number in regular:
        end = start + len(subsets[number].images)
        rows = _rows(number, subsets[number], balanced[start:end])
        chosen.append(rows[rows[:, 2] > 0])
        start = end
    images = [subset.images for subset in subsets]
    rows = np.concatenate(chosen) if chosen else np.zeros((0, 3), dtype=np.int32)
    records = Records(images, rows, _bucketer(spec, subsets), prescribed=spec.bucketing is None)
    return Dataset(spec, subsets, records, seed, validation)


def _rows(number: int, subset: FoundSubset, repeats: np.ndarray) -> np.ndarray:
    """int32 [n, 3]: number of the subset, number of the picture in it, repeats."""
    count = len(subset.images)
    return np.stack([np.full(count, number), np.arange(count), repeats], axis=1).astype(np.int32)


def _bucketer(spec: DatasetSpec, subsets: Sequence[FoundSubset]) -> Bucketer:
    if spec.bucketing is not None:
        return Bucketer(spec.bucketing)
    sizes: set[Size] = set()
    for images in (subset.images for subset in subsets if len(subset.images)):
        found = images.buckets
        if found is None or not found.all():
            raise _no_resolution()
        sizes.update((width, height) for width, height in np.unique(found, axis=0).tolist())
    if not sizes:
        raise _no_resolution()
    bucketer = Bucketer(Bucketing((64, 64), True))
    bucketer.use_sizes(sizes)
    return bucketer


def _no_resolution() -> DataError:
    return DataError(
        "resolution is not given, and the metadata file does not name train_resolution for every picture.",
        key="resolution",
    )
