"""Rules of single trainers fire where they should, keep quiet where the opposite holds, and apply nowhere else."""

from typing import Any

import pytest
from network_rule_cases import CASES as CASES_OF_NETWORKS
from network_rule_cases import Values

from sd_scripts.schema import rules_data, rules_learning, rules_methods, rules_plugins, rules_sdxl
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import fields, trainer_fields
from sd_scripts.schema.parse import parse
from sd_scripts.schema.rules import RULES, check, filled_in, implied

GOOD: Values = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "resolution": "512",
    "output_dir": "out",
}
OWN: dict[str, Values] = {
    "train_network": {"network_module": "networks.lora", "learning_rate": 1e-4},
    "sdxl_train_network": {"network_module": "networks.lora", "network_train_unet_only": True, "learning_rate": 1e-4},
    "fine_tune": {"in_json": "pictures.json"},
    "train_textual_inversion": {"token_string": "mycat4"},
    "train_textual_inversion_XTI": {"token_string": "mycat4"},
    "sdxl_train_textual_inversion": {"token_string": "mycat4"},
    "train_controlnet": {"conditioning_data_dir": "control"},
    "sdxl_train_control_net_lllite": {"conditioning_data_dir": "control"},
}
CACHE: Values = {"cache_text_encoder_outputs": True}
TO_DISK: Values = {"cache_text_encoder_outputs_to_disk": True}
SDXL = tuple(name for name, command in COMMANDS.items() if command.family == "sdxl")
LEARNING_TEXT: Values = {"network_train_unet_only": False}


def rates(count: int, text: str = "1e-5") -> str:
    """A list of rates as typed."""
    return ",".join([text] * count)


