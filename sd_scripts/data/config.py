"""From options to a description of all data sets: the blueprint, made once and never changed.

Either class folders (`train_data_dir`, `reg_data_dir`), a metadata file (`in_json`), or a description file
(`dataset_config`, see schema/dataset_file.py) say where the pictures are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd_scripts.data.config_checks import (
    advise,
    check_flat,
    check_folders,
    check_latents_cacheable,
    located,
    without_useless,
)
from sd_scripts.data.spec import Blueprint, DatasetSpec, PluginSpec, SubsetSpec
from sd_scripts.data.text_cache import check_text_cacheable
from sd_scripts.schema.buckets import Bucketing, check_bucketing
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.dataset_file import DatasetTables, Rules, read_dataset_config
from sd_scripts.schema.dataset_kinds import Kind
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.folders import ClassFolder, ignored_entries, normalise_extension, scan_class_folders
from sd_scripts.schema.validation import ValidationOptions
from sd_scripts.schema.values import parse_face_crop_range, parse_resolution

__all__ = ["Blueprint", "DatasetSpec", "Kind", "PluginSpec", "SubsetSpec", "build_blueprint"]

RULE_NAMES = tuple(CaptionRules.__dataclass_fields__)


def build_blueprint(
    dataset: DatasetOptions,
    captions: CaptionOptions,
    validation: ValidationOptions,
    *,
    control_images: bool = False,
    requires_control: bool = False,
    allow_plugins: bool = False,
    command: str | None = None,
    bucket_step_multiple: int = 8,
    cache_text: bool = False,
) -> Blueprint:
    """Blueprint from the options.

    Args:
        control_images: conditioning pictures steer the model (ControlNet) instead of masking the loss.
        requires_control: every picture must have a control picture.
        allow_plugins: `dataset_class` may be imported.
        command: name of the trainer, which decides which kinds of data set are allowed; None allows all.
        bucket_step_multiple: what sides of buckets must be multiples of, in pixels (32 for SDXL).
        cache_text: outputs of the text encoders will be cached, so captions must not change.

    Raises:
        UserError: no pictures named, an option out of range, a key that is unknown in the description file.
    """
    if dataset.dataset_class:
        return _plugin(dataset, allow_plugins)
    rules = Rules() if command is None else Rules.of(command, masks=not control_images)
    rules = replace(rules, kinds=("controlnet",) if requires_control else rules.kinds, masks=not control_images)
    fallback = _option_values(dataset, captions, validation)
    warnings: list[str] = []
    if dataset.dataset_config:
        path = Path(dataset.dataset_config)
        tables, warnings = read_dataset_config(path, rules)
        if dataset.train_data_dir or dataset.reg_data_dir or dataset.in_json:
            warnings.append(f"{path.name} describes the data; train_data_dir, reg_data_dir and in_json are not used")
        source = str(path)
    elif rules.kinds == ("controlnet",):
        tables, source = [_control_tables(dataset)], str(dataset.train_data_dir)
    elif dataset.in_json:
        tables, source = [_metadata_tables(dataset, rules)], dataset.in_json
    else:
        tables, source = [], str(dataset.train_data_dir)
    prior = dataset.prior_loss_weight
    specs = [_dataset_from_tables(each, fallback, prior, bucket_step_multiple) for each in tables]
    if not tables:
        specs = [_dataset_from_folders(dataset, fallback, rules, bucket_step_multiple, warnings)]
    specs = [spec for spec in [without_useless(spec, warnings) for spec in specs] if spec.subsets]
    if not specs:
        why = f": {'; '.join(warnings)}" if warnings else ""
        key = "dataset_config" if dataset.dataset_config else "train_data_dir"
        raise DataError(f"{source} names no pictures to train with{why}.", key=key)
    return _finished(dataset, specs, source, not control_images, cache_text, warnings)


def _finished(
    dataset: DatasetOptions,
    specs: list[DatasetSpec],
    source: str,
    masks: bool,
    cache_text: bool,
    warnings: list[str],
) -> Blueprint:
    """The blueprint once everything in it is checked."""
    on_disk = dataset.cache_latents_to_disk
    cached = dataset.cache_latents or on_disk
    if cached:
        check_latents_cacheable(specs)
    if cache_text:
        check_text_cacheable(subset for spec in specs for subset in spec.subsets)
    for spec in specs:
        check_folders(spec)
        advise(spec, cached, warnings)
    return Blueprint(tuple(specs), source, masks, cached, on_disk, dataset.skip_cache_check, tuple(warnings))


def _metadata_tables(dataset: DatasetOptions, rules: Rules) -> DatasetTables:
    """The one data set of a metadata file, as a description file would name it."""
    if "finetune" not in rules.kinds:
        raise UserError("this command does not train from a metadata file.", "in_json", "Use train_data_dir alone.")
    subset = {"metadata_file": dataset.in_json, "image_dir": dataset.train_data_dir}
    return DatasetTables("finetune", (subset,), {}, {}, "")


def _control_tables(dataset: DatasetOptions) -> DatasetTables:
    """The one data set of a folder of pictures and a folder of their control pictures; both are flat."""
    for key, given in (("in_json", dataset.in_json), ("reg_data_dir", dataset.reg_data_dir)):
        if given:
            raise UserError(
                f"{key} does not go with control pictures.", key, "Use train_data_dir and conditioning_data_dir."
            )
    for key, folder in (
        ("train_data_dir", dataset.train_data_dir),
        ("conditioning_data_dir", dataset.conditioning_data_dir),
    ):
        if not folder:
            raise UserError(
                f"{key} is not given: this command needs a folder of pictures and one of control pictures.",
                key,
                "Set train_data_dir and conditioning_data_dir, or dataset_config.",
            )
        check_flat(key, Path(folder))
    subset = {
        "image_dir": dataset.train_data_dir,
        "conditioning_data_dir": dataset.conditioning_data_dir,
        "num_repeats": 1,
    }
    return DatasetTables("controlnet", (subset,), {}, {}, "")


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


def _dataset_from_tables(
    tables: DatasetTables, fallback: Mapping[str, Any], prior: float, multiple: int
) -> DatasetSpec:
    # folders are only ever named by a subset itself, not by the command line
    below = {key: value for key, value in fallback.items() if key != "conditioning_data_dir"}
    subsets = [
        _subset(
            tables.kind,
            _Values(table, tables.dataset, tables.general, below),
            must_match=tables.kind == "controlnet",
            place=tables.place_of(number),
        )
        for number, table in enumerate(tables.subsets)
    ]
    try:
        return _dataset(subsets, _Values(tables.dataset, tables.general, below), prior, multiple)
    except UserError as error:
        raise located(error, tables) from error


def _subset(kind: Kind, values: _Values, *, must_match: bool = False, place: str = "") -> SubsetSpec:
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
        place=place,
    )


def _dataset(subsets: Sequence[SubsetSpec], values: _Values, prior_loss_weight: float, multiple: int) -> DatasetSpec:
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
        check_bucketing(bucketing, multiple)
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


def _dataset_from_folders(
    dataset: DatasetOptions, fallback: Mapping[str, Any], rules: Rules, multiple: int, warnings: list[str]
) -> DatasetSpec:
    if "dreambooth" not in rules.kinds:
        raise UserError(
            "no pictures are given: this command needs a metadata file, or a description file of data sets.",
            "in_json",
            "Set in_json or dataset_config.",
        )
    if not dataset.train_data_dir:
        raise UserError("no pictures are given: set train_data_dir, dataset_config or in_json.", key="train_data_dir")
    if dataset.conditioning_data_dir and "controlnet" not in rules.kinds:
        warnings.append("conditioning_data_dir has no effect without masked_loss")
        fallback = {**fallback, "conditioning_data_dir": None}
    subsets = _folder_subsets(Path(dataset.train_data_dir), fallback, False, warnings)
    if dataset.reg_data_dir:
        subsets += _folder_subsets(Path(dataset.reg_data_dir), fallback, True, warnings)
    return _dataset(subsets, _Values(fallback), dataset.prior_loss_weight, multiple)


def _folder_subsets(root: Path, fallback: Mapping[str, Any], is_reg: bool, warnings: list[str]) -> list[SubsetSpec]:
    key = "reg_data_dir" if is_reg else "train_data_dir"
    folders = scan_class_folders(root, contents=False)
    passed_over = [] if folders and folders[0].flat else ignored_entries(root)
    if not folders:
        found = f"; found {', '.join(passed_over[:5])}" if passed_over else "; it is empty"
        raise DataError(
            f"{key} {root} holds neither pictures nor folders named <repeats>_<class words>{found}.",
            key=key,
            hint="Name a folder for instance 10_sks dog.",
        )
    if passed_over:
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
