"""Files of kohya_ss v20 to v26 and of our own earlier versions, for every tab; damaged and hostile files of any tab.

The files in `data/saved_forms` hold every key that the program of that age saved, each with a value of its own.
"""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from field_values import another

from kohya_gui import command, configs, own_format
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS, tab_aliases, tab_fields

DATA = Path(__file__).parent / "data" / "saved_forms"
FILES = sorted(path.relative_to(DATA).with_suffix("").as_posix() for path in DATA.glob("*/*.json"))
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
# keys of old files that several new ones, or values under another name, stand for
CONSUMED = {
    "v2": "model_family",
    "v_parameterization": "model_family",
    "sdxl": "model_family",
    "sdxl_checkbox": "model_family",
    "use_8bit_adam": "optimizer_type",
    "conv_dims": "conv_block_dims",
    "conv_alphas": "conv_block_alphas",
    "sample_prompts": "sample_prompt_text",
    "stop_text_encoder_training": "stop_text_encoder_percent",
    "stop_text_encoder_training_pct": "stop_text_encoder_percent",
    "generate_caption_database": "create_caption",
    "generate_image_buckets": "create_buckets",
    "unet_lr": "learning_rate",
    "text_encoder_lr": "learning_rate",
}


def read(name: str) -> tuple[dict[str, Any], configs.Opened]:
    """A golden file's keys and what it opens as."""
    path = DATA / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")), configs.open_file(path)


