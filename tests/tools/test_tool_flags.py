"""Every script under its known path, with every known flag, positional argument, type, choice and default."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from script_kit import ROOT, Run

from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.tools.common import build_parser, is_required

FLAGS: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "flags.json").read_text(encoding="utf-8")
)
TRAINING = {"tools/cache_latents.py", "tools/cache_text_encoder_outputs.py"}
SMALL = sorted(set(FLAGS) - TRAINING)
CAPTIONERS = {
    "finetune/make_captions.py",
    "finetune/make_captions_by_git.py",
    "finetune/tag_images_by_wd14_tagger.py",
}
MERGERS = {"networks/merge_lora.py", "networks/sdxl_merge_lora.py"}
LOCON = {"tools/lycoris_locon_extract.py", "tools/extract_locon.py"}
EXTRACTORS = {"networks/extract_lora_from_models.py", *LOCON}
RESIZERS = {"networks/resize_lora.py", "tools/resize_lora.py"}
OURS = {
    "overwrite": set(SMALL),
    "keywords": {"tools/cleanup_captions.py"},
    "model_id": {"tools/blip2-for-sd/main.py"},
    **dict.fromkeys(
        (
            "always_first_tags",
            "tag_replacement",
            "character_tag_expand",
            "character_tags_first",
            "use_rating_tags",
            "use_rating_tags_as_last_tag",
        ),
        {"finetune/tag_images_by_wd14_tagger.py"},
    ),
    "lbws": {*MERGERS, "networks/svd_merge_lora.py"},
    "seed": MERGERS,
    "legacy": {
        *MERGERS,
        *RESIZERS,
        "networks/svd_merge_lora.py",
        "networks/extract_lora_from_models.py",
        "networks/extract_lora_from_dylora.py",
    },
    "lcm_lora": {"tools/lcm_convert.py"},
    "exact": {*EXTRACTORS, "networks/svd_merge_lora.py"},
    "json": {"networks/check_lora_weights.py"},
    "words": {"networks/lora_interrogator.py"},
    "prefix": CAPTIONERS,
    "postfix": CAPTIONERS,
}


def options_of(script: str) -> dict[str, OptionField]:
    name = "tools.blip2" if "blip2" in script else script.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(f"sd_scripts.{name}")
    return {field.key: field for field in section_fields(module.OPTIONS)}


@pytest.mark.parametrize("script", sorted(FLAGS))
def test_the_script_is_where_it_was(script: str) -> None:
    assert (ROOT / "sd_scripts" / script).is_file()


@pytest.mark.parametrize("script", SMALL)
def test_options_are_as_known(script: str) -> None:
    fields, known = options_of(script), FLAGS[script]
    assert {key for key in fields if key not in known} <= {key for key, scripts in OURS.items() if script in scripts}
    positionals = [key for key, fact in known.items() if fact.get("positional")]
    assert [key for key, field in fields.items() if not field.flag] == positionals
    for key, fact in known.items():
        field = fields[key]
        assert field.type == fact["type"], key
        assert field.default == fact.get("default", False if fact["type"] == "bool" else None), key
        assert set(fact.get("choices", ())) == set(field.choices), key
        assert field.nargs == fact.get("nargs"), key
        assert is_required(field) == fact.get("required", False), key


@pytest.mark.parametrize("script", SMALL)
def test_the_parser_offers_every_spelling(script: str) -> None:
    module = importlib.import_module(
        "sd_scripts." + ("tools.blip2" if "blip2" in script else script.removesuffix(".py").replace("/", "."))
    )
    actions = {action.dest: action for action in build_parser(module.OPTIONS, module.PROG)._actions}
    for key, fact in FLAGS[script].items():
        spelled = [] if fact.get("positional") else fact.get("flags", [f"--{key}"])
        assert set(actions[key].option_strings) == set(spelled)
        assert actions[key].default is argparse.SUPPRESS


@pytest.mark.parametrize("script", SMALL)
def test_every_option_is_described(script: str) -> None:
    for field in options_of(script).values():
        assert 10 <= len(field.help) <= 200 and field.help[-1] == ".", field.key
        assert not re.search(r"TODO|http", field.help)


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_help_and_a_wrong_flag(name: str, fresh_script: Run) -> None:
    helped = fresh_script(name, "--help")
    assert helped.returncode == 0 and "usage:" in helped.stdout, helped.stderr
    positionals = ["1" for fact in FLAGS[name].values() if fact.get("positional")]
    wrong = fresh_script(name, *positionals, "--no_such_flag")
    assert wrong.returncode == 2, wrong.stderr
    assert "no_such_flag" in wrong.stderr and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
