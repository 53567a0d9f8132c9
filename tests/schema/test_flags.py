"""The trainer's flags against the facts of the scripts people know, and the quality of every option's description."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import defaults, fields, trainer_fields, visible
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import All, Any_, Given, In, Is, Not, option, section, section_fields
from sd_scripts.schema.parse import build_parser
from sd_scripts.schema.tabs import tab_aliases, tab_options

DATA = Path(__file__).parent / "data"
FLAGS = json.loads((DATA / "train_network_flags.json").read_text(encoding="utf-8"))
FORM = json.loads((DATA / "kohya_lora_form.json").read_text(encoding="utf-8"))
NEWEST = {**FLAGS["both"], **FLAGS["latest"]}
OURS = {"job_dir", "plan_only", "allow_plugins"}
FIELDS = fields("train_network")
TRAINER = trainer_fields("train_network")
# accepted beyond the known choices: the right spelling of a misspelt back end, and the launcher's word for none
MORE_CHOICES = {"dynamo_backend": {"no", "tensorrt"}}


def test_known_flags_are_complete() -> None:
    assert len({**FLAGS["both"], **FLAGS["v0.8.4"]}) == 148
    assert set(NEWEST) | OURS == set(TRAINER)


@pytest.mark.parametrize("name", sorted(NEWEST))
def test_flag_is_as_known(name: str) -> None:
    fact, field = NEWEST[name], TRAINER[name]
    assert field.type == {"flag": "bool", "Path": "str"}.get(fact["type"], fact["type"])
    assert field.default == fact["default"]
    assert type(field.default) is type(fact["default"])
    assert field.nargs == fact["nargs"]
    if fact["choices"]:
        assert not field.custom
        assert set(field.choices) - MORE_CHOICES.get(name, set()) == {c for c in fact["choices"] if c is not None}
        assert field.optional == (fact["default"] is None)
    else:
        assert not field.choices or field.custom, "a flag that took anything must not be narrowed to choices"


@pytest.mark.parametrize("name", sorted(FLAGS["v0.8.4"]))
def test_changed_flag_still_takes_the_old_values(name: str) -> None:
    fact, field = FLAGS["v0.8.4"][name], TRAINER[name]
    assert field.default == fact["default"]
    assert set(fact["choices"] or []) - {None} <= set(field.choices)
    wider = {"int": {"int", "int_or_float"}, "float": {"float", "list[float]"}}
    assert field.type in wider.get(fact["type"], {fact["type"]})


def test_argparse_offers_every_flag_once() -> None:
    offered = [action for action in build_parser("train_network")._actions if action.dest != "help"]
    assert [action.option_strings for action in offered] == [[f"--{key}"] for key in TRAINER]
    assert all(action.default is argparse.SUPPRESS for action in offered)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_every_option_is_described(key: str) -> None:
    field = FIELDS[key]
    assert 20 <= len(field.help) <= 330
    assert field.help[-1] in ".:)" and field.help[0] == field.help[0].strip()
    assert 3 <= len(field.label) <= 45
    assert field.label != field.key and "_" not in field.label
    assert field.kind in ("", "file", "folder", "model", "secret", "long", "list")
    assert field.place in ("Model", "Folders", "Parameters", "Samples", "Accelerate")
    assert field.target in ("toml", "launcher", "network_args", "gui")
    if field.minimum is not None and field.maximum is not None:
        assert field.minimum < field.maximum
    for word in ("http", "TODO", "argparse"):
        assert word not in field.help


def test_no_two_options_share_help_or_label() -> None:
    for what in ("help", "label"):
        texts = [getattr(field, what) for field in FIELDS.values()]
        assert sorted({text for text in texts if texts.count(text) > 1}) == [], what


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_default_has_the_type_and_lies_in_the_range(key: str) -> None:
    field: Any = FIELDS[key]
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (float, int),
        "int_or_float": (int, float),
        "bool": (bool,),
    }
    if field.default is None:
        assert field.optional
    else:
        assert isinstance(field.default, kinds[field.type])
        if field.minimum is not None:
            assert field.default >= field.minimum
        if field.maximum is not None:
            assert field.default <= field.maximum
        if field.choices and not field.custom:
            assert field.default in field.choices


def test_conditions_speak_of_known_options() -> None:
    unknown = frozenset().union(*(field.when.keys() for field in FIELDS.values() if field.when)) - set(FIELDS)
    assert unknown == set()


def test_aliases_are_unique_and_no_options() -> None:
    found = [old for field in FIELDS.values() for old in field.aliases]
    assert len(found) == len(set(found))
    assert not set(found) & set(FIELDS)


@pytest.mark.parametrize("key", FORM["keys"])
def test_every_field_of_the_known_form_has_an_option(key: str) -> None:
    if key in ("model_list", "stop_text_encoder_training"):
        # the base model's own field says the first, and a network was never trained as the second says
        assert key not in tab_options("lora")
    else:
        assert tab_aliases("lora").get(key, key) in tab_options("lora")


def test_lora_types_of_the_known_form() -> None:
    assert set(FORM["lora_types"]) <= set(LORA_TYPES)
    for name, kind in LORA_TYPES.items():
        for key, _ in kind.args:
            assert FIELDS[key].target == "network_args", (name, key)
            assert key in visible("train_network", {"LoRA_type": name}), (name, key)


def test_what_a_newcomer_sees() -> None:
    basic = [key for key, field in FIELDS.items() if field.basic]
    assert len(basic) == 14
    assert {"pretrained_model_name_or_path", "train_data_dir", "output_name", "network_dim", "learning_rate"} <= set(
        basic
    )


def test_hidden_options_follow_their_conditions() -> None:
    assert "huber_c" not in visible("train_network", {})
    assert "huber_c" in visible("train_network", {"loss_type": "huber"})
    assert "noise_offset" in visible("train_network", {"noise_offset_type": "Original"})
    assert "noise_offset" not in visible("train_network", {"noise_offset_type": "Multires"})
    assert "network_dim" not in visible("train_network", {"LoRA_type": "LyCORIS/iA3"})
    assert "factor" in visible("train_network", {"LoRA_type": "LyCORIS/LoKr"})


def test_conditions() -> None:
    values: dict[str, Any] = {"a": 1, "b": "x", "c": None, "d": 0.0}
    assert Is("a", 1).holds(values) and not Is("a", 2).holds(values)
    assert In("b", "x", "y").holds(values) and not In("b", "y").holds(values)
    assert Given("a").holds(values) and not Given("c").holds(values) and not Given("d").holds(values)
    assert All(Is("a", 1), Is("b", "x")).holds(values) and not All(Is("a", 1), Is("b", "y")).holds(values)
    assert Any_(Is("a", 2), Is("b", "x")).holds(values) and not Any_(Is("a", 2), Is("b", "y")).holds(values)
    assert Not(Is("a", 2)).holds(values) and not Not(Is("a", 1)).holds(values)
    assert All(Is("a", 1), Any_(Given("c"), Not(In("b", "y")))).keys() == {"a", "b", "c"}


def test_a_section_is_a_frozen_dataclass_and_one_record_is_enough() -> None:
    @section("Test")
    class Extra:
        """One option."""

        speed: float | None = option(None, "How fast, in metres a second.", minimum=0)

    (field,) = section_fields(Extra, "extra")
    assert (field.key, field.type, field.optional, field.section) == ("speed", "float", True, "Test")
    assert (field.label, field.target, field.attr) == ("Speed", "toml", "extra")
    made = Extra(speed=2.0)
    assert made.speed == 2.0 and Extra().speed is None
    with pytest.raises(AttributeError):
        made.speed = 3.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Extra(2.0)  # type: ignore[call-arg]


def test_config_values_are_the_defaults() -> None:
    config = COMMANDS["train_network"].config()
    assert {key: config.values()[key] for key in TRAINER} == {key: defaults("train_network")[key] for key in TRAINER}


def test_keys_are_plain_names() -> None:
    assert [key for key in FIELDS if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key)] == []
