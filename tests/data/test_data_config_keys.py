"""Every key of the description file in every table and kind of data set, against the recorded facts of sd-scripts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.data.config import build_blueprint
from sd_scripts.data.image import INTERPOLATIONS
from sd_scripts.data.spec import Blueprint
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.dataset_file import KEYS
from sd_scripts.schema.dataset_kinds import ALL_KINDS, Kind
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.validation import ValidationOptions

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "dataset_config.json").read_text())
VERSIONS = ("v0.8.4", "latest")
SCOPES = ("general", "datasets", "subsets")
COMMAND_OF: dict[Kind, str] = {
    "dreambooth": "train_db",
    "finetune": "fine_tune",
    "controlnet": "train_controlnet",
}
OURS = {("alpha_mask", "general"), ("alpha_mask", "datasets")}
"""Keys that we also take where sd-scripts does not."""

VALUES: dict[str, tuple[Any, Any]] = {
    "batch_size": (3, 2),
    "bucket_reso_steps": (32, 16),
    "min_bucket_reso": (128, 64),
    "max_bucket_reso": (768, 2048),
    "resolution": ([640, 512], [512, 512]),
    "resize_interpolation": ("area", "nearest"),
    "face_crop_aug_range": ([1.0, 2.0], [2.0, 3.0]),
    "custom_attributes": ({"diff_output_preservation": True}, {"x": 1}),
    "caption_extension": (".one", ".two"),
    "keep_tokens_separator": ("", "|||"),
    "token_warmup_step": (0, 0.5),
    "keep_tokens": (0, 2),
    "validation_split": (0.25, 0.5),
}
OF_TYPE: dict[str, tuple[Any, Any]] = {
    "bool": (True, False),
    "int": (3, 2),
    "float": (0.25, 0.5),
    "int|float": (0.25, 1),
    "str": ("one", "two"),
}


def pair_of(name: str) -> tuple[Any, Any]:
    """Two different values that a key may have."""
    return VALUES.get(name) or OF_TYPE[FACTS["latest"]["options"][name]["type"]]


def options_of(values: dict[str, Any]) -> tuple[DatasetOptions, CaptionOptions, ValidationOptions]:
    rest = dict(values)
    parts: list[Any] = []
    for kind in (DatasetOptions, CaptionOptions, ValidationOptions):
        parts.append(kind(**{key: rest.pop(key) for key in list(rest) if key in kind.__annotations__}))
    assert not rest
    return parts[0], parts[1], parts[2]


class Place:
    """A folder with what subsets of each kind point to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pictures", "control"):
            (root / name).mkdir()
        (root / "meta.json").write_text("{}")

    def subset(self, kind: Kind) -> dict[str, Any]:
        return {
            "dreambooth": {"image_dir": str(self.root / "pictures")},
            "finetune": {"metadata_file": str(self.root / "meta.json")},
            "controlnet": {
                "image_dir": str(self.root / "pictures"),
                "conditioning_data_dir": str(self.root / "control"),
            },
        }[kind]

    def build(self, kind: Kind, levels: dict[str, dict[str, Any]], flags: dict[str, Any], **how: Any) -> Blueprint:
        """Blueprint of a file with these keys in its tables."""
        content = {
            "general": levels.get("general", {}),
            "datasets": [levels.get("datasets", {}) | {"subsets": [self.subset(kind) | levels.get("subsets", {})]}],
        }
        path = self.root / "data.json"
        path.write_text(json.dumps(content))
        values = {"resolution": "512", "dataset_config": str(path)} | flags
        how = {"control_images": kind == "controlnet", "command": COMMAND_OF[kind]} | how
        return build_blueprint(*options_of(values), **how)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def effective(made: Blueprint, name: str) -> Any:
    """What a key came to."""
    (spec,) = made.datasets
    (subset,) = spec.subsets
    bucket = {
        "enable_bucket": "enabled",
        "min_bucket_reso": "minimum",
        "max_bucket_reso": "maximum",
        "bucket_reso_steps": "step",
        "bucket_no_upscale": "no_upscale",
        "resolution": "resolution",
    }
    if name in bucket:
        found = getattr(spec.bucketing, bucket[name])
    else:
        found = next(getattr(part, name) for part in (subset, subset.captions, spec) if hasattr(part, name))
    return list(found) if isinstance(found, tuple) else found


def walk() -> Iterator[tuple[str, str, Kind, str, bool]]:
    for version in VERSIONS:
        for name, facts in FACTS[version]["options"].items():
            for kind in ALL_KINDS:
                for scope in SCOPES:
                    yield version, name, kind, scope, kind in facts["scopes"][scope]


def value_for(place: Place, name: str) -> Any:
    if name in ("image_dir", "conditioning_data_dir"):
        return str(place.root / "pictures")
    return str(place.root / "meta.json") if name == "metadata_file" else pair_of(name)[0]


def test_every_key_in_every_table_and_kind(place: Place) -> None:
    counts = {True: 0, False: 0}
    for version, name, kind, scope, allowed in walk():
        if (name, scope) in OURS and kind != "controlnet":
            allowed = True
        if name == "metadata_file" and kind == "dreambooth" and scope == "subsets":
            continue  # it would turn the subset into one for fine-tuning
        if name == "conditioning_data_dir" and kind != "controlnet" and scope == "subsets":
            continue
        levels = {scope: {name: value_for(place, name)}}
        if allowed:
            made = place.build(kind, levels, {})
            if "dir" not in name and "file" not in name:
                assert effective(made, name) == value_for(place, name), (version, name, kind, scope)
        else:
            with pytest.raises(DataError) as caught:
                place.build(kind, levels, {})
            where = {"general": "general", "datasets": "datasets[0]", "subsets": "datasets[0].subsets[0]"}[scope]
            assert str(caught.value).startswith(f"data.json, {where}: "), (version, name, kind, scope)
            assert repr(name) in str(caught.value)
        counts[allowed] += 1
    assert counts[True] > 300
    assert counts[False] > 100


