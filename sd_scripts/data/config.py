"""From options to a description of all data sets: the blueprint, made once and never changed.

Either class folders (`train_data_dir`, `reg_data_dir`), a metadata file (`in_json`), or a description file
(`dataset_config`, see config_file.py) say where the pictures are.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sd_scripts.data.config_file import DatasetTables, read_dataset_config
from sd_scripts.schema.buckets import Bucketing
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.folders import ClassFolder, ignored_entries, normalise_extension, scan_class_folders
from sd_scripts.schema.validation import ValidationOptions
from sd_scripts.schema.values import parse_face_crop_range, parse_resolution

Kind = Literal["dreambooth", "finetune", "controlnet"]
RULE_NAMES = tuple(CaptionRules.__dataclass_fields__)


@dataclass(frozen=True)
class SubsetSpec:
    """One folder or metadata file of pictures that are treated alike.

    kind: where captions come from; conditioning_data_dir: one more picture for each, a loss mask or a control picture;
    face_crop_aug_range: least and most size of the crop in faces. The other names are those of the options.
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


def build_blueprint(
    dataset: DatasetOptions,
    captions: CaptionOptions,
    validation: ValidationOptions,
    *,
    control_images: bool = False,
    allow_plugins: bool = False,
) -> Blueprint:
    """Blueprint from the options.

    Args:
        control_images: conditioning pictures steer the model (ControlNet) instead of masking the loss.
        allow_plugins: `dataset_class` may be imported.

    Raises:
        UserError: no pictures named, an option out of range, a key that is unknown in the description file.
    """
    if dataset.dataset_class:
        return _plugin(dataset, allow_plugins)
    fallback = _option_values(dataset, captions, validation)
    warnings: list[str] = []
    if dataset.dataset_config:
        path = Path(dataset.dataset_config)
        tables = read_dataset_config(path)
        if dataset.train_data_dir or dataset.reg_data_dir or dataset.in_json:
            warnings.append(f"{path.name} describes the data; train_data_dir, reg_data_dir and in_json are not used")
        specs = [_dataset_from_tables(t, fallback, dataset.prior_loss_weight) for t in tables]
        source = str(path)
    elif dataset.in_json:
        subset = {"metadata_file": dataset.in_json, "image_dir": dataset.train_data_dir}
        table = DatasetTables("finetune", (subset,), {}, {}, dataset.in_json)
        specs = [_dataset_from_tables(table, fallback, dataset.prior_loss_weight)]
        source = dataset.in_json
    else:
        specs = [_dataset_from_folders(dataset, fallback, warnings)]
        source = str(dataset.train_data_dir)
    specs = [spec for spec in (_without_useless(spec, warnings) for spec in specs) if spec.subsets]
    if not specs:
        raise DataError(f"{source} names no pictures to train with", key="train_data_dir")
    _check_caching(dataset, specs)
    for spec in specs:
        _advise(spec, dataset.cache_latents or dataset.cache_latents_to_disk, warnings)
    on_disk = dataset.cache_latents_to_disk
    return Blueprint(
        tuple(specs),
        source,
        not control_images,
        dataset.cache_latents or on_disk,
        on_disk,
        dataset.skip_cache_check,
        tuple(warnings),
    )


def _plugin(dataset: DatasetOptions, allowed: bool) -> Blueprint:
    arguments = {
        "resolution": parse_resolution(dataset.resolution) if dataset.resolution else None,
        "batch_size": dataset.train_batch_size,
        "debug_dataset": dataset.debug_dataset,
    }
    name = str(dataset.dataset_class)
    return Blueprint((), name, plugin=PluginSpec(name, arguments, allowed))


def _option_values(dataset: DatasetOptions, captions: CaptionOptions, validation: ValidationOptions) -> dict[str, Any]:
    """The command line's values under the names of the description file."""
    values: dict[str, Any] = {name: getattr(captions, name) for name in RULE_NAMES}
    same = (
        "enable_bucket bucket_no_upscale bucket_reso_steps min_bucket_reso max_bucket_reso resize_interpolation "
        "flip_aug color_aug random_crop alpha_mask cache_info conditioning_data_dir"
    )
    values |= {name: getattr(dataset, name) for name in same.split()}
    values["caption_extension"] = captions.caption_extention or captions.caption_extension
    values["batch_size"] = dataset.train_batch_size
    values["num_repeats"] = dataset.dataset_repeats
    values["resolution"] = parse_resolution(dataset.resolution) if dataset.resolution else None
    values["face_crop_aug_range"] = parse_face_crop_range(dataset.face_crop_aug_range)
    values["validation_split"] = validation.validation_split
    values["validation_seed"] = validation.validation_seed
    return values