# command, rule, severity, key it marks, values that fire it, values that are the opposite
CASES: list[tuple[str, Any, str, str, Values, Values]] = [
    *((name, rules_sdxl.sdxl_and_v2, "error", "v2", {"v2": True}, {}) for name in SDXL),
    *(
        (name, rules_sdxl.sdxl_weights_in_captions, "error", "weighted_captions", {"weighted_captions": True}, {})
        for name in SDXL
        if "inversion" not in name
    ),
    *((name, rules_sdxl.sdxl_velocity, "warning", "v_parameterization", {"v_parameterization": True}, {})
      for name in SDXL),
    *((name, rules_data.clip_skip_in_v2, "warning", "clip_skip", {"clip_skip": 2}, {}) for name in SDXL),
    *(
        (
            name, rules_data.bucket_steps, "error", "bucket_reso_steps",
            {"enable_bucket": True, "bucket_reso_steps": 8}, {"enable_bucket": True, "bucket_reso_steps": 32},
        )
        for name in SDXL
    ),
    ("train_db", rules_data.bucket_steps, "warning", "bucket_reso_steps",
     {"enable_bucket": True, "bucket_reso_steps": 8}, {"enable_bucket": True, "bucket_reso_steps": 128}),
    ("sdxl_train_network", rules_sdxl.sdxl_text_encoders, "warning", "network_train_unet_only", LEARNING_TEXT,
     {**LEARNING_TEXT, "text_encoder_lr": [0.0]}),
    ("sdxl_train_network", rules_sdxl.sdxl_text_encoders, "warning", "network_train_unet_only",
     {**LEARNING_TEXT, "text_encoder_lr": [0.0, 1e-5]}, {**LEARNING_TEXT, "network_train_text_encoder_only": True}),
    ("sdxl_train_network", rules_sdxl.too_many_text_rates, "warning", "text_encoder_lr",
     {**LEARNING_TEXT, "text_encoder_lr": [1e-5] * 3}, {**LEARNING_TEXT, "text_encoder_lr": [1e-5] * 2}),
    ("train_network", rules_sdxl.too_many_text_rates, "warning", "text_encoder_lr",
     {"text_encoder_lr": [1e-5] * 2}, {"text_encoder_lr": [1e-5]}),
    *(
        ("sdxl_train_network", rules_sdxl.cached_captions_of_network, "error", "network_train_unet_only",
         {**cache, **LEARNING_TEXT}, cache)
        for cache in (CACHE, TO_DISK)
    ),
    *(
        ("sdxl_train", rules_sdxl.cached_captions_of_model, "error", "train_text_encoder",
         {**cache, "train_text_encoder": True}, cache)
        for cache in (CACHE, TO_DISK)
    ),
    *(
        (name, rules_sdxl.cached_captions_vary, "error", key, {**CACHE, key: value}, {key: value})
        for name in ("sdxl_train_network", "sdxl_train", "sdxl_train_control_net_lllite")
        for key, value in (("shuffle_caption", True), ("caption_dropout_rate", 0.1), ("token_warmup_step", 10.0),
                           ("caption_tag_dropout_rate", 0.1), ("enable_wildcard", True),
                           ("caption_dropout_every_n_epochs", 2))
    ),
    ("sdxl_train_network", rules_sdxl.cached_captions_vary, "error", "shuffle_caption",
     {**TO_DISK, "shuffle_caption": True}, TO_DISK),
    ("sdxl_train", rules_methods.block_rates, "error", "block_lr", {"block_lr": rates(22)}, {"block_lr": rates(23)}),
    ("sdxl_train", rules_methods.block_rates, "error", "block_lr", {"block_lr": rates(24)}, {}),
    ("sdxl_train", rules_methods.block_rates, "error", "block_lr", {"block_lr": rates(22) + ",fast"},
     {"block_lr": rates(22) + ", 0"}),
    ("sdxl_train", rules_methods.block_rates, "error", "block_lr", {"block_lr": rates(22) + ",-1"},
     {"block_lr": rates(23, "0.00001")}),
    ("sdxl_train", rules_methods.block_rates, "error", "block_lr", {"block_lr": rates(22) + ",nan"}, {}),
    ("train_db", rules_methods.text_rate_without_part, "warning", "learning_rate_te",
     {"learning_rate_te": 1e-6, "stop_text_encoder_training": -1}, {"learning_rate_te": 1e-6}),
    ("fine_tune", rules_methods.text_rate_without_part, "warning", "learning_rate_te",
     {"learning_rate_te": 1e-6}, {"learning_rate_te": 1e-6, "train_text_encoder": True}),
    ("sdxl_train", rules_methods.text_rate_without_part, "warning", "learning_rate_te2",
     {"learning_rate_te2": 1e-6}, {"learning_rate_te2": 1e-6, "train_text_encoder": True}),
    *(
        (name, rules_methods.rounding_without_bf16, "error", "stochastic_rounding", {"stochastic_rounding": True},
         {"stochastic_rounding": True, "full_bf16": True, "mixed_precision": "bf16"})
        for name in ("train_db", "fine_tune", "sdxl_train")
    ),
    *(
        (name, rules_learning.full_bf16, "error", "full_bf16", {"full_bf16": True},
         {"full_bf16": True, "mixed_precision": "bf16"})
        for name in COMMANDS
    ),
    *(
        (name, rules_learning.full_fp16, "error", "full_fp16", {"full_fp16": True},
         {"full_fp16": True, "mixed_precision": "fp16"})
        for name in COMMANDS
    ),
    *(
        (name, rules_learning.fp8_needs_precision, "error", "fp8_base", {"fp8_base": True},
         {"fp8_base": True, "mixed_precision": "fp16"})
        for name in COMMANDS
    ),
    *(
        (name, rules_learning.fused_backward, "error", "fused_backward_pass", {"fused_backward_pass": True},
         {"fused_backward_pass": True, "optimizer_type": "Adafactor"})
        for name in COMMANDS
    ),
    ("sdxl_train", rules_learning.fused_backward, "error", "gradient_accumulation_steps",
     {"fused_backward_pass": True, "optimizer_type": "Adafactor", "gradient_accumulation_steps": 2}, {}),
    ("train_db", rules_methods.small_weights_learn, "warning", "fp8_base",
     {"fp8_base": True, "mixed_precision": "bf16"}, {"mixed_precision": "bf16"}),
    ("train_db", rules_methods.two_formats, "warning", "use_safetensors",
     {"use_safetensors": True, "save_model_as": "ckpt"},
     {"use_safetensors": True, "save_model_as": "diffusers_safetensors"}),
    ("train_db", rules_methods.padding_of_long_captions, "error", "no_token_padding",
     {"no_token_padding": True, "max_token_length": 225}, {"no_token_padding": True}),
    ("fine_tune", rules_methods.metadata_for_fine_tuning, "error", "in_json", {"in_json": None},
     {"in_json": None, "dataset_config": "d.toml"}),
    ("train_textual_inversion", rules_methods.new_word, "error", "token_string", {"token_string": None}, {}),
    ("sdxl_train_textual_inversion", rules_methods.new_word, "error", "token_string", {"token_string": " "}, {}),
    ("train_textual_inversion_XTI", rules_methods.new_word, "error", "token_string", {"token_string": None}, {}),
    ("train_textual_inversion", rules_methods.two_templates, "error", "use_style_template",
     {"use_object_template": True, "use_style_template": True}, {"use_style_template": True}),
    ("train_textual_inversion", rules_methods.two_starts, "warning", "init_word",
     {"weights": "old.pt", "init_word": "cat"}, {"init_word": "cat"}),
    ("train_textual_inversion_XTI", rules_methods.foreign_dataset_of_xti, "error", "dataset_class",
     {"dataset_class": "my.Pictures", "allow_plugins": True}, {}),
    ("train_network", rules_plugins.foreign_optimizer, "error", "optimizer_type",
     {"optimizer_type": "evil.Adam"}, {"optimizer_type": "evil.Adam", "allow_plugins": True}),
    ("train_db", rules_plugins.foreign_scheduler, "error", "lr_scheduler_type",
     {"lr_scheduler_type": "os.path.join"}, {"lr_scheduler_type": "torch.optim.lr_scheduler.StepLR"}),
    ("sdxl_train_network", rules_plugins.foreign_network, "error", "network_module",
     {"network_module": "evil"}, {"network_module": "evil", "allow_plugins": True}),
    ("train_controlnet", rules_methods.control_pictures, "error", "conditioning_data_dir",
     {"conditioning_data_dir": None}, {"conditioning_data_dir": None, "dataset_config": "d.toml"}),
    ("sdxl_train_control_net_lllite", rules_methods.control_pictures, "error", "conditioning_data_dir",
     {"conditioning_data_dir": None}, {}),
    *(
        (name, rules_methods.notes_without_place, "warning", "metadata_title", {"metadata_title": "x", **form},
         {**form, "metadata_title": ""} if name in ("train_controlnet", "train_textual_inversion_XTI")
         else {"metadata_title": "x", "save_model_as": "safetensors"})
        for name, form in (("train_controlnet", {"save_model_as": "safetensors"}), ("train_textual_inversion_XTI", {}),
                           ("train_textual_inversion", {}), ("sdxl_train", {"save_model_as": "diffusers"}),
                           ("train_network", {"save_model_as": "ckpt"}))
    ),
    ("train_controlnet", rules_methods.cropped_control_pictures, "error", "random_crop", {"random_crop": True}, {}),
    ("fine_tune", rules_learning.some_rate, "error", "learning_rate", {"learning_rate": 0.0},
     {"learning_rate": 0.0, "learning_rate_te": 1e-6, "train_text_encoder": True}),
    ("sdxl_train", rules_learning.some_rate, "error", "learning_rate", {"learning_rate": 0.0},
     {"learning_rate": 0.0, "block_lr": rates(23)}),
    ("train_textual_inversion", rules_learning.some_rate, "error", "learning_rate", {"learning_rate": 0.0}, {}),
    ("sdxl_train", rules_learning.wild_rate, "warning", "block_lr", {"block_lr": rates(22) + ",0.5"},
     {"block_lr": rates(23)}),
    ("sdxl_train", rules_learning.self_tuning_parts, "warning", "block_lr",
     {"optimizer_type": "Prodigy", "block_lr": rates(23, "1"), "train_text_encoder": True},
     {"optimizer_type": "Prodigy", "block_lr": rates(23, "1")}),
    ("sdxl_train", rules_learning.self_tuning_parts, "warning", "learning_rate",
     {"optimizer_type": "Prodigy", "learning_rate": 1.0, "learning_rate_te1": 0.5, "train_text_encoder": True},
     {"optimizer_type": "Prodigy", "learning_rate": 1.0, "train_text_encoder": True}),
]  # fmt: skip


