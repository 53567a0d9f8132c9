"""Saved forms of kohya_ss give the same effective options here as there, except where it says why not."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, configs
from kohya_gui.old_keys import ONLY_V26
from sd_scripts.schema.fields import convert, trainer_fields
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.tabs import TABS, tab_options

CASES = json.loads((Path(__file__).parent / "data" / "golden_forms.json").read_text(encoding="utf-8"))["cases"]
FLUX = [name for name, case in CASES.items() if case["script"].startswith("flux")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture folders that the recorded commands were made with."""
    root = tmp_path_factory.mktemp("golden")
    for name, count in (("IMG/10_cat", 7), ("IMG/3_dog", 5), ("FLAT", 9)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").touch()
    return root


def filled(part: Any, folder: Path) -> Any:
    """Test data with its folders in place."""
    text = json.dumps(part)
    for name in ("IMG", "OUT", "LOG", "FLAT"):
        text = text.replace("{" + name + "}", json.dumps(str(folder / name))[1:-1])
    return json.loads(text)


def effective(tab: str, trainer: str, options: Mapping[str, Any], page: Mapping[str, Any]) -> dict[str, Any]:
    """The options that change something: typed, not the default, not overruled by another one."""
    known = trainer_fields(trainer)
    typed = {key: convert(known[key], value) for key, value in options.items() if key in known}
    kept = {key: value for key, value in typed.items() if value not in (None, []) and not is_default(known[key], value)}
    full = {key: option.default for key, option in tab_options(tab).items()} | dict(page) | kept
    full["sdxl"] = trainer.startswith("sdxl")
    for key in list(kept):
        when = tab_options(tab)[key].when
        if when is not None and not when.holds(full) and key != "network_module":
            del kept[key]
    if "max_train_epochs" in kept:
        kept.pop("max_train_steps", None)
    if kept.get("lr_scheduler") != "cosine_with_restarts":
        kept.pop("lr_scheduler_num_cycles", None)
    if "network_args" in kept:
        pairs = dict(item.replace('"', "").split("=", 1) for item in kept["network_args"])
        kept["network_args"] = {key: value for key, value in pairs.items() if value not in ("False", "0", "0.0")}
    if not command.makes_samples(kept):
        kept = {key: value for key, value in kept.items() if key not in ("sample_sampler", "sample_prompts")}
    if len(set(kept.get("text_encoder_lr", ()))) == 1:
        # one rate is that of every text encoder
        kept["text_encoder_lr"] = kept["text_encoder_lr"][:1]
    if 0 < kept.get("lr_warmup_steps", 0) < 1 and "max_train_epochs" not in kept:
        kept["lr_warmup_steps"] = round(kept["lr_warmup_steps"] * typed.get("max_train_steps", 1600))
    return kept


def is_default(option: OptionField, value: Any) -> bool:
    return bool(value == option.default or (option.off is not None and value == option.off))


# keys of the page that v26 writes into the trainer's file too, where they do nothing
NOT_THE_TRAINERS = {"epoch", "noise_offset_type"}
# v26 takes what is missing in a file of older versions from its own form; here such a file means what it meant when it
# was written: steps from epochs, warm-up as a share of them, restarts as many as epochs, no saves between
AS_WHEN_WRITTEN = {"max_train_steps", "lr_warmup_steps", "lr_scheduler_num_cycles", "save_every_n_epochs"}
DIFFERENT: dict[tuple[str, str], str] = {
    ("v26 finetune 03", "in_json"): "a description of datasets takes the place of a metadata file",
    (
        "v26 lora 11",
        "wandb_run_name",
    ): "v26 names the run after the result; here a run without a name gets the tracker's",
    (
        "v26 lora 12",
        "wandb_run_name",
    ): "v26 names the run after the result; here a run without a name gets the tracker's",
}


def differences(case: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, Any]], set[str]]:
    """Key -> (theirs, ours) where a form gives other effective options here, and keys that no trainer here knows."""
    tab = TABS[case["tab"]]
    opened = configs.open_text(json.dumps(case["raw"]), tab.name)
    plan = command.build(tab.command, opened.values, on_cpu=False)
    trainer = Path(plan.argv[-3]).stem
    assert (plan.command, f"{trainer}.py") == (tab.command, case["script"])
    flags = command.further_flags(trainer, " ".join(case.get("flags", ())))
    page = {key: opened.values[key] for key in ("LoRA_type", "noise_offset_type", "train_dir") if key in opened.values}
    ours = effective(tab.name, trainer, tomllib.loads(plan.toml_text), page)
    theirs = effective(tab.name, trainer, {**case["expected"], **flags}, page)
    if "sample_prompts" in ours:
        # theirs lies beside the result, ours in the job's folder; both hold the same prompts
        assert plan.files["prompts.txt"] == case["raw"]["sample_prompts"] + "\n"
        ours["sample_prompts"] = theirs["sample_prompts"]
    assert ours.pop("job_dir") == "JOB_FOLDER"
    both = {key: (theirs.get(key), ours.get(key)) for key in theirs.keys() | ours.keys()}
    unknown = set(case["expected"]) - set(trainer_fields(trainer)) - NOT_THE_TRAINERS
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}, unknown


@pytest.mark.parametrize("name", sorted(set(CASES) - set(FLUX)))
def test_the_same_effective_options_as_kohya_ss(name: str, folders: Path) -> None:
    case = filled(CASES[name], folders)
    found, unknown = differences(case)
    assert unknown == set()
    allowed = {key for case_name, key in DIFFERENT if case_name == name}
    assert allowed <= set(found), "a difference that is none any more"
    if name.startswith("v26") and not ONLY_V26 & case["raw"].keys():
        allowed |= AS_WHEN_WRITTEN
    assert {key: pair for key, pair in found.items() if key not in allowed} == {}


def test_of_the_recorded_forms_only_one_is_for_a_model_that_is_not_here() -> None:
    assert [CASES[name]["script"] for name in FLUX] == ["flux_train_network.py"]
    assert len(CASES) == 67
    assert {case["tab"] for case in CASES.values()} == {"lora", "finetune", "dreambooth", "textual_inversion"}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(FLUX)))
def test_the_launcher_gets_what_kohya_ss_gave_it(name: str, folders: Path) -> None:
    """Their launch arguments are among ours with the same values; ours say the defaults too."""
    case = filled(CASES[name], folders)
    tab = TABS[case["tab"]]
    values = configs.open_text(json.dumps(case["raw"]), tab.name).values
    plan = command.build(tab.command, {**values, "additional_parameters": None}, on_cpu=False)
    ours = plan.argv[: plan.argv.index("--gpu_ids") + 2]
    words = [part for word in case["launch"] for part in word.split("=", 1)]
    theirs = dict(zip(words[::2], words[1::2], strict=True))
    # the trainer compiles itself; compiled twice, it would fail
    assert theirs.pop("--dynamo_backend", "no") == "no"
    assert theirs.pop("--dynamo_mode", "default") == "default"
    for flag, value in theirs.items():
        assert ours[ours.index(flag) + 1] == value
