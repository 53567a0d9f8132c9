"""The presets that come with the program: each opens without a remark, is understood whole, and runs as it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, configs, user_presets
from kohya_gui.layouts import LAYOUTS
from sd_scripts.schema.fields import trainer_fields
from sd_scripts.schema.gui import FAMILY_SWITCHES
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.rules import check
from sd_scripts.schema.tabs import TABS, tab_complete, tab_fields

ROOT = configs.PROJECT / "presets"
PRESETS = sorted((path.parent.name, path.stem) for path in ROOT.glob("*/*.json"))
MODELS = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-v": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
PLACES = {
    "": {"output_dir": "/out", "output_name": "mine", "train_data_dir": "/pictures"},
    "finetune": {"in_json": "/pictures/meta.json"},
    "textual_inversion": {"token_string": "mycat4", "init_word": "cat"},
    "controlnet": {"conditioning_data_dir": "/edges"},
    "lllite": {"conditioning_data_dir": "/edges"},
}
# what the page works out from options of its own, which the trainer does not know
DERIVED = {
    "model_family": ("v2", "v_parameterization"),
    "lr_warmup": ("lr_warmup_steps",),
    "LoRA_type": ("network_module", "network_args"),
    "template": ("use_object_template", "use_style_template"),
}


def content_of(tab: str, name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / tab / f"{name}.json").read_text(encoding="utf-8")))


def values_of(tab: str, name: str) -> dict[str, Any]:
    return configs.open_file(ROOT / tab / f"{name}.json", tab).values


def filled(tab: str, values: dict[str, Any]) -> dict[str, Any]:
    model = {"pretrained_model_name_or_path": MODELS[values["model_family"]]}
    return {**values, **model, **PLACES[""], **PLACES.get(tab, {})}


def test_there_are_recipes_for_every_tab_and_family() -> None:
    assert len(PRESETS) >= 24
    found = {(tab, values_of(tab, name)["model_family"]) for tab, name in PRESETS}
    assert {tab for tab, _ in found} == set(TABS)
    for tab in ("lora", "dreambooth", "finetune"):
        assert {family for each, family in found if each == tab} >= {"sd1", "sd2-v", "sdxl"}
    texts = [content_of(tab, name)["description"] for tab, name in PRESETS]
    assert len(set(texts)) == len(texts)


def test_each_tab_opens_with_a_preset_that_is_there() -> None:
    assert [name for name, layout in LAYOUTS.items() if (name, layout.start_preset) not in PRESETS] == []


@pytest.mark.parametrize(("tab", "name"), PRESETS)
class TestPreset:
    """One preset."""

    def test_it_says_what_it_is_for(self, tab: str, name: str) -> None:
        said = content_of(tab, name)["description"]
        assert re.match(r"Goal: .*VRAM: about \d+\.\d GB .* GPU with \d+ GB .*Settings: ", said)
        assert 200 < len(said) < 900 and user_presets.clean_name(name) == name
        assert ("SDXL" in name) == (values_of(tab, name)["model_family"] == "sdxl")

    def test_it_opens_without_a_remark_and_holds_only_what_differs(self, tab: str, name: str) -> None:
        opened = configs.open_file(ROOT / tab / f"{name}.json")
        written = {key: v for key, v in content_of(tab, name).items() if key not in ("format", "version", "tab")}
        assert (opened.tab, opened.report, opened.extras, opened.partial) == (tab, [], {}, False)
        assert opened.values == {key: value for key, value in written.items() if key != "description"}
        known = tab_fields(tab)
        assert [key for key, value in opened.values.items() if value == known[key].default] == []
        assert user_presets.recipe(tab, opened.values) == opened.values

    def test_every_setting_applies(self, tab: str, name: str) -> None:
        known, full = tab_fields(tab), tab_complete(tab, filled(tab, values_of(tab, name)))
        full |= dict(zip(("v2", "v_parameterization", "sdxl"), FAMILY_SWITCHES[full["model_family"]], strict=True))
        idle = [key for key in values_of(tab, name) if not _applies(known[key], full)]
        assert idle == []

    def test_nothing_about_it_is_wrong_or_doubtful(self, tab: str, name: str) -> None:
        values = filled(tab, values_of(tab, name))
        made = command.build(TABS[tab].command, values, on_cpu=False)
        findings = check(command.trainer(TABS[tab].command, values), made.toml)
        assert [str(finding) for finding in findings] == []
        assert made.notes == []

    def test_the_trainer_gets_exactly_its_settings(self, tab: str, name: str) -> None:
        preset = values_of(tab, name)
        values = filled(tab, preset)
        made = command.build(TABS[tab].command, values, job_dir=Path("/job"), on_cpu=False)
        trainer = trainer_fields(command.trainer(TABS[tab].command, values))
        sent = {key: value for key, value in values.items() if key in trainer and value != trainer[key].default}
        # the network's own settings go into its arguments, and without prompts no samples are made
        kind = LORA_TYPES[preset.get("LoRA_type", "Standard")]
        inside = {key for key, _ in kind.args} if tab == "lora" else set()
        sent = {key: value for key, value in sent.items() if key not in inside | {"sample_sampler"}}
        derived = {key for source, keys in DERIVED.items() if source in (*preset, "LoRA_type") for key in keys}
        assert {key: value for key, value in made.toml.items() if key not in derived | {"job_dir"}} == sent
        said = dict(str(item).split("=", 1) for item in made.toml.get("network_args") or [])
        for key, name_there in kind.args if tab == "lora" else ():
            if key in preset:
                assert said[name_there] == (
                    str(preset[key]) if isinstance(preset[key], str | bool) else f"{preset[key]:g}"
                )


def _applies(option: OptionField, full: dict[str, Any]) -> bool:
    return option.when is None or option.when.holds(full)
