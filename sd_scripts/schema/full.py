"""Training of the whole model: which text encoders learn, at what rate, and how the result is written."""

from .option import Is, option, section

BLOCK_RATES = 23
"""Parts of the SDXL U-Net with a rate of their own: embeddings, 9 going down, 3 in the middle, 9 going up, the last."""


@section("Full training")
class FullOptions:
    """Text encoders, rates of parts, and the format of the whole model."""

    train_text_encoder: bool = option(
        False,
        "Train the text encoder as well as the U-Net. Learns new words better, needs more memory, and forgets other "
        "words sooner.",
        label="Train the text encoder",
    )
    stop_text_encoder_training: int | None = option(
        None,
        "The text encoder learns until this many steps are done, then only the U-Net. Empty for the whole training, "
        "-1 for not at all.",
        label="Text encoder learns until step",
        minimum=-1,
        step=1,
        unit="steps",
    )
    learning_rate_te: float | None = option(
        None,
        "Learning rate of the text encoder; the general rate if empty. 0 leaves the text encoder as it is.",
        label="Rate of the text encoder",
        minimum=0,
        families=("sd",),
    )
    learning_rate_te1: float | None = option(
        None,
        "Learning rate of the first text encoder (ViT-L); the general rate if empty. 0 leaves it as it is.",
        label="Rate of the first text encoder",
        minimum=0,
        families=("sdxl",),
        when=Is("train_text_encoder", True),
    )
    learning_rate_te2: float | None = option(
        None,
        "Learning rate of the second text encoder (bigG); the general rate if empty. 0 leaves it as it is.",
        label="Rate of the second text encoder",
        minimum=0,
        families=("sdxl",),
        when=Is("train_text_encoder", True),
    )
    block_lr: str | None = option(
        None,
        "23 learning rates for the parts of the U-Net, with commas: embeddings, 9 blocks going down, 3 in the middle, "
        "9 going up, the last layer. They take the place of the general rate there; 0 leaves a part as it is.",
        label="Rates of the U-Net's parts",
        families=("sdxl",),
    )
    no_token_padding: bool = option(
        False,
        "Don't fill captions up to the full length before they are encoded, as the first DreamBooth scripts did. "
        "Rarely better.",
        label="Captions without filling",
    )
    use_safetensors: bool = option(
        False,
        "Write safetensors where no file format is chosen: instead of ckpt, and inside a diffusers folder too.",
        label="Prefer safetensors",
    )
    diffusers_xformers: bool = option(
        False,
        "Older switch for the xformers attention by way of the diffusers package. Here it does the same as xformers; "
        "kept for old scripts.",
        label="xformers (old switch)",
    )
    stochastic_rounding: bool = option(
        False,
        "Round changed weights to bf16 up or down at random, so that small changes are not lost. Only with everything "
        "in bf16; learns nearly as well as 32 bits.",
        label="Stochastic rounding",
        when=Is("full_bf16", True),
    )
