"""The LoRA tab's layout: which option stands where. Options not named here follow at the end of their page."""

from kohya_gui.layout import Group, Page

_MAIN = Page(
    "main",
    "Model and pictures",
    groups=(
        Group(
            "Start here",
            (
                "pretrained_model_name_or_path",
                "train_data_dir",
                "output_name",
                "output_dir",
                "LoRA_type",
                "network_dim",
                "resolution",
                "max_train_epochs",
                "learning_rate",
                "optimizer_type",
                "train_batch_size",
                "mixed_precision",
                "seed",
                "save_every_n_epochs",
                "max_train_steps",
                "sample_prompt_text",
            ),
            plain=True,
            wide=frozenset(("pretrained_model_name_or_path", "train_data_dir")),
        ),
        Group(
            "Captions",
            (
                "caption_extension",
                "shuffle_caption",
                "keep_tokens",
                "caption_dropout_rate",
                "caption_prefix",
                "caption_suffix",
            ),
            basic=True,
        ),
        Group(
            "About the base model",
            ("model_list", "v2", "v_parameterization", "sdxl", "clip_skip", "max_token_length", "vae", "no_half_vae"),
        ),
    ),
)

_FOLDERS = Page(
    "folders",
    "Folders",
    groups=(
        Group(
            "Other folders",
            (
                "reg_data_dir",
                "logging_dir",
                "dataset_config",
                "in_json",
                "conditioning_data_dir",
                "dataset_class",
                "dataset_repeats",
            ),
        ),
        Group("The file that is written", ("save_model_as", "save_precision", "training_comment", "no_metadata")),
    ),
    extra="dataset",
)

