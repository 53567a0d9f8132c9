"""The description file of data sets (`dataset_config`), TOML or JSON: tables, keys, types.

A file has one optional table `general` and a list `datasets`, each with a list `subsets`. A value falls back from the
subset to its data set, to `general`, to the command line; here only the tables are read and checked.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.values import parse_resolution

Level = Literal["general", "dataset", "subset"]
Kind = Literal["dreambooth", "finetune", "controlnet"]
EVERYWHERE: tuple[Level, ...] = ("general", "dataset", "subset")
ABOVE: tuple[Level, ...] = ("general", "dataset")
ALL_KINDS: tuple[Kind, ...] = ("dreambooth", "finetune", "controlnet")
FILES: tuple[Kind, ...] = ("dreambooth", "controlnet")


@dataclass(frozen=True)
class Key:
    """One key: type of its value, tables it may stand in, kinds of data set that know it."""

    type: str
    levels: tuple[Level, ...] = EVERYWHERE
    kinds: tuple[Kind, ...] = ALL_KINDS


KEYS: dict[str, Key] = {
    "batch_size": Key("int", ABOVE),
    "bucket_no_upscale": Key("bool", ABOVE),
    "bucket_reso_steps": Key("int", ABOVE),
    "enable_bucket": Key("bool", ABOVE),
    "max_bucket_reso": Key("int", ABOVE),
    "min_bucket_reso": Key("int", ABOVE),
    "network_multiplier": Key("float", ABOVE),
    "resolution": Key("resolution", ABOVE),
    "validation_seed": Key("int", ABOVE),
    "validation_split": Key("float", ABOVE),
    "resize_interpolation": Key("str"),
    "alpha_mask": Key("bool"),
    "cache_info": Key("bool", kinds=FILES),
    "caption_dropout_every_n_epochs": Key("int"),
    "caption_dropout_rate": Key("float"),
    "caption_extension": Key("str", kinds=FILES),
    "caption_prefix": Key("str"),
    "caption_separator": Key("str"),
    "caption_suffix": Key("str"),
    "caption_tag_dropout_rate": Key("float"),
    "class_tokens": Key("str", kinds=FILES),
    "color_aug": Key("bool"),
    "custom_attributes": Key("table"),
    "enable_wildcard": Key("bool"),
    "face_crop_aug_range": Key("range"),
    "flip_aug": Key("bool"),
    "keep_tokens": Key("int"),
    "keep_tokens_separator": Key("str"),
    "num_repeats": Key("int"),
    "random_crop": Key("bool"),
    "secondary_separator": Key("str"),
    "shuffle_caption": Key("bool"),
    "token_warmup_min": Key("int"),
    "token_warmup_step": Key("float"),
    "image_dir": Key("str", ("subset",)),
    "is_reg": Key("bool", ("subset",), FILES),
    "metadata_file": Key("str", ("subset",), ("finetune",)),
    "conditioning_data_dir": Key("str", ("subset",), ("controlnet",)),
}


@dataclass(frozen=True)
class DatasetTables:
    """One data set of a file: its kind, the tables of its subsets, its own and the general one, and where it stands."""

    kind: Kind
    subsets: tuple[Mapping[str, Any], ...]
    dataset: Mapping[str, Any]
    general: Mapping[str, Any]
    place: str


def read_dataset_config(path: Path) -> list[DatasetTables]:
    """Checked tables of a description file.

    Raises:
        UserError: the file cannot be read, a key is unknown or stands in the wrong table, a value has the wrong type.
            The sentence names file, table and key.
    """
    content = _load(path)
    for name in content:
        if name not in ("general", "datasets"):
            hint = nearest(name, ("general", "datasets", *KEYS))
            where = "It belongs under [general], [[datasets]] or [[datasets.subsets]]." if name in KEYS else hint
            raise _error(path, "the top level", f"unknown key {name!r}", where)
    general = content.get("general", {})
    datasets = content.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise _error(path, "the top level", "no [[datasets]]", "Each one needs [[datasets.subsets]].")
    general = _checked(path, "[general]", general, "general", None)
    return [_dataset(path, number, table, general) for number, table in enumerate(datasets, 1)]


def _load(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise UserError(f"dataset_config {path} must end in .toml or .json", key="dataset_config")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = tomllib.loads(text) if suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(
            f"cannot read dataset_config {path}: {error.strerror or error}", key="dataset_config"
        ) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path.name} is not valid {suffix[1:].upper()}: {error}",
            key="dataset_config",
            hint="In TOML, write Windows paths in single quotes: 'C:\\pictures'." if suffix == ".toml" else "",
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} must hold a table with datasets", key="dataset_config")
    return content


def _error(path: Path, table: str, message: str, hint: str = "") -> DataError:
    return DataError(f"{path.name}, {table}: {message}.", key="dataset_config", hint=hint)


def _dataset(path: Path, number: int, table: Any, general: Mapping[str, Any]) -> DatasetTables:
    place = f"[[datasets]] number {number}"
    if not isinstance(table, dict):
        raise _error(path, place, "must be a table")
    subsets = table.get("subsets")
    if not isinstance(subsets, list) or not subsets or not all(isinstance(s, dict) for s in subsets):
        raise _error(path, place, "no [[datasets.subsets]]", "Each names an image_dir or a metadata_file.")
    kind = _kind(path, place, subsets)
    own = _checked(path, place, {k: v for k, v in table.items() if k != "subsets"}, "dataset", kind)
    checked = []
    for count, subset in enumerate(subsets, 1):
        where = f"{place}, subset {count}"
        subset = _checked(path, where, subset, "subset", kind)
        if kind != "finetune" and "image_dir" not in subset:
            raise _error(path, where, "image_dir is missing")
        checked.append(subset)
    usable = {key: value for key, value in general.items() if kind in KEYS[key].kinds}
    return DatasetTables(kind, tuple(checked), own, usable, f"{path.name}, {place}")


def _kind(path: Path, place: str, subsets: Sequence[Mapping[str, Any]]) -> Kind:
    control = sum("conditioning_data_dir" in subset for subset in subsets)
    metadata = sum("metadata_file" in subset for subset in subsets)
    if control == len(subsets):
        return "controlnet"
    if metadata == len(subsets) and not control:
        return "finetune"
    if not control and not metadata:
        return "dreambooth"
    raise _error(
        path,
        place,
        "mixes subsets with and without metadata_file or conditioning_data_dir",
        "Put them into separate [[datasets]].",
    )


def _checked(path: Path, place: str, table: Any, level: Level, kind: Kind | None) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise _error(path, place, "must be a table")
    result = {}
    for name, value in table.items():
        key = KEYS.get(name)
        if key is None:
            raise _error(path, place, f"unknown key {name!r}", nearest(name, KEYS))
        if level not in key.levels:
            tables = {"general": "[general]", "dataset": "[[datasets]]", "subset": "[[datasets.subsets]]"}
            raise _error(
                path,
                place,
                f"{name!r} cannot stand here",
                f"It belongs under {' or '.join(tables[x] for x in key.levels)}.",
            )
        if kind is not None and kind not in key.kinds:
            raise _error(path, place, f"{name!r} does not go with a data set of this kind ({kind})")
        result[name] = _converted(path, place, name, value, key.type)
    return result


def _converted(path: Path, place: str, name: str, value: Any, kind: str) -> Any:
    """The value in its type; whole numbers are fine where a fraction is asked for."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and number:
        return value
    simple = {"int": int, "bool": bool, "str": str, "table": dict}.get(kind)
    if simple is not None and isinstance(value, simple) and (kind != "int" or number):
        return value
    if kind == "resolution":
        if isinstance(value, str):
            return parse_resolution(value)
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) == 2 and all(isinstance(side, int) and side > 0 and side is not True for side in pair):
            return tuple(pair)
    if kind == "range" and isinstance(value, list) and len(value) == 2:
        low, high = value
        if isinstance(low, int | float) and isinstance(high, int | float) and 0 < low <= high:
            return float(low), float(high)
    wanted = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text in quotes",
        "table": "a table",
        "resolution": "a size such as 512 or [512, 768]",
        "range": "two ascending numbers such as [2.0, 4.0]",
    }[kind]
    raise _error(path, place, f"{name} is {value!r}, but must be {wanted}")