class _Values:
    """Looks a key up in several tables, the first that has it wins; only a missing key or None falls through."""

    def __init__(self, *tables: Mapping[str, Any]) -> None:
        self._tables = tables

    def get(self, key: str, default: Any = None) -> Any:
        return next((t[key] for t in self._tables if t.get(key) is not None), default)

    def path(self, key: str) -> Path | None:
        value = self.get(key)
        return Path(value) if value else None


def _dataset_from_tables(tables: DatasetTables, fallback: Mapping[str, Any], prior: float) -> DatasetSpec:
    # folders are only ever named by a subset itself, not by the command line
    below = {key: value for key, value in fallback.items() if key != "conditioning_data_dir"}
    subsets = [
        _subset(
            tables.kind, _Values(table, tables.dataset, tables.general, below), must_match=tables.kind == "controlnet"
        )
        for table in tables.subsets
    ]
    return _dataset(subsets, _Values(tables.dataset, tables.general, below), prior)


def _subset(kind: Kind, values: _Values, *, must_match: bool = False) -> SubsetSpec:
    face = values.get("face_crop_aug_range")
    return SubsetSpec(
        kind=kind,
        image_dir=values.path("image_dir"),
        num_repeats=values.get("num_repeats", 1),
        captions=CaptionRules(**{n: values.get(n, CaptionRules.__dataclass_fields__[n].default) for n in RULE_NAMES}),
        caption_extension=normalise_extension(values.get("caption_extension", ".caption")),
        class_tokens=values.get("class_tokens"),
        is_reg=values.get("is_reg", False),
        metadata_file=values.path("metadata_file"),
        conditioning_data_dir=values.path("conditioning_data_dir"),
        conditioning_must_match=must_match,
        flip_aug=values.get("flip_aug", False),
        color_aug=values.get("color_aug", False),
        random_crop=values.get("random_crop", False),
        face_crop_aug_range=tuple(face) if face else None,
        alpha_mask=values.get("alpha_mask", False),
        cache_info=values.get("cache_info", False),
        resize_interpolation=values.get("resize_interpolation"),
        custom_attributes=values.get("custom_attributes", {}),
    )


def _dataset(subsets: Sequence[SubsetSpec], values: _Values, prior_loss_weight: float) -> DatasetSpec:
    resolution = values.get("resolution")
    bucketing = None
    if resolution is not None:
        bucketing = Bucketing(
            resolution,
            values.get("enable_bucket", False),
            values.get("min_bucket_reso", 256),
            values.get("max_bucket_reso", 1024),
            values.get("bucket_reso_steps", 64),
            values.get("bucket_no_upscale", False),
        )
        _check_bucketing(bucketing)
    elif not subsets or subsets[0].kind != "finetune":
        raise UserError(
            "resolution is not given; it is the size to train at.",
            key="resolution",
            hint="For instance 512 or 512,768.",
        )
    split = values.get("validation_split", 0.0)
    if not 0 <= split <= 1:
        raise UserError(f"validation_split is {split}, but must be between 0 and 1.", key="validation_split")
    size = values.get("batch_size", 1)
    if size < 1:
        raise UserError(f"the batch size is {size}, but must be at least 1.", key="train_batch_size")
    return DatasetSpec(
        tuple(subsets),
        size,
        bucketing,
        float(values.get("network_multiplier", 1.0)),
        prior_loss_weight,
        split,
        values.get("validation_seed"),
    )


def _check_bucketing(rule: Bucketing) -> None:
    if rule.step < 8 or rule.step % 8:
        raise UserError(
            f"bucket_reso_steps is {rule.step}, but must be a multiple of 8, the pixels of one latent cell.",
            key="bucket_reso_steps",
        )
    if not rule.enabled and (rule.resolution[0] % 8 or rule.resolution[1] % 8):
        width, height = rule.resolution
        raise UserError(f"resolution is {width}x{height}, but both sides must be multiples of 8.", key="resolution")
    if not rule.enabled or rule.no_upscale:
        return
    low, high = rule.rounded_range()
    if min(rule.resolution) < low:
        raise UserError(
            f"min_bucket_reso is {rule.minimum}, larger than the resolution's side of {min(rule.resolution)}.",
            key="min_bucket_reso",
            hint="Lower min_bucket_reso or raise the resolution.",
        )
    if max(rule.resolution) > high:
        raise UserError(
            f"max_bucket_reso is {rule.maximum}, smaller than the resolution's side of {max(rule.resolution)}.",
            key="max_bucket_reso",
            hint="Raise max_bucket_reso or lower the resolution.",
        )


