"""What all training tabs have alike: groups and pages in reading order. Keys that a tab does not know are left out."""

from kohya_gui.layout import Group, Page

WIDE = frozenset(("pretrained_model_name_or_path", "train_data_dir", "conditioning_data_dir", "train_dir"))

_FIRST = ("pretrained_model_name_or_path", "model_family", "train_data_dir")
_NEXT = ("output_name", "output_dir")
_LAST = (
    "resolution",
    "max_train_epochs",
    "max_train_steps",
    "learning_rate",
    "optimizer_type",
    "train_batch_size",
    "mixed_precision",
    "seed",
    "save_every_n_epochs",
    "save_every_n_steps",
    "sample_prompt_text",
)


def start(after_pictures: tuple[str, ...] = (), after_name: tuple[str, ...] = ()) -> Group:
    """What one fills in first, with the tab's own fields behind the pictures and behind the name of the result."""
    keys = (*_FIRST, *after_pictures, *_NEXT, *after_name, *_LAST)
    return Group("Start here", keys, plain=True, wide=WIDE)


CAPTIONS = Group(
    "Captions",
    (
        "caption_extension",
        "shuffle_caption",
        "keep_tokens",
        "caption_dropout_rate",
        "caption_prefix",
        "caption_suffix",
    ),
)

ABOUT_MODEL = Group(
    "About the base model", ("clip_skip", "max_token_length", "vae", "no_half_vae", "tokenizer_cache_dir")
)

WRITTEN_FILE = Group(
    "The file that is written",
    (
        "save_model_as",
        "save_precision",
        "use_safetensors",
        "training_comment",
        "no_metadata",
    ),
)

DESCRIPTION = Group(
    "What the file says about itself",
    (
        "metadata_title",
        "metadata_author",
        "metadata_description",
        "metadata_license",
        "metadata_tags",
        "metadata_usage_hint",
        "metadata_thumbnail",
        "metadata_merged_from",
        "metadata_trigger_phrase",
        "metadata_preprocessor",
        "metadata_is_negative_embedding",
    ),
)

HUB = Group(
    "Upload to the Hugging Face Hub",
    (
        "huggingface_repo_id",
        "huggingface_repo_type",
        "huggingface_path_in_repo",
        "huggingface_repo_visibility",
        "huggingface_token",
        "save_state_to_huggingface",
        "resume_from_huggingface",
        "async_upload",
    ),
)


def folders(masks: bool = True) -> Page:
    """The page of folders and of the written file; without `masks` the tab has control pictures in another place."""
    keys = ("reg_data_dir", "logging_dir", "dataset_config", "in_json", "dataset_class", "dataset_repeats")
    others = Group("Other folders", (*keys, "conditioning_data_dir") if masks else keys)
    return Page("folders", "Folders", groups=(others, WRITTEN_FILE, DESCRIPTION, HUB), extra="dataset")


PREPARATION = Page("preparation", "Preparation", extra="preparation")


def rates(*keys: str) -> Group:
    """Rates and their schedule, with the tab's own rates first."""
    return Group(
        "Learning rates and schedule",
        (
            *keys,
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
        ),
    )


SIZES = Group(
    "Sizes and buckets",
    (
        "enable_bucket",
        "bucket_no_upscale",
        "min_bucket_reso",
        "max_bucket_reso",
        "bucket_reso_steps",
        "resize_interpolation",
    ),
)

CACHING = Group(
    "Caching",
    (
        "cache_latents",
        "cache_latents_to_disk",
        "vae_batch_size",
        "skip_cache_check",
        "cache_info",
        "cache_text_encoder_outputs",
        "cache_text_encoder_outputs_to_disk",
    ),
)

MEMORY = Group(
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
        "stochastic_rounding",
        "fp8_base",
        "fp8_base_unet",
        "fused_backward_pass",
        "lowram",
        "highvram",
    ),
)

MORE_CAPTIONS = Group(
    "More about captions",
    (
        "weighted_captions",
        "no_token_padding",
        "caption_dropout_every_n_epochs",
        "caption_tag_dropout_rate",
        "caption_separator",
        "keep_tokens_separator",
        "secondary_separator",
        "enable_wildcard",
        "token_warmup_min",
        "token_warmup_step",
    ),
)

VARYING = Group(
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
)

NOISE = Group(
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
)

LOSS = Group(
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
)

SAVING = Group(
    "Saving and going on",
    (
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
)

VALIDATION = Group(
    "Validation",
    (
        "validation_split",
        "validation_seed",
        "validate_every_n_steps",
        "validate_every_n_epochs",
        "max_validation_steps",
    ),
)

LOADING = Group(
    "Loading of pictures",
    ("max_data_loader_n_workers", "persistent_data_loader_workers", "debug_dataset"),
)

LOGGING = Group(
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
)

FLAGS = Group("Further flags", ("additional_parameters",), wide=frozenset(("additional_parameters",)))

OLDER = Group(
    "Kept for older files and scripts",
    ("epoch", "caption_extention", "use_8bit_adam", "use_lion_optimizer", "diffusers_xformers"),
)

LEARNING = (MEMORY, MORE_CAPTIONS, VARYING, NOISE, LOSS, SAVING, VALIDATION, LOADING, LOGGING)
"""The subjects of the advanced page that every tab has."""


def parameters(basic: tuple[Group, ...], advanced: tuple[Group, ...] = (), pages: tuple[Page, ...] = ()) -> Page:
    """The page of parameters: basic ones, then advanced ones with the tab's own subjects and sub-tabs."""
    return Page(
        "parameters",
        "Parameters",
        pages=(
            Page("basic", "Basic", groups=(*basic, SIZES, CACHING)),
            Page("advanced", "Advanced", groups=(*LEARNING, *advanced, FLAGS, OLDER), pages=pages),
        ),
    )


SAMPLES = Page(
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

ACCELERATE = Page(
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
        Group(
            "Compiler",
            ("torch_compile", "dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
        ),
        Group("Between the processes", ("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph")),
        Group(
            "DeepSpeed",
            (
                "deepspeed",
                "zero_stage",
                "offload_optimizer_device",
                "offload_optimizer_nvme_path",
                "offload_param_device",
                "offload_param_nvme_path",
                "zero3_init_flag",
                "zero3_save_16bit_model",
                "fp16_master_weights_and_gradients",
            ),
        ),
    ),
)

REST_PAGES = {"": "advanced", "launcher": "accelerate", "network_args": "basic", "gui": "advanced"}
"""Option target -> the page for options that no page names."""

SET_BY_PAGE = frozenset(("config_file", "output_config", "job_dir", "plan_only", "allow_plugins"))
"""Options that the page sets itself, or that only the person at the machine may set."""
