"""Cases for the rules as train_network applies them: what fires each rule, and what does not."""

from typing import Any

from network_rule_cases_more import MORE_CASES

from sd_scripts.schema import rules_data, rules_sdxl

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
    (rules_data.needs_resolution, "error", "resolution", {"resolution": "500"}, {"resolution": "500", **BUCKETS}),
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
        {**BUCKETS, "bucket_reso_steps": 8},
        {**BUCKETS, "bucket_reso_steps": 128},
    ),
    (
        rules_data.bucket_steps,
        "error",
        "bucket_reso_steps",
        {"bucket_reso_steps": 12},
        {"bucket_reso_steps": 8},
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
    (rules_sdxl.other_family, "error", "sdxl", {"sdxl": True}, {}),
    (rules_sdxl.sdxl_and_v2, "error", "v2", {"sdxl": True, "v2": True}, {"sdxl": True}),
    (
        rules_sdxl.sdxl_weights_in_captions,
        "error",
        "weighted_captions",
        {"sdxl": True, "weighted_captions": True},
        {"weighted_captions": True},
    ),
    (
        rules_sdxl.sdxl_velocity,
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
    *MORE_CASES,
]
