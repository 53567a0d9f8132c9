"""Every rule fires where it should and keeps quiet where the opposite holds."""

from typing import Any

import pytest

from sd_scripts.schema import rules_data, rules_learning, rules_run
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete, fields
from sd_scripts.schema.parse import parse
from sd_scripts.schema.rules import RULES, Finding, check, implied

Values = dict[str, Any]

GOOD: Values = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "resolution": "512",
    "output_dir": "out",
    "LoRA_type": "Standard",
    "learning_rate": 1e-4,
}
BUCKETS: Values = {"enable_bucket": True}

# rule, severity, key it marks, values that fire it, values that are the opposite
CASES: list[tuple[Any, str, str | None, Values, Values]] = [
    (rules_data.needs_model, "error", "pretrained_model_name_or_path", {"pretrained_model_name_or_path": None}, {}),
    (rules_data.needs_pictures, "error", "train_data_dir", {"train_data_dir": None}, {"dataset_config": "d.toml"}),
    (
        rules_data.needs_resolution,
        "error",
        "resolution",
        {"resolution": None},
        {"resolution": None, "dataset_config": "d.toml"},
    ),
    (rules_data.needs_resolution, "error", "resolution", {"resolution": "big"}, {"resolution": "512,768"}),
    (rules_data.needs_resolution, "warning", "resolution", {"resolution": "500"}, {"resolution": "500", **BUCKETS}),
    (
        rules_data.bucket_range,
        "error",
        "min_bucket_reso",
        {**BUCKETS, "min_bucket_reso": 1100},
        {"min_bucket_reso": 1100},
    ),
    (
        rules_data.bucket_range,
        "error",
        "min_bucket_reso",
        {**BUCKETS, "min_bucket_reso": 576},
        {**BUCKETS, "min_bucket_reso": 512},
    ),
    (
        rules_data.bucket_range,
        "error",
        "max_bucket_reso",
        {**BUCKETS, "max_bucket_reso": 448},
        {**BUCKETS, "max_bucket_reso": 512},
    ),
    (
        rules_data.bucket_steps,
        "error",
        "bucket_reso_steps",
        {**BUCKETS, "bucket_reso_steps": 48, "sdxl": True},
        {**BUCKETS, "bucket_reso_steps": 32, "sdxl": True},
    ),
    (
        rules_data.bucket_steps,
        "warning",
        "bucket_reso_steps",
        {**BUCKETS, "bucket_reso_steps": 1},
        {**BUCKETS, "bucket_reso_steps": 128},
    ),
    (
        rules_data.face_crop,
        "error",
        "face_crop_aug_range",
        {"face_crop_aug_range": "4,2"},
        {"face_crop_aug_range": "2,4"},
    ),
    (
        rules_data.cache_or_augment,
        "error",
        "color_aug",
        {"cache_latents": True, "color_aug": True},
        {"color_aug": True},
    ),
    (
        rules_data.cache_or_augment,
        "error",
        "random_crop",
        {"cache_latents_to_disk": True, "random_crop": True},
        {"cache_latents": True, "flip_aug": True},
    ),
    (
        rules_data.description_or_folders,
        "warning",
        "dataset_config",
        {"dataset_config": "d.toml"},
        {"dataset_config": "d.toml", "train_data_dir": None},
    ),
    (
        rules_data.metadata_and_regularisation,
        "warning",
        "reg_data_dir",
        {"in_json": "m.json", "reg_data_dir": "r"},
        {"reg_data_dir": "r"},
    ),
    (
        rules_data.foreign_dataset,
        "error",
        "dataset_class",
        {"dataset_class": "a.B"},
        {"dataset_class": "a.B", "allow_plugins": True},
    ),
    (rules_data.masks, "warning", "masked_loss", {"masked_loss": True}, {"masked_loss": True, "alpha_mask": True}),
    (
        rules_data.idle_workers,
        "warning",
        "persistent_data_loader_workers",
        {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
        {"persistent_data_loader_workers": True},
    ),
    (
        rules_data.velocity_without_v2,
        "warning",
        "v_parameterization",
        {"v_parameterization": True},
        {"v_parameterization": True, "v2": True},
    ),
    (rules_data.clip_skip_in_v2, "warning", "clip_skip", {"v2": True, "clip_skip": 2}, {"v2": True, "clip_skip": 1}),
    (rules_data.clip_skip_in_v2, "warning", "clip_skip", {"sdxl": True, "clip_skip": 2}, {"clip_skip": 2}),
    (rules_data.other_family, "error", "sdxl", {"sdxl": True}, {}),
    (rules_data.sdxl_and_v2, "error", "v2", {"sdxl": True, "v2": True}, {"sdxl": True}),
    (
        rules_data.sdxl_weights_in_captions,
        "error",
        "weighted_captions",
        {"sdxl": True, "weighted_captions": True},
        {"weighted_captions": True},
    ),
    (
        rules_data.sdxl_velocity,
        "warning",
        "v_parameterization",
        {"sdxl": True, "v_parameterization": True},
        {"sdxl": True},
    ),
    (
        rules_data.network_module,
        "error",
        "network_module",
        {"LoRA_type": "Custom"},
        {"LoRA_type": "Custom", "network_module": "networks.lora"},
    ),
    (rules_data.network_module, "error", "LoRA_type", {"LoRA_type": "LoRA-FA"}, {"LoRA_type": "LyCORIS/LoHa"}),
    (
        rules_data.network_module,
        "error",
        "network_module",
        {"network_module": "networks.lora_flux"},
        {"network_module": "my.own"},
    ),
    (
        rules_data.rank_from_file,
        "error",
        "dim_from_weights",
        {"dim_from_weights": True},
        {"dim_from_weights": True, "network_weights": "a.safetensors"},
    ),
    (
        rules_data.merged_strengths,
        "error",
        "base_weights_multiplier",
        {"base_weights_multiplier": [1.0]},
        {"base_weights": ["a", "b"], "base_weights_multiplier": [1.0]},
    ),
    (rules_data.pairs, "error", "network_args", {"network_args": ["conv_dim", "4"]}, {"network_args": ["conv_dim=4"]}),
    (rules_data.pairs, "error", "optimizer_args", {"optimizer_args": ["=1"]}, {"optimizer_args": ["a=b=c"]}),
    (
        rules_data.strong_alpha,
        "warning",
        "network_alpha",
        {"network_dim": 4, "network_alpha": 8.0},
        {"network_dim": 8, "network_alpha": 8.0},
    ),
    (rules_data.block_lists, "error", "block_dims", {"block_dims": "1,2"}, {"block_dims": ",".join("4" * 25)}),
    (rules_data.block_lists, "warning", "down_lr_weight", {"down_lr_weight": "1,2"}, {"down_lr_weight": "cosine+.25"}),
    (
        rules_learning.something_to_train,
        "error",
        "network_train_unet_only",
        {"network_train_unet_only": True, "network_train_text_encoder_only": True},
        {"network_train_unet_only": True},
    ),
    (
        rules_learning.some_rate,
        "error",
        "learning_rate",
        {"learning_rate": 0.0},
        {"learning_rate": 0.0, "unet_lr": 1e-4},
    ),
    (rules_learning.some_rate, "error", "learning_rate", {"unet_lr": 0.0, "text_encoder_lr": [0.0]}, {"unet_lr": 0.0}),
    (
        rules_learning.some_rate,
        "error",
        "learning_rate",
        {"unet_lr": 0.0, "network_train_unet_only": True},
        {"text_encoder_lr": [0.0], "network_train_unet_only": True},
    ),
    (
        rules_learning.rate_without_part,
        "warning",
        "text_encoder_lr",
        {"network_train_unet_only": True, "text_encoder_lr": [1e-5]},
        {"text_encoder_lr": [1e-5]},
    ),
    (
        rules_learning.rate_without_part,
        "warning",
        "unet_lr",
        {"network_train_text_encoder_only": True, "unet_lr": 1e-4},
        {"network_train_text_encoder_only": True},
    ),
    (
        rules_learning.old_switches,
        "error",
        "use_lion_optimizer",
        {"use_8bit_adam": True, "use_lion_optimizer": True},
        {"use_8bit_adam": True},
    ),
    (
        rules_learning.old_switches,
        "error",
        "use_8bit_adam",
        {"use_8bit_adam": True, "optimizer_type": "Lion"},
        {"optimizer_type": "Lion"},
    ),
    (
        rules_learning.self_tuning_rate,
        "warning",
        "learning_rate",
        {"optimizer_type": "Prodigy"},
        {"optimizer_type": "Prodigy", "learning_rate": 1.0},
    ),
    (
        rules_learning.self_tuning_rate,
        "warning",
        "learning_rate",
        {"optimizer_type": "DAdaptAdam"},
        {"optimizer_type": "AdamW"},
    ),
    (
        rules_learning.self_tuning_parts,
        "warning",
        "unet_lr",
        {"optimizer_type": "DAdaptation", "learning_rate": 1.0, "unet_lr": 0.5},
        {"optimizer_type": "DAdaptation", "learning_rate": 1.0},
    ),
    (
        rules_learning.wild_rate,
        "warning",
        "learning_rate",
        {"learning_rate": 1.0},
        {"learning_rate": 1.0, "optimizer_type": "Prodigy"},
    ),
    (
        rules_learning.fused_backward,
        "error",
        "fused_backward_pass",
        {"fused_backward_pass": True},
        {"fused_backward_pass": True, "optimizer_type": "AdaFactor"},
    ),
    (
        rules_learning.fused_backward,
        "error",
        "gradient_accumulation_steps",
        {"fused_backward_pass": True, "optimizer_type": "Adafactor", "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2},
    ),
    (
        rules_learning.warmup_of_constant,
        "error",
        "lr_warmup_steps",
        {"lr_warmup_steps": 10},
        {"lr_warmup_steps": 10, "lr_scheduler": "cosine"},
    ),
    (
        rules_learning.warmup_of_constant,
        "error",
        "lr_warmup_steps",
        {"lr_warmup_steps": 10, "lr_scheduler_type": "StepLR"},
        {"lr_scheduler_type": "StepLR"},
    ),
    (
        rules_learning.warmup_of_constant,
        "warning",
        "lr_warmup_steps",
        {"lr_warmup_steps": 10, "lr_scheduler": "piecewise_constant"},
        {"lr_scheduler": "piecewise_constant"},
    ),
    (
        rules_learning.long_warmup,
        "warning",
        "lr_warmup_steps",
        {"lr_warmup_steps": 1600, "lr_scheduler": "cosine"},
        {"lr_warmup_steps": 1600, "lr_scheduler": "cosine", "max_train_epochs": 9},
    ),
    (
        rules_learning.adafactor_schedule,
        "error",
        "lr_scheduler",
        {"lr_scheduler": "adafactor"},
        {"lr_scheduler": "adafactor", "optimizer_type": "Adafactor"},
    ),
    (
        rules_learning.full_fp16,
        "error",
        "full_fp16",
        {"full_fp16": True, "mixed_precision": "bf16"},
        {"full_fp16": True, "mixed_precision": "fp16"},
    ),
    (
        rules_learning.full_bf16,
        "error",
        "full_bf16",
        {"full_bf16": True},
        {"full_bf16": True, "mixed_precision": "bf16"},
    ),
    (
        rules_learning.fp8_needs_precision,
        "error",
        "fp8_base",
        {"fp8_base": True},
        {"fp8_base": True, "mixed_precision": "fp16"},
    ),
    (
        rules_learning.fp8_needs_precision,
        "error",
        "fp8_base_unet",
        {"fp8_base_unet": True},
        {"fp8_base_unet": True, "mixed_precision": "bf16"},
    ),
    (
        rules_learning.adaptive_noise,
        "error",
        "adaptive_noise_scale",
        {"adaptive_noise_scale": 0.1},
        {"adaptive_noise_scale": 0.1, "noise_offset": 0.05},
    ),
    (
        rules_learning.two_noises,
        "warning",
        "multires_noise_iterations",
        {"noise_offset": 0.1, "multires_noise_iterations": 6},
        {"multires_noise_iterations": 6},
    ),
    (
        rules_learning.scaled_velocity_loss,
        "error",
        "scale_v_pred_loss_like_noise_pred",
        {"scale_v_pred_loss_like_noise_pred": True},
        {"scale_v_pred_loss_like_noise_pred": True, "v_parameterization": True},
    ),
    (
        rules_learning.velocity_like_loss,
        "error",
        "v_pred_like_loss",
        {"v_pred_like_loss": 0.5, "v_parameterization": True},
        {"v_pred_like_loss": 0.5},
    ),
    (
        rules_learning.zero_snr,
        "warning",
        "zero_terminal_snr",
        {"zero_terminal_snr": True},
        {"zero_terminal_snr": True, "v_parameterization": True},
    ),
    (
        rules_learning.timestep_range,
        "error",
        "min_timestep",
        {"min_timestep": 500, "max_timestep": 500},
        {"min_timestep": 499, "max_timestep": 500},
    ),
    (
        rules_learning.two_weightings,
        "warning",
        "debiased_estimation_loss",
        {"min_snr_gamma": 5.0, "debiased_estimation_loss": True},
        {"min_snr_gamma": 5.0},
    ),
    (rules_run.needs_output, "error", "output_dir", {"output_dir": None}, {}),
    (rules_run.name_is_no_path, "error", "output_name", {"output_name": "a/b"}, {"output_name": "a b"}),
    (
        rules_run.keep_last,
        "warning",
        "save_last_n_epochs",
        {"save_last_n_epochs": 2},
        {"save_last_n_epochs": 2, "save_every_n_epochs": 1},
    ),
    (
        rules_run.keep_last,
        "warning",
        "save_last_n_steps_state",
        {"save_last_n_steps_state": 2},
        {"save_last_n_steps_state": 2, "save_every_n_steps": 1},
    ),
    (
        rules_run.save_too_late,
        "warning",
        "save_every_n_steps",
        {"save_every_n_steps": 1601},
        {"save_every_n_steps": 1600},
    ),
    (
        rules_run.save_too_late,
        "warning",
        "save_every_n_epochs",
        {"save_every_n_epochs": 3, "max_train_epochs": 2},
        {"save_every_n_epochs": 2, "max_train_epochs": 2},
    ),
    (
        rules_run.prompts_missing,
        "warning",
        "sample_prompts",
        {"sample_every_n_epochs": 1},
        {"sample_every_n_epochs": 1, "sample_prompts": "p.txt"},
    ),
    (
        rules_run.samples_never,
        "warning",
        "sample_every_n_epochs",
        {"sample_prompts": "p.txt"},
        {"sample_prompts": "p.txt", "sample_at_first": True},
    ),
    (
        rules_run.negative_interval,
        "warning",
        "sample_every_n_steps",
        {"sample_every_n_steps": -1},
        {"sample_every_n_steps": 1},
    ),
    (
        rules_run.validation_without_share,
        "warning",
        "validate_every_n_steps",
        {"validate_every_n_steps": 5},
        {"validate_every_n_steps": 5, "validation_split": 0.1},
    ),
    (rules_run.validation_takes_all, "error", "validation_split", {"validation_split": 1.0}, {"validation_split": 0.5}),
    (rules_run.tensorboard_folder, "error", "logging_dir", {"log_with": "all"}, {"log_with": "wandb"}),
    (
        rules_run.tensorboard_folder,
        "error",
        "logging_dir",
        {"log_with": "tensorboard"},
        {"log_with": "tensorboard", "logging_dir": "logs"},
    ),
    (rules_run.start_inside, "error", "initial_step", {"initial_step": 1600}, {"initial_step": 1599}),
    (
        rules_run.start_inside,
        "error",
        "initial_epoch",
        {"initial_epoch": 4, "max_train_epochs": 3},
        {"initial_epoch": 3, "max_train_epochs": 3},
    ),
    (
        rules_run.skip_to_nowhere,
        "warning",
        "skip_until_initial_step",
        {"skip_until_initial_step": True},
        {"skip_until_initial_step": True, "initial_step": 5},
    ),
    (
        rules_run.hub_state,
        "error",
        "resume",
        {"resume_from_huggingface": True},
        {"resume_from_huggingface": True, "resume": "a/b/c"},
    ),
    (
        rules_run.hub_state,
        "warning",
        "async_upload",
        {"async_upload": True},
        {"async_upload": True, "huggingface_repo_id": "a/b"},
    ),
    (
        rules_run.hub_state,
        "warning",
        "save_state_to_huggingface",
        {"save_state_to_huggingface": True, "huggingface_repo_id": "a/b"},
        {"save_state_to_huggingface": True, "huggingface_repo_id": "a/b", "save_state": True},
    ),
    (rules_run.one_attention, "warning", "sdpa", {"xformers": True, "sdpa": True}, {"sdpa": True}),
    (rules_run.one_memory_plan, "warning", "highvram", {"lowram": True, "highvram": True}, {"lowram": True}),
    (
        rules_run.compile_with_nothing,
        "warning",
        "dynamo_backend",
        {"torch_compile": True, "dynamo_backend": "no"},
        {"dynamo_backend": "no"},
    ),
    (
        rules_run.deepspeed_places,
        "error",
        "offload_optimizer_nvme_path",
        {"deepspeed": True, "offload_optimizer_device": "nvme"},
        {"deepspeed": True, "offload_optimizer_device": "cpu"},
    ),
    (
        rules_run.deepspeed_places,
        "error",
        "zero3_init_flag",
        {"deepspeed": True, "zero3_init_flag": True},
        {"deepspeed": True, "zero3_init_flag": True, "zero_stage": 3},
    ),
    (
        rules_run.processes_and_gpus,
        "warning",
        "multi_gpu",
        {"num_processes": 2},
        {"num_processes": 2, "multi_gpu": True},
    ),
    (
        rules_run.processes_and_gpus,
        "warning",
        "num_processes",
        {"multi_gpu": True},
        {"multi_gpu": True, "num_processes": 4},
    ),
    (
        rules_run.processes_and_gpus,
        "error",
        "gpu_ids",
        {"multi_gpu": True, "num_processes": 3, "gpu_ids": "0,1"},
        {"multi_gpu": True, "num_processes": 2, "gpu_ids": "0,1"},
    ),
    (rules_run.several_machines, "error", "machine_rank", {"machine_rank": 1}, {"machine_rank": 0}),
    (
        rules_run.several_machines,
        "error",
        "main_process_ip",
        {"num_machines": 2, "num_processes": 2},
        {"num_machines": 2, "num_processes": 2, "main_process_ip": "10.0.0.1"},
    ),
    (rules_run.several_machines, "error", "num_processes", {"num_machines": 2, "main_process_ip": "10.0.0.1"}, {}),
]


def rule_finding(rule: Any, values: Values) -> Finding | None:
    """What one rule says, with the module of the LoRA type as `check` fills it in."""
    before = check("train_network", {**GOOD, **values})
    said = rule(_filled(values))
    assert said is None or said in before, "check leaves a rule out"
    return said


def _filled(values: Values) -> Values:
    from sd_scripts.schema.loratypes import LORA_TYPES

    filled = complete("train_network", {**GOOD, **values})
    filled["network_module"] = filled["network_module"] or LORA_TYPES[filled["LoRA_type"]].module
    filled |= {"family": "sd", "method": "network"}
    return filled


def test_sensible_values_are_left_alone() -> None:
    assert check("train_network", GOOD) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].name}-{case[2]}")
