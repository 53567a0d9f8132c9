"""The flags of all trainers against those of the known scripts, of the old version and of the newest.

Every difference is listed here with its reason, and a listed difference that is none any more fails too.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.fields import fields, trainer_fields
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.parse import build_parser, parse
from sd_scripts.schema.retired import retired

KNOWN = json.loads((Path(__file__).parent / "data" / "trainer_flags.json").read_text(encoding="utf-8"))
"""version -> script (or "all") -> rows of name, type, default, choices, number of values."""
VERSIONS = tuple(KNOWN)
SCRIPTS = [name for name in KNOWN["latest"] if name != "all"]

# flags of the known scripts that have no meaning here: they are ignored with a warning
IGNORED = {
    ("latest", "sdxl_train"): {"disable_mmap_load_safetensors", "fused_optimizer_groups"},
    **{
        ("latest", name): {"disable_mmap_load_safetensors"}
        for name in SCRIPTS
        if name.startswith("sdxl") and name != "sdxl_train"
    },
}
# (version, option): what differs, and why; for every script that has the option
DIFFERENT: dict[tuple[str, str, str], tuple[Any, Any, str]] = {
    ("v0.8.4", "lr_warmup_steps", "type"): ("int", "int_or_float", "shares of all steps, as in the newest scripts"),
    ("v0.8.4", "text_encoder_lr", "type"): ("float", "list[float]", "one rate per text encoder, as in the newest"),
    ("v0.8.4", "text_encoder_lr", "nargs"): (None, "*", "one rate per text encoder, as in the newest"),
    ("v0.8.4", "dynamo_backend", "more choices"): (
        set(), {"no", "tensorrt", "ipex", "tensort", "tvm"}, "those of the newest scripts, and the two below"
    ),
    ("latest", "dynamo_backend", "more choices"): (
        set(), {"no", "tensorrt"}, "the launcher's word for none, and the right spelling of tensort"
    ),
}  # fmt: skip
# offered everywhere: the loop is one, so what it can do for networks it can do for all
SHARED = {
    "job_dir": "ours: folder of the job",
    "plan_only": "ours: only say what would be done",
    "allow_plugins": "ours: foreign code is refused otherwise",
    "validation_split": "validation works with every method",
    "validation_seed": "validation works with every method",
    "validate_every_n_steps": "validation works with every method",
    "validate_every_n_epochs": "validation works with every method",
    "max_validation_steps": "validation works with every method",
    "initial_epoch": "the numbering belongs to the loop",
    "initial_step": "the numbering belongs to the loop",
    "skip_until_initial_step": "the numbering belongs to the loop",
    "cpu_offload_checkpointing": "a way of gradient checkpointing, which all have",
    "no_half_vae": "every trainer encodes pictures by the VAE",
}
# newer descriptions of files, which the newest train_controlnet.py has lost altogether
_METADATA = {key for key in trainer_fields("train_controlnet") if key.startswith("metadata_")}
_ROUNDING = {"stochastic_rounding"}
# frozen weights can be kept in 8 bits by every method that leaves the U-Net as it is
_SMALL = {"fp8_base_unet"}
OURS = {
    "train_db": _ROUNDING,
    # transparency as a mask needs no folder of masks
    "fine_tune": _ROUNDING | {"masked_loss"},
    # regularisation pictures are taken there too
    "sdxl_train": _ROUNDING | {"prior_loss_weight"},
    **{name: _SMALL for name, command in COMMANDS.items() if command.method in ("embedding", "xti", "lllite")},
    "train_controlnet": _METADATA | _SMALL,
}


def rows(version: str, script: str) -> dict[str, dict[str, Any]]:
    """The known flags of a script: name -> what is known."""
    names = ("name", "type", "default", "choices", "nargs")
    found = [dict(zip(names, row, strict=True)) for row in KNOWN[version]["all"] + KNOWN[version][script]]
    return {row["name"]: row for row in found}


def command_of(script: str) -> str:
    """The command behind a script; one has two names."""
    return script.removesuffix("_old")


CASES = [(version, script) for version in VERSIONS for script in SCRIPTS]


def test_the_known_numbers_are_complete() -> None:
    assert len(SCRIPTS) == 11 and {command_of(script) for script in SCRIPTS} == set(COMMANDS)
    assert {name: len(rows("v0.8.4", name)) for name in SCRIPTS} == {
        "train_network": 148, "sdxl_train_network": 150, "train_db": 134, "fine_tune": 133, "sdxl_train": 139,
        "train_textual_inversion": 134, "train_textual_inversion_XTI": 133, "sdxl_train_textual_inversion": 134,
        "train_controlnet": 131, "sdxl_train_control_net_lllite": 137, "sdxl_train_control_net_lllite_old": 137,
    }  # fmt: skip


@pytest.mark.parametrize(("version", "script"), CASES)
def test_every_known_flag_is_taken(version: str, script: str) -> None:
    command = command_of(script)
    missing = set(rows(version, script)) - set(trainer_fields(command))
    assert missing == IGNORED.get((version, script), set())
    assert missing <= set(retired(command)), "an ignored flag needs a reason"


@pytest.mark.parametrize(("version", "script"), CASES)
def test_every_known_flag_means_the_same(version: str, script: str) -> None:
    offered = trainer_fields(command_of(script))
    found: dict[tuple[str, str, str], tuple[Any, Any]] = {}
    for name, known in rows(version, script).items():
        if name in offered:
            found |= {(version, name, what): pair for what, pair in differences(known, offered[name]).items()}
    assert found == {key: value[:2] for key, value in DIFFERENT.items() if key[0] == version and key[1] in offered}


def differences(known: dict[str, Any], field: OptionField) -> dict[str, tuple[Any, Any]]:
    """What differs between a known flag and ours: known value, our value."""
    kind = {"flag": "bool", "Path": "str"}.get(known["type"], known["type"])
    pairs: dict[str, tuple[Any, Any]] = {
        "type": (kind, field.type),
        "default": (known["default"], field.default),
        "kind of default": (type(known["default"]), type(field.default)),
        "nargs": (known["nargs"], field.nargs),
    }
    if known["choices"]:
        choices = {choice for choice in known["choices"] if choice is not None}
        pairs["refused choices"] = (set(), choices - set(field.choices))
        pairs["more choices"] = (set(), set(field.choices) - choices)
        pairs["free"] = (False, field.custom)
        pairs["optional"] = (known["default"] is None, field.optional)
    else:
        pairs["narrowed"] = (False, bool(field.choices) and not field.custom)
    return {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_beyond_the_known_ones_has_a_reason(command: str) -> None:
    known = set(rows("v0.8.4", command)) | set(rows("latest", command))
    ours = set(trainer_fields(command)) - known
    assert ours == (set(SHARED) - known) | OURS.get(command, set()) - known
    assert not OURS.get(command, set()) & set(rows("latest", command)), "listed as ours, but known"


@pytest.mark.parametrize("command", COMMANDS)
def test_argparse_offers_every_flag_once(command: str) -> None:
    offered = [action for action in build_parser(command)._actions if action.dest != "help"]
    assert [action.option_strings for action in offered] == [[f"--{key}"] for key in trainer_fields(command)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable_and_holds_only_the_flags_of_the_command(command: str) -> None:
    text = build_parser(command).format_help()
    assert COMMANDS[command].title.split(":")[0] in " ".join(text.split())
    others = set().union(*(trainer_fields(name) for name in COMMANDS)) - set(trainer_fields(command))
    words = {word.rstrip(",]").removeprefix("[") for word in text.split() if word.startswith(("--", "[--"))}
    assert {f"--{key}" for key in trainer_fields(command)} <= words
    assert not {f"--{key}" for key in others} & words
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_descriptions_suit_the_command(command: str) -> None:
    for key, field in fields(command).items():
        assert 20 <= len(field.help) <= 330 and field.help[-1] in ".:)", key
        assert 3 <= len(field.label) <= 45 and "_" not in field.label, key
        if field.choices and not field.custom and field.default is not None:
            assert field.default in field.choices, key
    for what in ("help", "label"):
        texts = [getattr(field, what) for field in fields(command).values()]
        assert sorted({text for text in texts if texts.count(text) > 1}) == [], what
    unknown = frozenset().union(*(field.when.keys() for field in fields(command).values() if field.when))
    assert unknown <= set(fields(command))


def test_ignored_flags_are_said(tmp_path: Path) -> None:
    base = [
        "--pretrained_model_name_or_path",
        "m",
        "--train_data_dir",
        "d",
        "--resolution",
        "1024",
        "--output_dir",
        "o",
    ]
    config = parse("sdxl_train", [*base, "--fused_optimizer_groups", "4", "--disable_mmap_load_safetensors"])
    assert [warning.key for warning in config.warnings] == ["fused_optimizer_groups", "disable_mmap_load_safetensors"]
    assert "fused_backward_pass" in config.warnings[0].message
    toml = tmp_path / "run.toml"
    toml.write_text("train_text_encoder = true\n", encoding="utf-8")
    db = parse("train_db", [*base, "--config_file", str(toml)])
    assert [warning.key for warning in db.warnings] == ["train_text_encoder"]
    assert parse("sdxl_train", [*base, "--config_file", str(toml)]).full.train_text_encoder


def test_real_flags_are_not_retired() -> None:
    for command in COMMANDS:
        assert not set(retired(command)) & set(trainer_fields(command))
    assert "train_text_encoder" in retired("train_network")
    assert "train_text_encoder" not in retired("fine_tune")
    assert "no_token_padding" not in retired("train_db")


def test_every_flag_is_read_by_the_trainers() -> None:
    """An option whose name stands nowhere beside its declaration cannot have an effect."""
    package = Path(__file__).parents[2] / "sd_scripts"
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
        if "schema" not in path.parts or path.name in ("rules.py", "captions.py", "naming.py", "parse.py")
    )
    names = {key for command in COMMANDS for key in trainer_fields(command)}
    idle = {key for key in names if not re.search(rf"\b{key}\b", text)}
    # written into the file by their common beginning
    assert {key for key in idle if not key.startswith("metadata_")} == set()
