"""The description file of data sets (`dataset_config`), TOML or JSON: tables, keys, types.

A file has one optional table `general` and a list `datasets`, each with a list `subsets`. A value falls back from the
subset to its data set, to `general`, to the command line; here only the tables are read and checked.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sd_scripts.schema.dataset_kinds import ALL_KINDS, Kind, supported_kinds, supports_caption_dropout
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.values import parse_resolution

Level = Literal["general", "dataset", "subset"]
EVERYWHERE: tuple[Level, ...] = ("general", "dataset", "subset")
ABOVE: tuple[Level, ...] = ("general", "dataset")
FILES: tuple[Kind, ...] = ("dreambooth", "controlnet")
CLASSES: tuple[Kind, ...] = ("dreambooth",)

INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area")
KIND_NAMES: dict[Kind, str] = {
    "dreambooth": "folders of pictures with caption files",
    "finetune": "metadata_file",
    "controlnet": "conditioning_data_dir",
}
_TABLES = {"general": "[general]", "dataset": "[[datasets]]", "subset": "[[datasets.subsets]]"}
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text in quotes",
    "table": "a table",
    "resolution": "a size such as 512 or [512, 768]",
    "range": "two ascending numbers above 0 such as [2.0, 4.0]",
}


@dataclass(frozen=True)
class Key:
    """One key: type of its value, tables it may stand in, kinds of data set that know it, least and most value."""

    type: str
    levels: tuple[Level, ...] = EVERYWHERE
    kinds: tuple[Kind, ...] = ALL_KINDS
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()


KEYS: dict[str, Key] = {
    "batch_size": Key("int", ABOVE, least=1),
    "bucket_no_upscale": Key("bool", ABOVE),
    "bucket_reso_steps": Key("int", ABOVE, least=1),
    "enable_bucket": Key("bool", ABOVE),
    "max_bucket_reso": Key("int", ABOVE, least=1),
    "min_bucket_reso": Key("int", ABOVE, least=1),
    "network_multiplier": Key("float", ABOVE),
    "resolution": Key("resolution", ABOVE),
    "validation_seed": Key("int", ABOVE),
    "validation_split": Key("float", ABOVE, least=0, most=1),
    "resize_interpolation": Key("str", choices=INTERPOLATIONS),
    "alpha_mask": Key("bool", kinds=("dreambooth", "finetune")),
    "cache_info": Key("bool", kinds=FILES),
    "caption_dropout_every_n_epochs": Key("int", least=0),
    "caption_dropout_rate": Key("float", least=0, most=1),
    "caption_extension": Key("str", kinds=FILES),
    "caption_prefix": Key("str"),
    "caption_separator": Key("str"),
    "caption_suffix": Key("str"),
    "caption_tag_dropout_rate": Key("float", least=0, most=1),
    "class_tokens": Key("str", kinds=CLASSES),
    "color_aug": Key("bool"),
    "custom_attributes": Key("table"),
    "enable_wildcard": Key("bool"),
    "face_crop_aug_range": Key("range"),
    "flip_aug": Key("bool"),
    "keep_tokens": Key("int", least=0),
    "keep_tokens_separator": Key("str"),
    "num_repeats": Key("int"),
    "random_crop": Key("bool"),
    "secondary_separator": Key("str"),
    "shuffle_caption": Key("bool"),
    "token_warmup_min": Key("int", least=0),
    "token_warmup_step": Key("float", least=0),
    "image_dir": Key("str", ("subset",)),
    "is_reg": Key("bool", ("subset",), CLASSES),
    "metadata_file": Key("str", ("subset",), ("finetune",)),
    "conditioning_data_dir": Key("str", ("subset",), ("controlnet",)),
}
DROPOUT_KEYS = ("caption_dropout_every_n_epochs", "caption_dropout_rate", "caption_tag_dropout_rate")


@dataclass(frozen=True)
class DatasetTables:
    """One data set of a file: its kind, the tables of its subsets, its own and the general one, and where it stands."""

    kind: Kind
    subsets: tuple[Mapping[str, Any], ...]
    dataset: Mapping[str, Any]
    general: Mapping[str, Any]
    place: str

    def place_of(self, number: int) -> str:
        """Where a subset stands; numbers count from 0."""
        return f"{self.place}.subsets[{number}]" if self.place else ""


@dataclass(frozen=True)
class Rules:
    """What the command allows: kinds of data set, keys for dropping captions; `masks`: conditioning pictures are loss
    masks, so that their subsets may also have class words.
    """

    kinds: tuple[Kind, ...] = ALL_KINDS
    dropout: bool = True
    masks: bool = False

    @classmethod
    def of(cls, command: str, masks: bool) -> "Rules":
        """The rules of a trainer; `masks`: its loss heeds masks."""
        return cls(supported_kinds(command, masks), supports_caption_dropout(command), masks)

    def knows(self, name: str, kind: Kind) -> bool:
        """Whether a key goes with a kind of data set."""
        if name in DROPOUT_KEYS and not self.dropout:
            return False
        kinds = KEYS[name].kinds
        return kind in (FILES if self.masks and kinds == CLASSES else kinds)


def read_dataset_config(path: Path, rules: Rules = Rules()) -> tuple[list[DatasetTables], list[str]]:
    """Checked tables of a description file, and warnings about keys without effect.

    Raises:
        UserError: the file cannot be read, a key is unknown or stands in the wrong table, a value has the wrong type,
            the command knows no such data sets. The sentence names file, table and key.
    """
    content = _load(path)
    for name in content:
        if name not in ("general", "datasets"):
            hint = nearest(name, ("general", "datasets")) or "Allowed are general and datasets."
            where = f"It belongs under {_places(name)}." if name in KEYS else hint
            raise _error(path, "the top level", f"unknown key {name!r}", where)
    datasets = content.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise _error(path, "the top level", "no [[datasets]]", "Each one needs [[datasets.subsets]].")
    # what kinds there are comes first: most other mistakes follow from it
    kinds = [_kind(path, f"datasets[{number}]", table, rules) for number, table in enumerate(datasets)]
    general = _checked(path, "general", content.get("general", {}), "general", rules.kinds, rules)
    tables = [_dataset(path, n, table, kind, general, rules) for n, (table, kind) in enumerate(zip(datasets, kinds))]
    idle = [name for name in general if not any(rules.knows(name, kind) for kind in kinds)]
    return tables, [f"{path.name}, general: {name} has no effect on these data sets" for name in idle]


def _places(name: str) -> str:
    return " or ".join(_TABLES[level] for level in KEYS[name].levels)


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
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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


def _dataset(
    path: Path, number: int, table: Mapping[str, Any], kind: Kind, general: Mapping[str, Any], rules: Rules
) -> DatasetTables:
    place = f"datasets[{number}]"
    own = _checked(path, place, {k: v for k, v in table.items() if k != "subsets"}, "dataset", (kind,), rules)
    checked = []
    for count, subset in enumerate(table["subsets"]):
        where = f"{place}.subsets[{count}]"
        subset = _checked(path, where, subset, "subset", (kind,), rules)
        needed = {"finetune": "metadata_file", "dreambooth": "image_dir", "controlnet": "image_dir"}[kind]
        for name in (needed, "conditioning_data_dir") if kind == "controlnet" else (needed,):
            if not subset.get(name):
                raise _error(path, where, f"{name} is {'empty' if name in subset else 'missing'}")
        checked.append(subset)
    usable = {key: value for key, value in general.items() if rules.knows(key, kind)}
    return DatasetTables(kind, tuple(checked), own, usable, f"{path.name}, {place}")


def _kind(path: Path, place: str, table: Any, rules: Rules) -> Kind:
    """Kind of a data set, which the keys of its subsets tell."""
    if not isinstance(table, dict):
        raise _error(path, place, "must be a table")
    subsets = table.get("subsets")
    if not isinstance(subsets, list) or not subsets or not all(isinstance(s, dict) for s in subsets):
        raise _error(path, place, "no [[datasets.subsets]]", "Each names an image_dir or a metadata_file.")
    control = [number for number, subset in enumerate(subsets) if "conditioning_data_dir" in subset]
    metadata = [number for number, subset in enumerate(subsets) if "metadata_file" in subset]
    for found, name in ((control, "conditioning_data_dir"), (metadata, "metadata_file")):
        if 0 < len(found) < len(subsets):
            without = next(number for number in range(len(subsets)) if number not in found)
            raise _error(
                path,
                place,
                f"mixes subsets with and without {name} (subsets[{found[0]}] has it, subsets[{without}] has not)",
                "Put them into separate [[datasets]].",
            )
    kind: Kind = "controlnet" if control else "finetune" if metadata else "dreambooth"
    if kind in rules.kinds:
        return kind
    if rules.kinds == ("controlnet",):
        raise _error(
            path,
            f"{place}.subsets[0]",
            "conditioning_data_dir is missing; this command needs a control picture for every picture",
        )
    hint = "Conditioning pictures are used with masked_loss." if kind == "controlnet" else ""
    allowed = " or ".join(KIND_NAMES[each] for each in rules.kinds)
    raise _error(path, place, f"this command does not train on {KIND_NAMES[kind]}, but on {allowed}", hint)


def _checked(path: Path, place: str, table: Any, level: Level, kinds: Sequence[Kind], rules: Rules) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise _error(path, place, "must be a table")
    known = [name for name, key in KEYS.items() if level in key.levels and _any_knows(rules, name, kinds)]
    result = {}
    for name, value in table.items():
        key = KEYS.get(name)
        if key is None:
            hint = nearest(name, known) or nearest(name, KEYS) or f"Allowed here: {', '.join(sorted(known))}."
            raise _error(path, place, f"unknown key {name!r}", hint)
        if level not in key.levels:
            raise _error(path, place, f"{name!r} cannot stand here", f"It belongs under {_places(name)}.")
        if name not in known:
            whose = "the data sets of this command" if level == "general" else "a data set of this kind"
            reason = f"does not go with {whose} ({' or '.join(kinds)})"
            if name in DROPOUT_KEYS and not rules.dropout:
                reason = "is not offered by this command"
            raise _error(path, place, f"{name!r} {reason}", f"Allowed here: {', '.join(sorted(known))}.")
        result[name] = _converted(path, place, name, value, key)
    return result


def _any_knows(rules: Rules, name: str, kinds: Iterable[Kind]) -> bool:
    return any(rules.knows(name, kind) for kind in kinds)


def _converted(path: Path, place: str, name: str, value: Any, key: Key) -> Any:
    """The value in its type; whole numbers are fine where a fraction is asked for."""
    try:
        converted = _of_type(value, key.type)
    except UserError as error:
        raise _error(path, place, error.message.rstrip("."), error.hint) from error
    if converted is None:
        raise _error(path, place, f"{name} is {value!r}, but must be {_WANTED[key.type]}")
    if key.least is not None and converted < key.least:
        raise _error(path, place, f"{name} is {value!r}, but must be at least {key.least:g}")
    if key.most is not None and converted > key.most:
        raise _error(path, place, f"{name} is {value!r}, but must be at most {key.most:g}")
    if key.choices and converted not in key.choices:
        raise _error(path, place, f"{name} is {value!r}, but must be one of {', '.join(key.choices)}")
    return converted


def _of_type(value: Any, kind: str) -> Any:
    """The value as an option would have it, None where it has another type."""
    if kind in ("bool", "str", "table"):
        return value if isinstance(value, {"bool": bool, "str": str, "table": dict}[kind]) else None
    if kind == "resolution":
        if isinstance(value, str):
            return parse_resolution(value)
        pair = value if isinstance(value, list) else [value, value]
        fine = len(pair) == 2 and all(isinstance(side, int) and side > 0 and side is not True for side in pair)
        return tuple(pair) if fine else None
    if kind == "range":
        fine = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and 0 < value[0] <= value[1]
        return (float(value[0]), float(value[1])) if fine else None
    return value if _is_number(value) and (kind == "float" or isinstance(value, int)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