def test_rule_fires_and_its_opposite_does_not(case: tuple[Any, str, str | None, Values, Values]) -> None:
    rule, severity, key, wrong, right = case
    said = rule_finding(rule, wrong)
    assert said is not None
    assert (said.severity, said.key) == (severity, key)
    assert rule_finding(rule, right) is None


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == {case[0].name for case in CASES}


def test_findings_are_sentences_about_known_options() -> None:
    known = fields("train_network")
    for rule, _, _, wrong, _ in CASES:
        said = rule(_filled(wrong))
        assert said.key in known
        assert said.message[0].isupper() or said.message.startswith((*known, "networks.")), said.message
        assert said.message.endswith(".") and said.hint[-1:] in ("", ".")


def test_errors_come_first_and_ranges_are_checked_too() -> None:
    found = check("train_network", {**GOOD, "xformers": True, "sdpa": True, "train_batch_size": 0, "seed": -1})
    assert [finding.severity for finding in found] == ["error", "error", "warning"]
    assert {finding.key for finding in found} == {"train_batch_size", "seed", "sdpa"}


def test_a_number_that_stands_for_off_is_no_error() -> None:
    assert (
        check("train_network", {**GOOD, "save_every_n_epochs": 0, "max_timestep": 1000, "max_token_length": 75}) == []
    )