def _dataset_from_folders(dataset: DatasetOptions, fallback: Mapping[str, Any], warnings: list[str]) -> DatasetSpec:
    if not dataset.train_data_dir:
        raise UserError("no pictures are given: set train_data_dir, dataset_config or in_json.", key="train_data_dir")
    subsets = _folder_subsets(Path(dataset.train_data_dir), fallback, False, warnings)
    if dataset.reg_data_dir:
        subsets += _folder_subsets(Path(dataset.reg_data_dir), fallback, True, warnings)
    return _dataset(subsets, _Values(fallback), dataset.prior_loss_weight)


def _folder_subsets(root: Path, fallback: Mapping[str, Any], is_reg: bool, warnings: list[str]) -> list[SubsetSpec]:
    key = "reg_data_dir" if is_reg else "train_data_dir"
    folders = scan_class_folders(root, fallback["caption_extension"])
    passed_over = ignored_entries(root)
    if not folders:
        found = f"; found {', '.join(passed_over[:5])}" if passed_over else "; it is empty"
        raise DataError(
            f"{key} {root} holds neither pictures nor folders named <repeats>_<class words>{found}",
            key=key,
            hint="Name a folder for instance 10_sks dog.",
        )
    if not folders[0].flat and passed_over:
        warnings.append(f"{root}: passed over {', '.join(passed_over[:8])}: not named <repeats>_<class words>")
    return [
        _subset("dreambooth", _Values(_folder_values(folder, is_reg, fallback), fallback), must_match=False)
        for folder in folders
    ]


def _folder_values(folder: ClassFolder, is_reg: bool, fallback: Mapping[str, Any]) -> dict[str, Any]:
    masks = fallback.get("conditioning_data_dir")
    if masks and not is_reg and (Path(masks) / folder.path.name).is_dir():
        masks = str(Path(masks) / folder.path.name)
    return {
        "image_dir": str(folder.path),
        "num_repeats": folder.repeats,
        "class_tokens": folder.class_tokens,
        "is_reg": is_reg,
        # regularisation pictures have no masks: an empty text keeps the command line's folder away
        "conditioning_data_dir": "" if is_reg else masks,
    }


def _without_useless(spec: DatasetSpec, warnings: list[str]) -> DatasetSpec:
    """Without subsets that repeat fewer than once or name the same pictures again."""
    kept: dict[tuple[str, str], SubsetSpec] = {}
    for subset in spec.subsets:
        if subset.num_repeats < 1:
            warnings.append(f"{subset.name}: left out, its repeats are {subset.num_repeats}")
        elif subset.identity in kept:
            warnings.append(f"{subset.name}: named twice in one data set; the second time is left out")
        else:
            kept[subset.identity] = subset
    return DatasetSpec(
        tuple(kept.values()),
        spec.batch_size,
        spec.bucketing,
        spec.network_multiplier,
        spec.prior_loss_weight,
        spec.validation_split,
        spec.validation_seed,
    )


def _check_caching(dataset: DatasetOptions, specs: Sequence[DatasetSpec]) -> None:
    if not (dataset.cache_latents or dataset.cache_latents_to_disk):
        return
    for subset in (s for spec in specs for s in spec.subsets):
        if not subset.cacheable:
            what = "color_aug" if subset.color_aug else "random_crop"
            raise UserError(
                f"cache_latents and {what} exclude each other: a cached picture always looks the same.",
                key=what,
                hint=f"Switch one of them off ({subset.name}).",
            )


def _advise(spec: DatasetSpec, cached: bool, warnings: list[str]) -> None:
    for subset in spec.subsets:
        if subset.face_crop_aug_range and (cached or (spec.bucketing and spec.bucketing.enabled)):
            what = "cached latents" if cached else "enable_bucket"
            warnings.append(f"{subset.name}: face_crop_aug_range has no effect with {what}")
        if subset.is_reg and spec.validation_split:
            warnings.append(f"{subset.name}: regularisation pictures are never set aside for validation")
