"""Every field of every tab changes the command, and every text in it arrives as it is."""

import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import checks, command
from kohya_gui.layouts import LAYOUTS
from kohya_gui.model_kind import FAMILIES, resolve
from kohya_gui.paths import Roots
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import All, Any_, Condition, Given, In, Is, Not, OptionField
from sd_scripts.schema.tabs import TABS, tab_fields

FIELDS = [(tab, key) for tab, layout in LAYOUTS.items() for key in tab_fields(tab) if key not in layout.set_by_page]
# what a field works only together with, beyond its condition
TOGETHER: dict[str, dict[str, Any]] = {
    "epoch": {"max_train_steps": None},
    "lr_warmup": {"lr_scheduler": "cosine"},
    "sample_sampler": {"sample_every_n_epochs": 1},
    "sample_prompts": {"sample_every_n_epochs": 1},
    "sample_prompt_text": {"sample_every_n_epochs": 1},
    "noise_offset_type": {"noise_offset": 0.1},
    "multi_gpu": {"num_processes": 1},
    **dict.fromkeys(
        (
            "create_caption",
            "create_buckets",
            "batch_size",
            "full_path",
            "use_latent_files",
            "caption_metadata_filename",
        ),
        {"train_data_dir": "pictures", "pretrained_model_name_or_path": "model.ckpt"},
    ),
    "wandb_api_key": {"log_with": "wandb"},
}
SPECIAL: dict[str, Any] = {
    "LoRA_type": "LoRA-FA",
    "additional_parameters": "--seed 77",
    "extra_accelerate_launch_args": "--debug",
    "gpu_ids": "1",
    "template": "style template",
    "block_lr": ",".join(["1e-5"] * 23),
    "model_family": "sd2-v",
    "caption_metadata_filename": "other.json",
    "latent_metadata_filename": "other.json",
    "resolution": "640",
    "main_process_ip": "10.0.0.1",
}


def fulfilling(tab: str, when: Condition | None) -> dict[str, Any]:
    """Values that let a field with this condition apply."""
    found: dict[str, Any] = {}
    if isinstance(when, Is):
        found = {when.key: when.value}
    elif isinstance(when, In):
        found = {when.key: when.values[0]}
    elif isinstance(when, Given):
        found = {when.key: other_value(tab_fields(tab)[when.key])}
    elif isinstance(when, Any_):
        found = fulfilling(tab, when.parts[-1])
    elif isinstance(when, Not):
        assert isinstance(when.part, Is) and when.part.value is True
        found = {when.part.key: False}
    elif isinstance(when, All):
        found = {key: value for part in when.parts for key, value in fulfilling(tab, part).items()}
    for key in list(found):
        if key in tab_fields(tab) and found[key] != tab_fields(tab)[key].default:
            found = {**fulfilling(tab, tab_fields(tab)[key].when), **found}
    if "v_parameterization" in found:
        found["model_family"] = "sd2-v" if found.pop("v_parameterization") else "sd1"
    if "sdxl" in found:
        found["model_family"] = "sdxl" if found.pop("sdxl") else found.get("model_family", "sd1")
    return found


def other_value(field: OptionField) -> Any:
    """A value that is not the default and not the one that stands for it."""
    if field.key in SPECIAL:
        return SPECIAL[field.key]
    if field.type == "bool":
        return not field.default
    if field.choices:
        return next(choice for choice in field.choices if choice not in (field.default, field.off))
    if field.type == "str":
        return "some/place"
    if field.type.startswith("list"):
        return ["a=1"] if field.type == "list[str]" else [0.25]
    low = field.minimum if field.minimum is not None else 0
    high = field.maximum if field.maximum is not None else low + 64
    numbers = [low + (high - low) / 2, low + 1, low, high]
    made = [int(number) if field.type == "int" else number for number in numbers]
    return next(number for number in made if number not in (field.default, field.off) and low <= number <= high)


