"""What must hold for described data sets before any picture is looked for."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sd_scripts.data.spec import DatasetSpec, SubsetSpec
from sd_scripts.schema.dataset_file import KEYS, DatasetTables
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS

_IN_FILES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}


def located(error: UserError, tables: DatasetTables) -> UserError:
    """The same error naming the table of the description file that the value came from, or its data set."""
    name = _IN_FILES.get(error.key or "", error.key or "")
    if not tables.place or name not in KEYS:
        return error
    file = tables.place.split(", ")[0]
    from_general = name not in tables.dataset and name in tables.general
    place = f"{file}, general" if from_general else tables.place
    in_file = name in tables.dataset or from_general
    return DataError(f"{place}: {error.message}", "dataset_config" if in_file else error.key, error.hint)


def check_folders(spec: DatasetSpec) -> None:
    """Raises DataError for the first folder or file of a subset that is not there."""
    for subset in spec.subsets:
        for name, option, there in (
            ("image_dir", "train_data_dir", os.path.isdir),
            ("conditioning_data_dir", "conditioning_data_dir", os.path.isdir),
            ("metadata_file", "in_json", os.path.isfile),
        ):
            path: Path | None = getattr(subset, name)
            if path is None or there(path):
                continue
            hint = "" if path.is_absolute() else f"A relative path starts at {Path.cwd()}."
            what = "is no " + ("file" if name == "metadata_file" else "folder")
            what = what if os.path.exists(path) else "does not exist"
            if subset.place:
                raise DataError(f"{subset.place}: {name} {path} {what}.", "dataset_config", hint)
            raise DataError(f"{option} {path} {what}.", option, hint)


def check_flat(key: str, folder: Path) -> None:
    """Raises DataError where no picture lies directly in a folder."""
    if not os.path.isdir(folder):
        raise DataError(f"{key} {folder} is no folder.", key)
    try:
        with os.scandir(folder) as entries:
            found = any(os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS for entry in entries)
    except OSError as error:
        raise DataError(f"cannot read {key} {folder}: {error.strerror or error}.", key) from error
    if not found:
        raise DataError(
            f"{key} {folder} holds no pictures.",
            key,
            "They lie in it directly, in no sub-folder.",
        )


def check_latents_cacheable(specs: Sequence[DatasetSpec]) -> None:
    """Raises UserError naming the option by which a picture is not the same at every use."""
    for subset in (s for spec in specs for s in spec.subsets):
        if not subset.cacheable:
            what = "color_aug" if subset.color_aug else "random_crop"
            raise UserError(
                f"cache_latents and {what} exclude each other: a cached picture always looks the same.",
                key=what,
                hint=f"Switch one of them off ({subset.place or subset.name}).",
            )


def without_useless(spec: DatasetSpec, warnings: list[str]) -> DatasetSpec:
    """Without subsets that repeat fewer than once or name the same pictures again."""
    kept: dict[tuple[str, str], SubsetSpec] = {}
    for subset in spec.subsets:
        label = subset.place or subset.name
        if subset.num_repeats < 1:
            warnings.append(f"{label}: left out, its num_repeats is {subset.num_repeats}")
        elif subset.identity in kept:
            warnings.append(f"{label}: {subset.name} is named twice in one data set; the second time is left out")
        else:
            kept[subset.identity] = subset
    return replace(spec, subsets=tuple(kept.values()))


def advise(spec: DatasetSpec, cached: bool, warnings: list[str]) -> None:
    """Add what is allowed but has no effect."""
    for subset in spec.subsets:
        if subset.face_crop_aug_range and (cached or (spec.bucketing and spec.bucketing.enabled)):
            what = "cached latents" if cached else "enable_bucket"
            warnings.append(f"{subset.name}: face_crop_aug_range has no effect with {what}")
        if subset.is_reg and spec.validation_split:
            warnings.append(f"{subset.name}: regularisation pictures are never set aside for validation")
