"""Captions encoded once instead of in every step, for models with large text encoders."""

from .option import option, section


@section("Caption cache")
class TextCacheOptions:
    """What is kept of the text encoders' work."""

    cache_text_encoder_outputs: bool = option(
        False,
        "Encode every caption once before training and take the text encoders out of memory. Faster; captions cannot "
        "vary then, and the text encoders cannot be trained.",
        label="Cache encoded captions",
        aliases=("sdxl_cache_text_encoder_outputs",),
        families=("sdxl",),
        methods=("network", "full", "lllite"),
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False,
        "Keep the encoded captions as files beside the pictures, so that the next run starts at once. Switches the "
        "cache of captions on.",
        label="Cache encoded captions on disk",
        families=("sdxl",),
        methods=("network", "full", "lllite"),
    )