def good(command: str, **values: Any) -> Values:
    """Values that the command has nothing to say about, but for `values`."""
    return {**GOOD, **OWN.get(command, {}), **values}


@pytest.mark.parametrize("command", COMMANDS)
def test_sensible_values_are_left_alone(command: str) -> None:
    assert check(command, good(command)) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].name}-{case[3]}")
def test_rule_fires_and_its_opposite_does_not(case: tuple[str, Any, str, str, Values, Values]) -> None:
    command, rule, severity, key, wrong, right = case
    said = rule(filled_in(command, good(command, **wrong)))
    assert said is not None
    assert (said.severity, said.key) == (severity, key)
    assert said in check(command, good(command, **wrong))
    assert rule(filled_in(command, good(command, **right))) is None
    known = fields(command)
    assert key in known
    assert said.message[0].isupper() or said.message.startswith(tuple(known)), said.message
    assert said.message.endswith(".") and said.hint[-1:] in ("", ".")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_rule_reads_an_option_that_it_does_not_need(command: str) -> None:
    """Each rule, wherever it applies, gets along with the options of that command; and says so where it does not."""
    on: Values = {}
    for key, field in trainer_fields(command).items():
        kinds: Values = {"bool": True, "list[float]": [1.0], "list[str]": ["a=b"], "str": "x"}
        on[key] = field.choices[-1] if field.choices else kinds.get(field.type, field.maximum or 3)
    for values in ({}, GOOD, good(command), {**on, "LoRA_type": "Standard"}, {**on, "resolution": "512"}):
        filled = filled_in(command, {key: value for key, value in values.items() if key in fields(command)})
        said = [rule(filled) for rule in RULES]
        assert {finding.key for finding in said if finding is not None} <= set(fields(command))


