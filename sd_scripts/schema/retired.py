"""Keys that older files and scripts hold and that do nothing in a command, each with its reason."""

from collections.abc import Mapping
from functools import cache

from .fields import find_command, trainer_fields

_PAGE = "it belongs to the page of older versions, which worked out other options from it"
_FIXED_TEXT = "this way of training leaves the text encoder as it is"

_EVERYWHERE: dict[str, str] = {
    "epoch": f"{_PAGE}; give max_train_epochs or max_train_steps",
    "lr_warmup": f"{_PAGE}; give lr_warmup_steps, below 1 for a share",
    "noise_offset_type": f"{_PAGE}; noise_offset and multires_noise_iterations say the same",
    "no_token_padding": "only DreamBooth training ever used it",
    "lowvram": "it never had an effect; gradient_checkpointing and fp8_base save memory",
    "diffusers_xformers": "xformers and sdpa now work for every model",
    "logging_format": "it never had an effect",
    "train_inpainting": "training of inpainting models is not offered by this trainer",
    "blocks_to_swap": "swapping blocks is only for the newer, larger model families",
    "disable_mmap_load_safetensors": "files are read in the way that suits the machine",
}

RETIRED: dict[str, str] = {
    **_EVERYWHERE,
    "stop_text_encoder_training": "a network was never trained so; text_encoder_lr = 0 leaves the text encoder alone",
    "train_text_encoder": "a network trains the text encoder unless network_train_unet_only is set",
    "use_cp": "it is a network setting; write use_tucker=True into network_args",
}
"""Those of the network trainers, which saved settings of a LoRA hold."""

_OF_METHODS: dict[str, dict[str, str]] = {
    "network": RETIRED,
    "embedding": {
        "stop_text_encoder_training": "of the text encoder only the new word's vectors are trained",
        "train_text_encoder": "of the text encoder only the new word's vectors are trained",
    },
    "xti": {
        "stop_text_encoder_training": "of the text encoder only the new word's vectors are trained",
        "train_text_encoder": "of the text encoder only the new word's vectors are trained",
    },
    "controlnet": {"stop_text_encoder_training": _FIXED_TEXT, "train_text_encoder": _FIXED_TEXT},
    "lllite": {"stop_text_encoder_training": _FIXED_TEXT, "train_text_encoder": _FIXED_TEXT},
}
_OF_COMMANDS: dict[str, dict[str, str]] = {
    "train_db": {
        "train_text_encoder": "DreamBooth training trains the text encoder unless stop_text_encoder_training says "
        "otherwise",
    },
    "fine_tune": {"stop_text_encoder_training": "train_text_encoder says whether the text encoder is trained"},
    "sdxl_train": {
        "stop_text_encoder_training": "train_text_encoder says whether the text encoders are trained",
        "fused_optimizer_groups": "fused_backward_pass saves the same memory with every weight on its own",
    },
}


@cache
def retired(command: str) -> Mapping[str, str]:
    """The keys that do nothing in this command, with the reasons; what it offers is not among them.

    Raises:
        UserError: for an unknown command.
    """
    found = find_command(command)
    reasons = _EVERYWHERE | _OF_METHODS.get(found.method, {}) | _OF_COMMANDS.get(command, {})
    offered = trainer_fields(command)
    return {key: reason for key, reason in reasons.items() if key not in offered}