def test_a_value_of_the_wrong_choice_does_not_reach_the_rules() -> None:
    found = check("train_network", {**GOOD, "LoRA_type": "Flux1", "lr_scheduler": "cosine"})
    assert [finding.key for finding in found if finding.severity == "error"] == ["LoRA_type", "network_module"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cache_latents_to_disk": True}, {"cache_latents": True}),
        ({"cpu_offload_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"caption_extention": ".txt"}, {"caption_extension": ".txt"}),
        ({"deepspeed": True}, {"max_data_loader_n_workers": 1}),
        ({"sample_every_n_steps": -5}, {"sample_every_n_steps": None}),
        ({}, {}),
    ],
)
def test_implied(given: Values, expected: Values) -> None:
    assert implied("train_network", complete("train_network", given)) == expected


def test_the_config_holds_what_is_implied() -> None:
    argv = ["--pretrained_model_name_or_path", "m", "--train_data_dir", "p", "--resolution", "512", "--output_dir", "o",
            "--network_module", "networks.lora", "--cache_latents_to_disk", "--caption_extention", ".txt"]  # fmt: skip
    config = parse("train_network", argv)
    assert config.dataset.cache_latents is True
    assert config.captions.caption_extension == ".txt"
    assert "cache_latents" not in config.given
    with pytest.raises(UserError) as caught:
        parse("train_network", [*argv, "--color_aug"])
    assert caught.value.key == "color_aug"
    warned = parse("train_network", [*argv, "--lowram", "--highvram"]).warnings
    assert [str(finding) for finding in warned] == ["lowram and highvram are both set. Leave one of both off."]
    assert warned[0].key == "highvram"
