"""Keys that older files and scripts hold and that no longer do anything, each with its reason."""

_PAGE = "it belongs to the page of older versions, which worked out other options from it"

RETIRED: dict[str, str] = {
    "epoch": f"{_PAGE}; give max_train_epochs or max_train_steps",
    "lr_warmup": f"{_PAGE}; give lr_warmup_steps, below 1 for a share",
    "noise_offset_type": f"{_PAGE}; noise_offset and multires_noise_iterations say the same",
    "stop_text_encoder_training": "a network was never trained so; text_encoder_lr = 0 leaves the text encoder alone",
    "no_token_padding": "only DreamBooth training ever used it",
    "train_text_encoder": "a network trains the text encoder unless network_train_unet_only is set",
    "lowvram": "it never had an effect; gradient_checkpointing and fp8_base save memory",
    "diffusers_xformers": "xformers and sdpa now work for every model",
    "logging_format": "it never had an effect",
    "use_cp": "it is a network setting; write use_tucker=True into network_args",
    "train_inpainting": "training of inpainting models is not offered by this trainer",
    "blocks_to_swap": "swapping blocks is only for the newer, larger model families",
    "disable_mmap_load_safetensors": "files are read in the way that suits the machine",
}
