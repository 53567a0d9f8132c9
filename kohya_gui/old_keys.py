"""Facts about the files that kohya_ss (v20 to v26) saves: keys without a field here, what missing keys meant."""

from collections.abc import Mapping

# keys of other model families: kept in the file, without a field
OTHER_FAMILIES: dict[str, tuple[str, ...]] = {
    "Flux": (
        "ae",
        "apply_t5_attn_mask",
        "blocks_to_swap",
        "blockwise_fused_optimizers",
        "clip_l",
        "discrete_flow_shift",
        "double_blocks_to_swap",
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
    "Anima": (
        "anima_",
        "lllite_",
    ),
    "Lumina": ("lumina_",),
    "LECO": ("leco_denoise_guidance_scale", "max_denoising_steps", "prompts_file"),
}
# switches by which a file says that it trains another family of models
FAMILY_SWITCHES: dict[str, str] = {
    "flux1_checkbox": "Flux",
    "sd3_checkbox": "Stable Diffusion 3",
    "hunyuan_image_checkbox": "Hunyuan",
    "anima_checkbox": "Anima",
    "lumina_checkbox": "Lumina",
}
# the newer pages' own kinds of training, told from keys that only they have
LECO_KEYS = ("leco_denoise_guidance_scale", "max_denoising_steps", "prompts_file")
ANIMA_LLLITE_KEYS = ("lllite_mlp_dim", "lllite_cond_dim", "lllite_target_layers", "lllite_cond_resblocks")
# the models that older pages offered in a list
QUICK_PICKS: dict[str, dict[str, bool]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": {"sdxl": True},
    "stabilityai/stable-diffusion-xl-refiner-1.0": {"sdxl": True},
    "stabilityai/stable-diffusion-2-1-base/blob/main/v2-1_512-ema-pruned": {"v2": True},
    "stabilityai/stable-diffusion-2-1-base": {"v2": True},
    "stabilityai/stable-diffusion-2-base": {"v2": True},
    "stabilityai/stable-diffusion-2-1/blob/main/v2-1_768-ema-pruned": {"v2": True, "v_parameterization": True},
    "stabilityai/stable-diffusion-2-1": {"v2": True, "v_parameterization": True},
    "stabilityai/stable-diffusion-2": {"v2": True, "v_parameterization": True},
    "CompVis/stable-diffusion-v1-4": {},
    "runwayml/stable-diffusion-v1-5": {},
}
# keys that older versions wrote and that say nothing any more, with the reason
GONE: dict[str, str] = {
    "model_list": "the base model's own field says the same",
    "save_as_bool": "it was a state of the page, not a setting",
    "no_token_padding": "only DreamBooth training ever used it",
    "lowvram": "it never had an effect",
    "train_inpainting": "training of inpainting models is not offered",
    "stop_text_encoder_training_pct": "here the text encoder learns all the time or not at all",
    "use_8bit_adam": "the optimizer's own field says the same",
    "caption_dropout_rate": "a new word is learned from every caption",
    "caption_dropout_every_n_epochs": "a new word is learned from every caption",
    "fused_optimizer_groups": "fused_backward_pass saves the same memory with every weight on its own",
    "disable_mmap_load_safetensors": "files are read in the way that suits the machine",
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
_COMMON: dict[str, object] = {
    "resolution": "512,512",
    "enable_bucket": True,
    "bucket_no_upscale": True,
    "cache_latents": True,
    "max_data_loader_n_workers": 0,
    "optimizer_type": "AdamW8bit",
    "mixed_precision": "fp16",
    "save_precision": "fp16",
    "sample_sampler": "euler_a",
    "output_name": "last",
    "xformers": True,
}
_BY_FOLDERS: dict[str, object] = {**_COMMON, "max_bucket_reso": 2048, "lr_scheduler": "cosine"}
_WHOLE_MODEL: dict[str, object] = {
    "save_model_as": "safetensors",
    "learning_rate_te": 1e-5,
    "learning_rate_te1": 1e-5,
    "learning_rate_te2": 1e-5,
}
_DEFAULTS: dict[str, dict[str, object]] = {
    "lora": {**_BY_FOLDERS, "network_dim": 8, "conv_dim": 1, "conv_alpha": 1, "unit": 1},
    "dreambooth": {**_BY_FOLDERS, **_WHOLE_MODEL},
    "finetune": {**_COMMON, **_WHOLE_MODEL, "dataset_repeats": 40, "train_text_encoder": True},
    "textual_inversion": {**_BY_FOLDERS, "init_word": "*", "save_model_as": "safetensors"},
}
_NEWER: dict[str, object] = {"caption_extension": ".txt", "save_every_n_epochs": 1}
_DEFAULTS_V26: dict[str, dict[str, object]] = {
    "lora": {**_NEWER, "learning_rate": 1e-4, "unet_lr": 1e-4, "text_encoder_lr": [1e-4], "lr_warmup": 10.0},
    "dreambooth": {**_NEWER, "learning_rate": 1e-5, "lr_warmup": 10.0},
    "finetune": {**_NEWER, "learning_rate": 1e-5},
    "textual_inversion": {**_NEWER, "learning_rate": 1e-5, "lr_warmup": 10.0},
}


def defaults(tab: str, newer: bool) -> dict[str, object]:
    """What the program that wrote a file of this tab used for a missing key, where our default is another."""
    return {**_DEFAULTS.get(tab, {}), **(_DEFAULTS_V26.get(tab, {}) if newer else {})}


def family_of(key: str) -> str:
    """The model family that a key belongs to; empty for none."""
    for name, keys in OTHER_FAMILIES.items():
        if any(key == known or (known.endswith("_") and key.startswith(known)) for known in keys):
            return name
    return ""


def families_of(raw: Mapping[str, object]) -> list[str]:
    """The kinds of models or training that a file is for and that are not here."""
    found = [name for switch, name in FAMILY_SWITCHES.items() if raw.get(switch) in (True, "True", "true", 1)]
    if any(key in raw for key in LECO_KEYS):
        found.append("LECO")
    if any(key in raw for key in ANIMA_LLLITE_KEYS) and "anima_qwen3" in raw:
        found.append("Anima")
    return found


_FINETUNE_KEYS = (
    "image_folder",
    "train_dir",
    "create_caption",
    "create_buckets",
    "generate_caption_database",
    "generate_image_buckets",
    "sdxl_checkbox",
    "use_latent_files",
    "caption_metadata_filename",
    "latent_metadata_filename",
    "dataset_repeats",
)
_EMBEDDING_KEYS = ("num_vectors_per_token", "token_string", "init_word", "template")
_LORA_KEYS = ("LoRA_type", "network_dim", "network_alpha", "lora_network_weights", "unet_lr", *LECO_KEYS)
_WHOLE_KEYS = ("learning_rate_te", "no_token_padding", "stop_text_encoder_training", "prior_loss_weight")


def tab_of(raw: Mapping[str, object]) -> str:
    """The training tab that a kohya_ss file is of, told from keys only that tab has; empty if nothing tells."""
    if any(key in raw for key in ANIMA_LLLITE_KEYS):
        return "lllite"
    if "LoRA_type" in raw:
        return "lora"
    for tab, keys in (("textual_inversion", _EMBEDDING_KEYS), ("finetune", _FINETUNE_KEYS), ("lora", _LORA_KEYS)):
        if any(key in raw for key in keys):
            return tab
    # Dreambooth has no key of its own: it is what is left of the forms that train from folders
    return "dreambooth" if "train_data_dir" in raw or any(key in raw for key in _WHOLE_KEYS) else ""
