"""Saved forms: files of kohya_ss of every age, our own format, damaged and hostile files, presets."""

import json
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, configs
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import fields
from sd_scripts.schema.rules import check

# what the program that wrote a file would have used for these, so that small test files stay small
FULL = {
    "max_resolution": "512,512",
    "enable_bucket": False,
    "bucket_no_upscale": False,
    "max_bucket_reso": 1024,
    "cache_latents": False,
    "max_data_loader_n_workers": 8,
    "optimizer": "AdamW",
    "lr_scheduler": "constant",
    "mixed_precision": "no",
    "save_precision": "fp16",
    "network_dim": 4,
    "sample_sampler": "ddim",
    "output_name": "x",
    "xformers": "none",
    "LoRA_type": "Standard",
    "max_train_steps": "100",
}


def opened(**raw: Any) -> configs.Opened:
    """A kohya_ss file with these keys."""
    return configs.open_text(json.dumps({**FULL, **raw}))


def kinds(found: configs.Opened) -> dict[str, str]:
    """Key -> kind of the report's lines."""
    return {line.key: line.kind for line in found.report}


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ({"lora_network_weights": "a.safetensors"}, {"network_weights": "a.safetensors"}),
        ({"use_wandb": True}, {"log_with": "wandb"}),
        ({"use_wandb": "True"}, {"log_with": "wandb"}),
        ({"log_with": "tensorboard", "use_wandb": True}, {"log_with": "tensorboard"}),
        ({"xformers": True}, {"xformers": True, "sdpa": False}),
        ({"xformers": "sdpa"}, {"xformers": False, "sdpa": True}),
        (
            {"LoRA_type": "LoCon", "conv_dim": 8, "conv_alpha": 1, "unit": 1},
            {"LoRA_type": "LyCORIS/LoCon", "conv_dim": 8},
        ),
        ({"conv_dims": "1,2", "conv_alphas": ""}, {"conv_block_dims": "1,2"}),
        ({"sample_prompts": "a cat\na dog"}, {"sample_prompt_text": "a cat\na dog"}),
        ({"sample_prompts": "C:\\p\\prompts.txt"}, {"sample_prompts": "C:\\p\\prompts.txt"}),
        ({"save_model_as": "same as source model"}, {"save_model_as": "safetensors"}),
        ({"dynamo_backend": "inductor"}, {"torch_compile": True, "dynamo_backend": "inductor"}),
        ({"sdxl": True, "sdxl_no_half_vae": True}, {"no_half_vae": True}),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": "", "epoch": 3},
            {"lr_scheduler_num_cycles": 3},
        ),
        ({"resume_from_huggingface": "me/x:main"}, {"resume_from_huggingface": True, "resume": "me/x:main"}),
    ],
)
def test_old_keys_and_values_become_new_ones(raw: dict[str, Any], values: dict[str, Any]) -> None:
    found = opened(**raw)
    assert {key: found.values.get(key) for key in values} == values


@pytest.mark.parametrize(
    ("raw", "key", "value"),
    [
        ({"clip_skip": "2"}, "clip_skip", 2),
        ({"seed": "1234"}, "seed", 1234),
        ({"bucket_reso_steps": 64.0}, "bucket_reso_steps", 64),
        ({"epoch": "4"}, "epoch", 4),
        ({"text_encoder_lr": "5e-5"}, "text_encoder_lr", [5e-5]),
        ({"persistent_data_loader_workers": 1}, "persistent_data_loader_workers", True),
        ({"max_token_length": "225"}, "max_token_length", 225),
        ({"optimizer_args": '"d0=1e-5" "betas=0.9,0.99"'}, "optimizer_args", ["d0=1e-5", "betas=0.9,0.99"]),
        ({"lr_warmup": "10"}, "lr_warmup", 10.0),
    ],
)
def test_types_are_repaired(raw: dict[str, Any], key: str, value: Any) -> None:
    made = opened(**raw).values[key]
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("key", "off"),
    [
        ("max_token_length", "75"),
        ("clip_skip", "1"),
        ("vae_batch_size", 0),
        ("max_timestep", 1000),
        ("noise_offset", "0"),
        ("seed", ""),
        ("main_process_port", 0),
        ("save_every_n_steps", 0),
    ],
)
def test_the_number_for_nothing_is_nothing(key: str, off: Any) -> None:
    found = opened(**{key: off})
    assert found.values.get(key) is None and key not in kinds(found)


def test_without_steps_the_epochs_count() -> None:
    for steps in ("", "0", 0):
        found = opened(max_train_steps=steps, epoch=5)
        assert found.values["max_train_steps"] is None and found.values["epoch"] == 5
    assert opened(max_train_steps="", max_train_epochs="7", epoch=5).values["max_train_epochs"] == 7


def test_both_rates_zero_meant_the_general_rate() -> None:
    found = opened(unet_lr=0, text_encoder_lr=0.0, learning_rate=1e-4)
    assert "unet_lr" not in found.values and "text_encoder_lr" not in found.values
    assert opened(unet_lr=1e-4, text_encoder_lr=0).values["text_encoder_lr"] == [0.0]


def test_v20_switch_for_8_bit_adam() -> None:
    raw = {key: value for key, value in FULL.items() if key != "optimizer"}
    for switch, name in ((True, "AdamW8bit"), (False, "AdamW")):
        found = configs.open_text(json.dumps({**raw, "use_8bit_adam": switch}))
        assert found.values["optimizer_type"] == name and kinds(found)["optimizer_type"] == "renamed"