def outcome(tab: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    plan = command.build(TABS[tab].command, values, job_dir=Path("job"), on_cpu=False)
    return plan.toml, plan.argv, plan.env, plan.secrets, plan.files, plan.before


@pytest.mark.parametrize("tab", TABS)
def test_every_field_changes_the_command(tab: str) -> None:
    idle = []
    for key in [key for name, key in FIELDS if name == tab]:
        field = tab_fields(tab)[key]
        base = {"model_family": "sd1", **fulfilling(tab, field.when), **TOGETHER.get(key, {})}
        base.pop(key, None)
        value = other_value(field)
        if outcome(tab, base) == outcome(tab, {**base, key: value}):
            idle.append((key, value, base))
    # one model trains with one process whether or not this is on; the note says so
    allowed = {"multi_gpu"}
    # the family of these models follows from the tab
    allowed |= {"model_family"} if tab == "lllite" else set()
    assert [found for found in idle if found[0] not in allowed] == []


HOSTILE = (
    'a "b" & c | d ^ e %PATH% !x! $HOME `id` \\',
    "line\nbreak",
    "' ; rm -rf x ; '",
    "$(id) <in >out",
    "ünï 猫 🐈 \u202e",
    '"""\n[section]\nkey = 1\n',
    "\\u0041 \\n \\",
    "--learning_rate 1",
    "-Z",
    "\x7f\x1b[0m",
)
# texts that must have a certain form are refused with a sentence
FORMED = {"gpu_ids", "additional_parameters", "extra_accelerate_launch_args", "resolution"}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("tab", TABS)
def test_hostile_text_arrives_as_text_or_is_refused(tab: str, text: str) -> None:
    arrived = refused = 0
    for key, field in tab_fields(tab).items():
        free = field.type in ("str", "list[str]") and (not field.choices or field.custom) and key not in FORMED
        if not free or key in LAYOUTS[tab].set_by_page:
            continue
        sent = [text] if field.type == "list[str]" else text
        values = {"model_family": "sd1", **fulfilling(tab, field.when), **TOGETHER.get(key, {}), key: sent}
        try:
            plan = command.build(TABS[tab].command, values, job_dir=Path("job"), on_cpu=False)
        except UserError as error:
            assert error.key == key
            refused += 1
            continue
        arrived += 1
        assert tomllib.loads(plan.toml_text) == plan.toml
        for step in (*[step.argv for step in plan.before], plan.argv):
            # one argument of its own, or at the end of --flag=value or of a path; never words of a line
            assert all(text not in word or word == text or word.endswith(text) or text in word[1:] for word in step)
        reached = json.dumps([plan.toml, plan.argv, plan.env, plan.secrets, plan.files, [s.argv for s in plan.before]])
        assert json.dumps(text)[1:-1] in reached, key
        assert shlex.split(plan.line(windows=False))[1 + len(plan.env) :][-len(plan.argv) :] == plan.argv
        assert field.kind != "secret" or text not in plan.toml_text + " ".join(plan.argv)
    assert arrived > 20
    assert refused <= 6


def test_each_family_is_a_choice() -> None:
    assert set(tab_fields("lora")["model_family"].choices) == {"auto", *FAMILIES}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("tab", TABS)
def test_no_path_of_any_tab_may_lead_outside(tab: str, family: str, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    accepted = []
    for key, field in tab_fields(tab).items():
        if field.kind not in ("file", "folder", "model") or key in LAYOUTS[tab].set_by_page:
            continue
        values = {"model_family": family, **fulfilling(tab, field.when), **TOGETHER.get(key, {})}
        values = {**values, "model_family": family, key: str(outside / "x")}
        applies = field.when is None or field.when.holds(resolve(values) | {"enable_bucket": True})
        view = checks.plan(TABS[tab].command, values, Roots([inside]))
        if applies and not any(problem.key == key and problem.severity == "error" for problem in view.problems):
            accepted.append(key)
    assert accepted == []
