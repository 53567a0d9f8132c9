"""Which base model, and how its text encoder reads captions."""

from .option import Is, option, section

MODEL_SUGGESTIONS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0",
)


@section("Model", place="Model")
class ModelOptions:
    """The base model and its reading of text."""

    pretrained_model_name_or_path: str | None = option(
        None,
        "The model to start from: a .safetensors or .ckpt file, a diffusers folder, or the name of a model on the "
        "Hugging Face Hub.",
        label="Base model",
        kind="model",
        choices=MODEL_SUGGESTIONS,
        custom=True,
        basic=True,
    )
    v2: bool = option(
        False,
        "The base model is Stable Diffusion 2.x. Normally seen in the file itself; a contradiction is reported.",
        label="Stable Diffusion 2.x",
    )
    v_parameterization: bool = option(
        False,
        "The base model predicts velocity instead of noise, as the 768-pixel versions of Stable Diffusion 2 do. "
        "Set wrongly, the training makes noise only.",
        label="Velocity prediction (v-parameterization)",
    )
    vae: str | None = option(
        None,
        "Use this VAE (a file or a diffusers folder) instead of the one in the base model, to encode pictures and to "
        "decode samples.",
        label="Other VAE",
        kind="model",
        place="Parameters",
    )
    no_half_vae: bool = option(
        False,
        "Keep the VAE in 32-bit floats. Switch on where cached pictures or samples come out black or hold NaN in 16 "
        "bits.",
        label="VAE in full precision",
        aliases=("sdxl_no_half_vae",),
        place="Parameters",
    )
    tokenizer_cache_dir: str | None = option(
        None,
        "Folder in which a tokenizer loaded by name is kept for later runs. Not needed for Stable Diffusion 1 and 2, "
        "whose tokenizer is included.",
        label="Tokenizer cache",
        kind="folder",
        place="Parameters",
    )
    clip_skip: int | None = option(
        None,
        "Take the text encoder's output this many layers before the end. 2 for models trained so (many drawing "
        "styles), otherwise leave at 1.",
        label="CLIP skip",
        minimum=1,
        maximum=23,
        step=1,
        off=1,
        unit="layers",
        place="Parameters",
    )
    max_token_length: int | None = option(
        None,
        "How many tokens of a caption are read: 75 by default, 150 or 225 for long captions. Longer costs a little "
        "memory and time.",
        label="Longest caption",
        choices=(150, 225),
        off=75,
        unit="tokens",
        place="Parameters",
    )
    weighted_captions: bool = option(
        False,
        "Read (word), (word:1.3) and [word] in captions as more or less weight. Leave off if captions hold ordinary "
        "brackets.",
        label="Weights in captions",
        when=Is("sdxl", False),
        methods=("network", "full", "controlnet", "lllite"),
        place="Parameters",
    )