def test_nothing_is_dropped() -> None:
    aside = {
        "my_note": "keep me",
        "flux1_checkbox": True,
        "t5xxl": "x",
        "no_token_padding": True,
        "network_alpha": {"a": 1},
    }
    found = opened(**aside)
    assert found.extras == aside
    report = kinds(found)
    assert (report["my_note"], report["no_token_padding"], report["network_alpha"]) == (
        "unknown",
        "retired",
        "repaired",
    )
    again = configs.open_text(configs.save_text("lora", found.values, found.extras))
    assert again.extras == aside and again.values == found.values


def test_missing_keys_mean_what_they_meant_to_the_program_that_wrote_the_file() -> None:
    found = configs.open_text(json.dumps({"LoRA_type": "Standard", "max_train_steps": "10"}))
    assert found.values["optimizer_type"] == "AdamW8bit" and found.values["enable_bucket"] is True
    assert "conv_dim" not in found.values and "unet_lr" not in found.values
    newer = configs.open_text(json.dumps({"LoRA_type": "Standard", "loss_type": "l2"}))
    assert newer.values["unet_lr"] == 1e-4 and newer.values["caption_extension"] == ".txt"


def test_a_file_opens_in_its_own_tab_or_in_the_one_asked_for() -> None:
    text = json.dumps({"max_resolution": "512,512", "token_string": "sks", "num_vectors_per_token": 4})
    own = configs.open_text(text)
    assert own.tab == configs.tab_for(text) == "textual_inversion" and own.values["token_string"] == "sks"
    found = configs.open_text(text, "lora")
    assert found.tab == "lora" and found.values["resolution"] == "512,512" and found.extras["token_string"] == "sks"
    assert "Textual Inversion" in found.report[0].message
    # nothing tells the tab
    assert configs.open_text('{"resolution": "512"}', otherwise="finetune").tab == "finetune"


def test_unknown_choices_stay_for_the_form_to_mark() -> None:
    found = opened(LoRA_type="Flux1")
    assert found.values["LoRA_type"] == "Flux1"
    assert any(finding.key == "LoRA_type" for finding in check("train_network", found.values))


def test_our_own_file_round_trips_in_the_order_of_the_form() -> None:
    values = {
        "learning_rate": 1e-4,
        "text_encoder_lr": [5e-5],
        "sdpa": True,
        "output_name": "ünï",
        "max_train_steps": None,
    }
    text = configs.save_text("lora", values, {"other": [1, {"x": None}]})
    assert json.loads(text)["format"] == "kohya-gui" and "ünï" in text
    found = configs.open_text(text)
    assert found.values == values and found.extras == {"other": [1, {"x": None}]} and not found.partial


def test_tokens_are_never_saved() -> None:
    secret = "hf_" + "x" * 20
    values = {
        "wandb_api_key": secret,
        "huggingface_token": secret,
        "additional_parameters": f'--wandb_api_key "{secret}" --v2',
    }
    text = configs.save_text("lora", values, {"huggingface_token": secret})
    assert secret not in text and "--v2" in text


def test_files_beside_a_saved_form_fill_their_field(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_text("[[datasets]]\nresolution = 512\n")
    found = configs.open_file(path)
    assert found.partial and found.values == {"dataset_config": str(path)}
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"a.png": {"caption": "x"}}))
    assert configs.open_file(path).values == {"in_json": str(path)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[1, 2]",
        '"text"',
        "null",
        "{",
        '{"network_dim": 4',
        '{"network_dim": NaN}',
        '{"network_dim": -Infinity}',
        "{}",
        '{"a": 1}',
        "[" * 100_000,
        '{"network_dim": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"network_dim": ' + "9" * 10_000 + "}",
        '{"format": "kohya-gui", "version": 99}',
        '{"format": "kohya-gui", "version": "x"}',
        json.dumps({f"key{i}": i for i in range(4000)} | {"network_dim": 4}),
        "x" * 3_000_000,
        "\x00\x01",
        "<html>",
    ],
    ids=range(20),
)
def test_damaged_files_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.open_text(text)
    assert "\n" not in caught.value.message and len(caught.value.message) < 200


@pytest.mark.parametrize("value", [[], {}, [1], {"a": 1}, True, "x", -1, 1e300, "1e999", "nan", [[]], None, "9" * 50])
def test_values_of_the_wrong_type_never_stop_the_file(value: Any) -> None:
    keys = """network_dim learning_rate optimizer optimizer_args cache_latents LoRA_type xformers max_train_steps epoch
        sample_prompts text_encoder_lr lr_warmup sdxl dynamo_backend"""
    for key in keys.split():
        found = opened(**{key: value})
        known = fields("train_network")
        for name, made in found.values.items():
            assert made is None or isinstance(made, bool | int | float | str | list), name
            assert name in known


def test_large_and_binary_files(tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(50_000_000)
    for path in (big, tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError):
            configs.open_file(path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\x00\x80\x81")
    with pytest.raises(UserError):
        configs.open_file(binary)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    configs.write_file(path, "old")
    with pytest.raises(UserError):
        configs.write_file(path / "below a file.json", "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_presets_open_and_train_nothing_doubtful() -> None:
    found = configs.presets("lora")
    assert {preset.name for preset in found} >= {"Subject (SD 1.5)", "Style (SD 1.5)", "Little memory (SD 1.5)"}
    for preset in found:
        opened_ = configs.open_file(preset.path)
        assert not opened_.report and not opened_.extras and len(preset.description) > 80
        needed = {"pretrained_model_name_or_path": "x", "train_data_dir": "y", "output_dir": "z"}
        plan = command.build("train_network", {**preset.values, **needed})
        assert check("train_network", plan.toml) == []


def test_damaged_presets_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "bad.json").write_text("{")
    (tmp_path / "lora" / "good.json").write_text(configs.save_text("lora", {"network_dim": 4}))
    assert [preset.name for preset in configs.presets("lora", tmp_path)] == ["good"]
