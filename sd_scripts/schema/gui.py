"""Keys that belong to the page or to older saved files and are no options of the trainer."""

from .optimizer import HAS_WARMUP
from .option import option, section


@section("Form", target="gui")
class PageOptions:
    """Values from which the page works out options of any trainer."""

    model_list: str = option(
        "custom",
        "Model picked from the list of older versions; the base model says the same now. Read from old files only.",
        label="Quick pick",
        place="Model",
    )
    sdxl: bool = option(
        False,
        "The base model is Stable Diffusion XL: chooses the trainer for it. Normally seen in the file itself.",
        label="SDXL model",
        place="Model",
    )
    epoch: int = option(
        1,
        "Epochs from which older versions worked out the steps where none were given. Read from old files; use epochs "
        "now.",
        label="Epochs (old field)",
        minimum=0,
        step=1,
        unit="epochs",
    )
    lr_warmup: float = option(
        0,
        "Warm-up as a percentage of all steps. Used where no number of warm-up steps is given.",
        label="Warm-up (percent)",
        minimum=0,
        maximum=100,
        step=1,
        unit="%",
        when=HAS_WARMUP,
    )
    noise_offset_type: str = option(
        "Original",
        "Which way to learn dark and bright pictures: one shift for the whole picture (Original) or layers of coarse "
        "noise (Multires).",
        label="Kind of noise offset",
        choices=("Original", "Multires"),
    )
    sample_prompt_text: str | None = option(
        None,
        "Prompts for samples, one a line. Add --n negative prompt, --w width, --h height, --d seed, --l scale, --s "
        "steps as you like.",
        label="Sample prompts",
        kind="long",
        basic=True,
        place="Samples",
    )
    additional_parameters: str | None = option(
        None,
        "Further flags of the trainer, as typed in a terminal. They go before the fields.",
        label="Further flags",
        kind="long",
    )


@section("Form", target="gui")
class GuiOptions(PageOptions):
    """The same for networks, with two keys of older files."""

    stop_text_encoder_training: int = option(
        0,
        "Percentage of the steps after which the text encoder stops learning. It has no effect on a LoRA; kept for "
        "old files.",
        label="Stop text encoder after",
        minimum=-1,
        maximum=100,
        step=1,
        unit="%",
        aliases=("stop_text_encoder_training_pct",),
    )
    sdxl_cache_text_encoder_outputs: bool = option(
        False,
        "Encode captions once and keep the result; SDXL only, with U-Net training only.",
        label="Cache encoded captions (SDXL)",
    )