def without_secrets(tab: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a saved file may hold."""
    return {key: value for key, value in values.items() if tab_fields(tab)[key].kind != "secret"}


@pytest.mark.parametrize("name", FILES)
def test_golden_files_open_in_their_tab_with_these_values(name: str) -> None:
    raw, found = read(name)
    report: dict[str, list[str]] = {}
    for line in found.report:
        report.setdefault(line.kind, []).append(line.key)
    assert EXPECTED[name] == {
        "tab": found.tab,
        "values": found.values,
        "extras": sorted(found.extras),
        "report": report,
    }
    assert configs.tab_for(raw) == found.tab and not found.partial
    assert found.values.keys() <= tab_fields(found.tab).keys()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("own/")])
def test_nothing_in_a_golden_file_is_dropped(name: str) -> None:
    raw, found = read(name)
    said = {line.key for line in found.report}
    for key, value in raw.items():
        new = tab_aliases(found.tab).get(key, CONSUMED.get(key, key))
        if key not in found.values and key not in found.extras and new not in {*found.values, *found.extras, *said}:
            assert value in ("", 0, False, None) or _is_off(found.tab, new, value), f"{key} = {value!r} is lost"


def _is_off(tab: str, key: str, value: Any) -> bool:
    option = tab_fields(tab).get(key)
    return option is not None and option.off is not None and float(value) == float(option.off)


@pytest.mark.parametrize("name", FILES)
def test_saving_and_opening_again_gives_the_same_and_no_secret(name: str) -> None:
    _, found = read(name)
    text = configs.save_text(found.tab, found.values, found.extras, found.description)
    again = configs.open_text(text)
    assert again.values == without_secrets(found.tab, found.values)
    assert (again.tab, again.extras, again.description) == (found.tab, found.extras, found.description)
    assert configs.save_text(again.tab, again.values, again.extras, again.description) == text
    assert "secret_of_test" not in text


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("v2")])
def test_golden_files_make_a_command(name: str) -> None:
    _, found = read(name)
    # a share of the steps cannot be told without the pictures
    left_out = ("additional_parameters", "stop_text_encoder_percent")
    values = {key: value for key, value in found.values.items() if key not in left_out}
    plan = command.build(configs.command_of(found.tab), values)
    assert plan.toml["output_name"] == "test"


def test_every_version_of_ours_has_a_golden_file() -> None:
    versions = {raw["version"] for raw, _ in (read(name) for name in FILES if name.startswith("own/"))}
    assert versions == set(range(1, own_format.VERSION + 1)) and set(own_format.STEPS) == versions - {max(versions)}


def test_every_tab_saves_and_opens_its_own_form() -> None:
    for tab in TABS:
        values = {"seed": 3, "max_train_steps": None, "model_family": "sdxl"}
        found = configs.open_text(configs.save_text(tab, values, {"mine": 1}), otherwise="dreambooth")
        assert (found.tab, found.values, found.extras) == (tab, values, {"mine": 1})


def test_every_field_of_every_tab_is_saved_and_comes_back() -> None:
    for tab in TABS:
        values = {key: another(option) for key, option in tab_fields(tab).items()}
        values = {key: value for key, value in values.items() if value is not None}
        found = configs.open_text(configs.save_text(tab, values))
        assert found.values == without_secrets(tab, values) and not found.report and not found.extras, tab


def test_keys_that_clash_with_the_files_own_are_kept() -> None:
    extras = {"format": "x", "version": 7, "tab": "y", "kept": {"z": 1}, "network_dim": [1], "note": "n"}
    text = configs.save_text("lora", {"network_dim": 4}, extras)
    found = configs.open_text(text)
    assert found.tab == "lora" and found.values == {"network_dim": 4} and found.extras == extras


def test_velocity_of_every_family_has_a_choice() -> None:
    raw = {"LoRA_type": "Standard", "sdxl": True, "v_parameterization": True, "max_train_steps": "5"}
    found = configs.open_text(json.dumps(raw))
    assert found.values["model_family"] == "sdxl-v" and "v_parameterization" not in found.values
    assert command.build("train_network", found.values).toml["v_parameterization"] is True
    # our own files kept the switch beside the family before there was this choice
    for family, now in (("sdxl", "sdxl-v"), (None, "sd1-v"), ("sd2-v", "sd2-v")):
        kept = {"v_parameterization": True, "note": "n"}
        text = configs.save_text("lora", {"model_family": family} if family else {}, kept)
        again = configs.open_text(text)
        assert again.values["model_family"] == now and again.extras["note"] == "n"


@pytest.mark.parametrize(
    ("raw", "tab", "words"),
    [
        ({"flux1_checkbox": True, "LoRA_type": "Flux1"}, "lora", "The file is for Flux"),
        ({"sd3_checkbox": True, "train_data_dir": "x", "learning_rate_te": 0}, "dreambooth", "Stable Diffusion 3"),
        ({"lumina_checkbox": True, "train_dir": "x", "max_resolution": "512"}, "finetune", "Lumina"),
        ({"prompts_file": "x", "network_dim": 4}, "lora", "LECO"),
        ({"anima_qwen3": "x", "lllite_cond_dim": 4, "resolution": "512"}, "lllite", "Anima"),
    ],
)
def test_what_is_not_here_is_one_sentence(raw: dict[str, Any], tab: str, words: str) -> None:
    found = configs.open_text(json.dumps(raw))
    assert found.tab == tab and words in found.report[0].message and "stay in the file" in found.report[0].message


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ({"save_model_as": "same as source model"}, {"save_model_as": None}),
        ({"learning_rate_te": 0}, {"learning_rate_te": "missing"}),
        ({"learning_rate_te": 0, "loss_type": "l2"}, {"learning_rate_te": 0.0}),
        ({"stop_text_encoder_training_pct": 20}, {"stop_text_encoder_percent": 20.0}),
        ({"stop_text_encoder_training": -1}, {"stop_text_encoder_training": -1}),
        ({"stop_text_encoder_training": "some"}, {"stop_text_encoder_percent": "missing"}),
        ({"sdxl": True, "sdxl_cache_text_encoder_outputs": True}, {"cache_text_encoder_outputs": True}),
        ({"model_list": "stabilityai/stable-diffusion-2"}, {"model_family": "sd2-v"}),
        ({"v2": True}, {"model_family": "sd2"}),
        ({"v2": "perhaps"}, {"model_family": "missing"}),
    ],
)
def test_what_dreambooth_meant(raw: dict[str, Any], values: dict[str, Any]) -> None:
    found = configs.open_text(json.dumps({"train_data_dir": "x", **raw}))
    assert found.tab == "dreambooth" and {key: found.values.get(key, "missing") for key in values} == values


def test_a_trainers_own_file_means_what_it_says() -> None:
    text = """network_module = "lycoris.kohya"\nnetwork_args = ["algo=loha", "conv_dim=4"]\nnetwork_dim = 8
[learning]\nlearning_rate = 1e-4\nxformers = true\noptimizer_type = "Lion"\nsample_prompts = "prompts.txt"\nv2 = true"""
    found = configs.open_text(text)
    assert found.tab == "lora" and not found.extras
    assert found.values == {
        "LoRA_type": "LyCORIS/LoHa", "conv_dim": 4, "network_dim": 8, "learning_rate": 1e-4, "xformers": True,
        "optimizer_type": "Lion", "sample_prompts": "prompts.txt", "model_family": "sd2",
    }  # fmt: skip


# ---- damaged and hostile files

ANYTHING: list[Any] = [
    [], {}, [1], {"a": 1}, True, False, "x", "", -1, 1e300, 2**70, 10**4000, "1e999", "nan", [[["x"]]], None, "9" * 50,
    "\x00", "\ud800", "../..\\..", "$(id); `id`", "é" * 500,
]  # fmt: skip


@pytest.mark.parametrize("tab", ["lora", "dreambooth", "finetune", "textual_inversion"])
def test_any_value_in_every_key_never_stops_the_file(tab: str) -> None:
    raw = json.loads((DATA / f"v26/{tab}.json").read_text(encoding="utf-8"))
    known = {*tab_fields(tab), "v_parameterization"}
    for value in ANYTHING:
        found = configs.open_text(json.dumps(dict.fromkeys(raw, value)), tab)
        assert found.values.keys() <= known
        for key, made in found.values.items():
            assert made is None or isinstance(made, bool | int | float | str | list), key
        text = configs.save_text(tab, found.values, found.extras)
        assert configs.open_text(text, tab).values.keys() <= known
        # nothing in it stops what writes and sends it
        text.encode("utf-8")


def test_our_own_format_takes_any_value_too() -> None:
    for tab in TABS:
        for value in ANYTHING:
            raw = {"format": "kohya-gui", "version": 1, "tab": value, **dict.fromkeys(tab_fields(tab), value)}
            found = configs.open_text(json.dumps(raw), otherwise=tab)
            assert found.tab == tab


def test_keys_that_stand_twice_and_broken_text_are_told() -> None:
    found = configs.open_text('{"LoRA_type": "Standard", "seed": 1, "seed": 2, "output_name": "a\\u0000\\ud800b"}')
    assert found.values["seed"] == 2 and found.values["output_name"] == "a??b"
    said = {line.key: line.message for line in found.report}
    assert "more than once" in said["seed"] and "question marks" in said["output_name"]


@pytest.mark.parametrize(
    "text",
    [
        '{"seed": NaN}',
        '{"seed": 1e999}',
        '{"a": [{"b": -Infinity}]}',
        "seed = nan",
        "a" + ".a" * 100_000 + " = 1",
        "[a" + ".a" * 100_000 + "]",
        "seed = " + "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({"seed": 1, "x": [[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]}),
        '{"seed": ' + "9" * 100_000 + "}",
        "\ufeff",
        "{'seed': 1}",
        '{"format": "kohya-gui", "version": true}',
        '{"format": "kohya-gui", "version": 0}',
        '{"format": "kohya-gui", "version": 1e400}',
        "PK\x03\x04",
    ],
    ids=range(16),
)
def test_hostile_texts_are_one_sentence_at_once(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        configs.open_text(text)
    assert "\n" not in caught.value.message and len(caught.value.message) < 200
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "raw",
    [
        {f"learning_rat{number}": 1 for number in range(2900)},
        {"optimizer_args": "a=1 " * 400_000},
        {"text_encoder_lr": "1e-4 " * 300_000},
        {"seed": "9" * 1_900_000, "output_name": "x" * 50_000},
        {"x": [[[[]]]] * 60_000},
    ],
    ids=range(5),
)
def test_large_files_open_without_a_long_wait_or_report(raw: dict[str, Any]) -> None:
    text = json.dumps({"LoRA_type": "Standard", **raw})
    started = time.monotonic()
    found = configs.open_text(text)
    assert time.monotonic() - started < 5
    assert len(found.report) < 40 and sum(len(line.message) for line in found.report) < 10_000
    assert found.extras.keys() | found.values.keys() >= raw.keys()


def test_a_file_of_50_mb_is_refused_unread(tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="too large"):
            configs.open_file(big)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a\x00b.json", "a\x00b.safetensors", "none.safetensors", ""])
def test_files_that_cannot_be_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        configs.open_file(tmp_path / name)