def test_no_key_of_ours_is_unknown_to_the_record() -> None:
    assert set(KEYS) == set(FACTS["latest"]["options"])
    assert set(FACTS["v0.8.4"]["options"]) < set(KEYS)


@pytest.mark.parametrize("name", sorted(set(KEYS) - {"image_dir", "metadata_file", "conditioning_data_dir", "is_reg"}))
def test_values_fall_back_level_by_level(place: Place, name: str) -> None:
    facts = FACTS["latest"]["options"][name]
    kind = facts["scopes"]["subsets" if facts["scopes"]["subsets"] else "datasets"][0]
    levels = [scope for scope in ("subsets", "datasets", "general") if kind in facts["scopes"][scope]]
    for wanted, other in (pair_of(name), pair_of(name)[::-1]):
        flags = {}
        if facts["flag"]:
            flag = ",".join(map(str, other)) if isinstance(other, list) else other
            flags[facts["flag"]] = flag
            assert effective(place.build(kind, {}, flags), name) == other
        for number, scope in enumerate(levels):
            tables = {scope: {name: wanted}} | {below: {name: other} for below in levels[number + 1 :]}
            assert effective(place.build(kind, tables, flags), name) == wanted, scope


def test_defaults_without_any_key(place: Place) -> None:
    for name, facts in FACTS["latest"]["options"].items():
        if "dir" in name or "file" in name or name == "resolution":
            continue
        found = effective(place.build("dreambooth", {}, {}), name)
        if name == "custom_attributes":
            assert found == {}
        else:
            assert (found or None) == (facts["default"] or None), name


@pytest.mark.parametrize("version", VERSIONS)
def test_kinds_of_each_command(place: Place, version: str) -> None:
    seen = 0
    for command, support in FACTS[version]["support_by_script"].items():
        for kind in ALL_KINDS:
            answer = support[kind]
            for control in (True, False):
                allowed = answer is True or (kind == "controlnet" and not control and command not in CONTROL)
                if kind == "controlnet" and not control and command == "fine_tune":
                    allowed = False
                if answer == "masked_loss":
                    assert allowed is not control
                how = {"command": command, "control_images": control}
                if allowed:
                    assert place.build(kind, {}, {}, **how).datasets[0].kind == kind
                else:
                    with pytest.raises(DataError, match=r"data\.json, datasets\[0\].*this command"):
                        place.build(kind, {}, {}, **how)
                seen += 1
        kind = next(kind for kind in ALL_KINDS if support[kind] is True)
        for name in ("caption_dropout_rate", "caption_tag_dropout_rate", "caption_dropout_every_n_epochs"):
            how = {"command": command, "control_images": True}
            if support["caption_dropout"]:
                place.build(kind, {"general": {name: 1}}, {}, **how)
                continue
            for scope in SCOPES:
                with pytest.raises(DataError, match=f"'{name}' is not offered by this command"):
                    place.build(kind, {scope: {name: 1}}, {}, **how)
    assert seen == 11 * 3 * 2


CONTROL = ("train_controlnet", "sdxl_train_control_net_lllite", "sdxl_train_control_net_lllite_old")


def test_options_that_a_file_takes_the_place_of(place: Place) -> None:
    for version in VERSIONS:
        for name in FACTS[version]["cli_ignored_when_dataset_config_given"]:
            made = place.build("finetune", {}, {name: "no/such/place"}, command="train_network")
            assert any("not used" in warning for warning in made.warnings)
    made = place.build("dreambooth", {}, {"conditioning_data_dir": "no/such/place"})
    assert made.datasets[0].subsets[0].conditioning_data_dir is None


def test_what_makes_subsets_the_same(place: Place) -> None:
    for kind in ALL_KINDS:
        identity = FACTS["latest"]["subset_identity"][kind]
        subset = place.build(kind, {}, {}).datasets[0].subsets[0]
        assert subset.identity[: len(identity)] == tuple(str(getattr(subset, name)) for name in identity)


def test_required_keys_are_missed_by_name(place: Place) -> None:
    path = place.root / "data.json"
    for kind in ALL_KINDS:
        needed = [n for n, facts in FACTS["latest"]["options"].items() if kind in facts["required"]]
        assert needed
        for name in needed:
            subset = {key: value for key, value in place.subset(kind).items() if key != name}
            path.write_text(json.dumps({"datasets": [{"subsets": [place.subset(kind)]}, {"subsets": [subset]}]}))
            options = options_of({"resolution": "512", "dataset_config": str(path)})
            with pytest.raises(UserError) as caught:
                build_blueprint(*options, command=COMMAND_OF[kind], control_images=True)
            assert str(caught.value).startswith("data.json, datasets[1]")
            assert name in str(caught.value)


def test_the_ways_to_resize_are_those_of_the_pictures() -> None:
    assert KEYS["resize_interpolation"].choices == tuple(INTERPOLATIONS)