def test_every_rule_has_a_case() -> None:
    covered = {case[0].name for case in CASES_OF_NETWORKS} | {case[1].name for case in CASES}
    assert {rule.name for rule in RULES} == covered


def test_a_rule_keeps_to_its_families_methods_and_options() -> None:
    lora = filled_in("train_network", {})
    assert rules_methods.new_word(lora) is None and rules_methods.new_word.judge(filled_in(
        "train_textual_inversion", {})) is not None  # fmt: skip
    assert rules_sdxl.sdxl_text_encoders(lora) is None
    assert rules_sdxl.sdxl_text_encoders.judge(lora) is not None
    assert rules_methods.cropped_control_pictures({**lora, "random_crop": True}) is None


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("sdxl_train_network", TO_DISK, CACHE),
        ("sdxl_train_network", {"cache_latents_to_disk": True}, {"cache_latents": True}),
        ("train_textual_inversion", {}, {}),
        ("train_controlnet", {"cpu_offload_checkpointing": True}, {"gradient_checkpointing": True}),
        ("train_db", {}, {"train_text_encoder": True, "fp8_base": False}),
        ("train_db", {"stop_text_encoder_training": 0}, {"train_text_encoder": True, "fp8_base": False}),
        ("train_db", {"stop_text_encoder_training": -1}, {"train_text_encoder": False, "fp8_base": False}),
        ("fine_tune", {}, {"train_text_encoder": False, "fp8_base": False}),
        ("fine_tune", {"diffusers_xformers": True},
         {"train_text_encoder": False, "fp8_base": False, "xformers": True}),
        ("sdxl_train", {"train_text_encoder": True}, {"train_text_encoder": True, "fp8_base": False}),
    ],
)  # fmt: skip
def test_implied(command: str, given: Values, expected: Values) -> None:
    assert implied(command, filled_in(command, given)) == expected


def argv(command: str, **values: Any) -> list[str]:
    """The values as a command line."""
    words: list[str] = []
    for key, value in good(command, **values).items():
        words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words


def test_the_config_holds_what_is_implied() -> None:
    cached = parse("sdxl_train_network", argv("sdxl_train_network", **TO_DISK)).text_cache
    assert cached.cache_text_encoder_outputs and cached.cache_text_encoder_outputs_to_disk
    assert parse("train_db", argv("train_db")).full.train_text_encoder
    assert not parse("train_db", argv("train_db", stop_text_encoder_training=-1)).full.train_text_encoder
    assert not parse("fine_tune", argv("fine_tune")).full.train_text_encoder
    tune = parse("fine_tune", argv("fine_tune", diffusers_xformers=True, fp8_base=True, mixed_precision="bf16"))
    assert tune.training.xformers and not tune.training.fp8_base
    assert [finding.key for finding in tune.warnings] == ["fp8_base"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_makes_its_own_config(command: str) -> None:
    config = parse(command, argv(command))
    assert type(config) is COMMANDS[command].config
    assert config.command == command and config.given == set(good(command))
    values = config.values()
    for key, field in trainer_fields(command).items():
        brought = implied(command, filled_in(command, good(command)))
        assert values[key] == {**{key: field.default}, **good(command), **brought}[key], key


def test_errors_name_the_option() -> None:
    with pytest.raises(UserError, match="23 parts") as caught:
        parse("sdxl_train", argv("sdxl_train", block_lr="1,2"))
    assert caught.value.key == "block_lr"
    with pytest.raises(UserError, match="no option of train_db.py") as caught:
        parse("train_db", [*argv("train_db"), "--network_dim", "4"])
    assert caught.value.key == "network_dim"
    assert caught.value.hint == (
        "It is an option of train_network.py, sdxl_train_network.py and sdxl_train_control_net_lllite.py."
    )
    with pytest.raises(UserError) as caught:
        parse("train_network", [*argv("train_network"), "--cond_emb_dim", "4"])
    assert caught.value.hint == "It is an option of sdxl_train_control_net_lllite.py."