_BASIC = Page(
    "basic",
    "Basic",
    groups=(
        Group(
            "Network",
            (
                "network_alpha",
                "network_dropout",
                "rank_dropout",
                "module_dropout",
                "scale_weight_norms",
                "network_weights",
                "dim_from_weights",
                "network_module",
                "network_args",
                "unit",
            ),
        ),
        Group(
            "LyCORIS",
            (
                "LyCORIS_preset",
                "factor",
                "decompose_both",
                "use_cp",
                "use_tucker",
                "use_scalar",
                "rank_dropout_scale",
                "bypass_mode",
                "dora_wd",
                "train_norm",
                "constrain",
                "rescaled",
                "train_on_input",
            ),
        ),
        Group("LoRA+", ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")),
        Group(
            "Learning rates and schedule",
            (
                "unet_lr",
                "text_encoder_lr",
                "lr_scheduler",
                "lr_warmup",
                "lr_warmup_steps",
                "lr_decay_steps",
                "lr_scheduler_num_cycles",
                "lr_scheduler_power",
                "lr_scheduler_timescale",
                "lr_scheduler_min_lr_ratio",
                "lr_scheduler_type",
                "lr_scheduler_args",
                "optimizer_args",
                "max_grad_norm",
                "network_train_unet_only",
                "network_train_text_encoder_only",
                "stop_text_encoder_training",
                "epoch",
            ),
        ),
        Group(
            "Sizes and buckets",
            (
                "enable_bucket",
                "bucket_no_upscale",
                "min_bucket_reso",
                "max_bucket_reso",
                "bucket_reso_steps",
                "resize_interpolation",
            ),
        ),
        Group(
            "Caching",
            (
                "cache_latents",
                "cache_latents_to_disk",
                "vae_batch_size",
                "skip_cache_check",
                "cache_info",
                "sdxl_cache_text_encoder_outputs",
            ),
        ),
    ),
)

_ADVANCED = Page(
    "advanced",
    "Advanced",
    pages=(
        Page(
            "weights",
            "Weights",
            groups=(
                Group(
                    "Weights",
                    ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
                    plain=True,
                ),
            ),
        ),
        Page("blocks", "Blocks", groups=(Group("Blocks", ("block_dims", "block_alphas"), plain=True),)),
        Page(
            "conv",
            "Conv",
            groups=(Group("Conv", ("conv_dim", "conv_alpha", "conv_block_dims", "conv_block_alphas"), plain=True),),
        ),
    ),
    groups=(
        Group(
            "Memory and speed",
            (
                "gradient_checkpointing",
                "cpu_offload_checkpointing",
                "gradient_accumulation_steps",
                "sdpa",
                "xformers",
                "mem_eff_attn",
                "full_fp16",
                "full_bf16",
                "fp8_base",
                "fp8_base_unet",
                "torch_compile",
                "dynamo_backend",
                "lowram",
                "highvram",
                "fused_backward_pass",
            ),
        ),
        Group(
            "More about captions",
            (
                "weighted_captions",
                "caption_dropout_every_n_epochs",
                "caption_tag_dropout_rate",
                "caption_separator",
                "keep_tokens_separator",
                "secondary_separator",
                "enable_wildcard",
                "token_warmup_min",
                "token_warmup_step",
            ),
        ),
        Group(
            "Varying the pictures",
            (
                "flip_aug",
                "color_aug",
                "random_crop",
                "face_crop_aug_range",
                "alpha_mask",
                "masked_loss",
                "prior_loss_weight",
            ),
        ),
        Group(
            "Noise",
            (
                "noise_offset_type",
                "noise_offset",
                "noise_offset_random_strength",
                "adaptive_noise_scale",
                "multires_noise_iterations",
                "multires_noise_discount",
                "ip_noise_gamma",
                "ip_noise_gamma_random_strength",
                "zero_terminal_snr",
                "min_timestep",
                "max_timestep",
            ),
        ),
        Group(
            "Loss",
            (
                "loss_type",
                "huber_schedule",
                "huber_c",
                "huber_scale",
                "min_snr_gamma",
                "debiased_estimation_loss",
                "scale_v_pred_loss_like_noise_pred",
                "v_pred_like_loss",
            ),
        ),
        Group(
            "Saving and going on",
            (
                "save_every_n_steps",
                "save_n_epoch_ratio",
                "save_last_n_epochs",
                "save_last_n_steps",
                "save_state",
                "save_state_on_train_end",
                "save_last_n_epochs_state",
                "save_last_n_steps_state",
                "resume",
                "skip_until_initial_step",
                "initial_epoch",
                "initial_step",
            ),
        ),
        Group(
            "Validation",
            (
                "validation_split",
                "validation_seed",
                "validate_every_n_steps",
                "validate_every_n_epochs",
                "max_validation_steps",
            ),
        ),
        Group(
            "Loading of pictures",
            ("max_data_loader_n_workers", "persistent_data_loader_workers", "debug_dataset"),
        ),
        Group(
            "Logging",
            (
                "log_with",
                "wandb_api_key",
                "wandb_run_name",
                "log_prefix",
                "log_tracker_name",
                "log_tracker_config",
                "log_config",
                "console_log_level",
                "console_log_file",
                "console_log_simple",
            ),
        ),
        Group("Merged before training", ("base_weights", "base_weights_multiplier")),
        Group("Further flags", ("additional_parameters",)),
    ),
)

_SAMPLES = Page(
    "samples",
    "Samples",
    groups=(
        Group(
            "Samples",
            ("sample_every_n_epochs", "sample_every_n_steps", "sample_at_first", "sample_sampler", "sample_prompts"),
            plain=True,
        ),
    ),
)

PAGES = (
    _MAIN,
    _FOLDERS,
    Page("parameters", "Parameters", pages=(_BASIC, _ADVANCED)),
    _SAMPLES,
    Page(
        "accelerate",
        "Accelerate",
        groups=(
            Group(
                "Processes",
                (
                    "num_processes",
                    "num_machines",
                    "multi_gpu",
                    "gpu_ids",
                    "num_cpu_threads_per_process",
                    "machine_rank",
                    "main_process_ip",
                    "main_process_port",
                    "extra_accelerate_launch_args",
                ),
                plain=True,
            ),
            Group("Compiler", ("dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic")),
        ),
    ),
)

REST_PAGES = {"": "advanced", "launcher": "accelerate", "network_args": "basic", "gui": "advanced"}
"""Option target -> the page for options that no page names."""

SET_BY_PAGE = frozenset(("config_file", "output_config", "job_dir", "plan_only", "allow_plugins"))
"""Options that the page sets itself, or that only the person at the machine may set."""
