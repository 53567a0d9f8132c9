"""Facts about the files that kohya_ss (v20 to v26) saves: keys without a field here, what missing keys meant."""

# keys of other model families: kept in the file, without a field on this tab
OTHER_FAMILIES: dict[str, tuple[str, ...]] = {
    "Flux": (
        "ae",
        "apply_t5_attn_mask",
        "blocks_to_swap",
        "blockwise_fused_optimizers",
        "clip_l",
        "discrete_flow_shift",
        "double_blocks_to_swap",
        "enable_all_linear",
        "flux1_cache_text_encoder_outputs",
        "flux1_cache_text_encoder_outputs_to_disk",
        "flux1_checkbox",
        "flux1_clip_l",
        "flux1_t5xxl",
        "flux_fused_backward_pass",
        "ggpo_beta",
        "ggpo_sigma",
        "guidance_scale",
        "img_attn_dim",
        "img_mlp_dim",
        "img_mod_dim",
        "in_dims",
        "mem_eff_save",
        "model_prediction_type",
        "model_type",
        "single_blocks_to_swap",
        "single_dim",
        "single_mod_dim",
        "split_mode",
        "split_qkv",
        "t5xxl",
        "t5xxl_lr",
        "t5xxl_max_token_length",
        "timestep_sampling",
        "train_blocks",
        "train_double_block_indices",
        "train_lora_ggpo",
        "train_single_block_indices",
        "train_t5xxl",
        "txt_attn_dim",
        "txt_mlp_dim",
        "txt_mod_dim",
    ),
    "Stable Diffusion 3": (
        "clip_g",
        "clip_g_dropout_rate",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "pos_emb_random_crop_rate",
        "save_clip",
        "save_t5xxl",
        "sd3_cache_text_encoder_outputs",
        "sd3_cache_text_encoder_outputs_to_disk",
        "sd3_checkbox",
        "sd3_clip_l",
        "sd3_clip_l_dropout_rate",
        "sd3_disable_mmap_load_safetensors",
        "sd3_enable_scaled_pos_embed",
        "sd3_fused_backward_pass",
        "sd3_t5_dropout_rate",
        "sd3_t5xxl",
        "sd3_text_encoder_batch_size",
        "show_timesteps",
        "show_timesteps_resolution",
        "t5xxl_device",
        "t5xxl_dtype",
        "weighting_scheme",
    ),
    "Hunyuan": ("hunyuan_",),
    "Anima": ("anima_",),
    "Lumina": ("lumina_",),
    "Stable Diffusion XL": (
        "disable_mmap_load_safetensors",
        "fused_optimizer_groups",
        "learning_rate_te1",
        "learning_rate_te2",
    ),
}
# keys of the other training tabs
OTHER_TABS: dict[str, tuple[str, ...]] = {
    "Dreambooth": ("learning_rate_te",),
    "Finetune": (
        "batch_size",
        "block_lr",
        "caption_metadata_filename",
        "create_buckets",
        "create_caption",
        "full_path",
        "image_folder",
        "latent_metadata_filename",
        "sdxl_checkbox",
        "train_dir",
        "train_text_encoder",
        "use_latent_files",
        "generate_caption_database",
        "generate_image_buckets",
    ),
    "Textual Inversion": ("init_word", "num_vectors_per_token", "template", "token_string", "weights"),
}
# keys that older versions wrote and that say nothing any more, with the reason
GONE: dict[str, str] = {
    "model_list": "the base model's own field says the same",
    "save_as_bool": "it was a state of the page, not a setting",
    "no_token_padding": "only DreamBooth training ever used it",
    "lowvram": "it never had an effect",
    "train_inpainting": "training of inpainting models is not offered",
    "use_8bit_adam": "the optimizer's own field says the same",
}
# keys that only the newer versions write
ONLY_V26 = frozenset(
    [
        "loss_type",
        "huber_c",
        "huber_schedule",
        "flux1_checkbox",
        "dynamo_backend",
        "lr_warmup_steps",
        "metadata_title",
        "loraplus_lr_ratio",
        "save_last_n_epochs",
        "log_config",
        "skip_cache_check",
        "highvram",
    ]
)
# what the program that wrote a file used where a key is missing in it, as far as the trainer's default is another
DEFAULTS: dict[str, object] = {
    "resolution": "512,512",
    "enable_bucket": True,
    "bucket_no_upscale": True,
    "max_bucket_reso": 2048,
    "cache_latents": True,
    "max_data_loader_n_workers": 0,
    "optimizer_type": "AdamW8bit",
    "lr_scheduler": "cosine",
    "mixed_precision": "fp16",
    "save_precision": "fp16",
    "network_dim": 8,
    "conv_dim": 1,
    "conv_alpha": 1,
    "unit": 1,
    "sample_sampler": "euler_a",
    "output_name": "last",
    "xformers": True,
}
DEFAULTS_V26: dict[str, object] = {
    "caption_extension": ".txt",
    "learning_rate": 1e-4,
    "unet_lr": 1e-4,
    "text_encoder_lr": [1e-4],
    "save_every_n_epochs": 1,
    "lr_warmup": 10,
}


def family_of(key: str) -> str:
    """The model family or other tab that a key belongs to; empty for none."""
    for name, keys in {**OTHER_FAMILIES, **OTHER_TABS}.items():
        if any(key == known or (known.endswith("_") and key.startswith(known)) for known in keys):
            return name
    return ""


def tab_of(raw: dict[str, object]) -> str:
    """The training tab that a saved file is of, told from keys only that tab has."""
    if "LoRA_type" in raw:
        return "lora"
    if "num_vectors_per_token" in raw or "token_string" in raw:
        return "textual_inversion"
    if "image_folder" in raw or "create_caption" in raw or "generate_caption_database" in raw:
        return "finetune"
    return "dreambooth" if "train_data_dir" in raw and "network_dim" not in raw else "lora"
