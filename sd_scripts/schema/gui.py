"""Keys that belong to the page or to older saved files and are no options of the trainer."""

from .optimizer import HAS_WARMUP
from .option import All, Given, Is, option, section

AUTO_FAMILY = "auto"
FAMILY_SWITCHES: dict[str, tuple[bool, bool, bool]] = {
    "sd1": (False, False, False),
    "sd1-v": (False, True, False),
    "sd2": (True, False, False),
    "sd2-v": (True, True, False),
    "sdxl": (False, False, True),
    "sdxl-v": (False, True, True),
}
"""Choice of the model's family -> the trainer's switches v2, v_parameterization, and the page's sdxl."""

FAMILY_NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd1-v": "Stable Diffusion 1.x with velocity prediction",
    "sd2": "Stable Diffusion 2.x",
    "sd2-v": "Stable Diffusion 2.x with velocity prediction",
    "sdxl": "Stable Diffusion XL",
    "sdxl-v": "Stable Diffusion XL with velocity prediction",
}
"""The same choices in words."""


@section("Form", target="gui")
class PageOptions:
    """Values from which the page works out options of any trainer."""

    model_family: str = option(
        AUTO_FAMILY,
        "What the base model is: Stable Diffusion 1, 2 (with or without velocity prediction, the -v) or XL. auto reads "
        "it from the model file itself.",
        label="Kind of base model",
        choices=(AUTO_FAMILY, *FAMILY_SWITCHES),
        choice_labels=("auto (seen in the model)", *FAMILY_NAMES.values()),
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
class DreamBoothPageOptions(PageOptions):
    """The same for DreamBooth."""

    stop_text_encoder_percent: float | None = option(
        None,
        "The text encoder learns for this share of the steps, then only the U-Net. Empty for the whole training. Used "
        "where no number of steps is given for it.",
        label="Text encoder learns for",
        minimum=0,
        maximum=100,
        step=1,
        unit="%",
        off=0,
        when=Is("sdxl", False),
    )


@section("Form", target="gui")
class EmbeddingPageOptions(PageOptions):
    """The same for Textual Inversion."""

    xti: bool = option(
        False,
        "Learn a vector of its own for every block of the U-Net (XTI) instead of one for all. Follows the pictures "
        "more closely; few programs read the file. Not for SDXL.",
        label="A vector for each block (XTI)",
        when=Is("sdxl", False),
    )
    template: str = option(
        "caption",
        "What describes the pictures: their captions, or ready sentences with the new word, for an object (a photo of "
        "...) or a style (a painting in the style of ...).",
        label="Captions or ready sentences",
        choices=("caption", "object template", "style template"),
    )


_PREPARED = Given("train_dir")


@section("Form", target="gui")
class FinetunePageOptions(PageOptions):
    """The same for fine-tuning, whose pictures are listed in a metadata file that can be made first."""

    train_dir: str | None = option(
        None,
        "Folder for the metadata files. The list of pictures with captions and training sizes is made there before "
        "the training starts. Leave it empty to give a metadata file of your own.",
        label="Folder for metadata",
        kind="folder",
        basic=True,
        place="Folders",
    )
    create_caption: bool = option(
        True,
        "Collect the caption files beside the pictures into the metadata file before the training.",
        label="Collect captions first",
        aliases=("generate_caption_database",),
        when=_PREPARED,
        place="Folders",
    )
    create_buckets: bool = option(
        True,
        "Choose every picture's training size and encode the pictures before the training.",
        label="Choose sizes and encode first",
        aliases=("generate_image_buckets",),
        when=_PREPARED,
        place="Folders",
    )
    use_latent_files: bool = option(
        True,
        "Train with the list that also holds the sizes and belongs to the encoded pictures, instead of the one with "
        "captions only.",
        label="Train with the chosen sizes",
        when=_PREPARED,
        place="Folders",
    )
    caption_metadata_filename: str = option(
        "meta_cap.json",
        "Name of the list with captions, in the folder for metadata.",
        label="File of captions",
        when=_PREPARED,
        place="Folders",
    )
    latent_metadata_filename: str = option(
        "meta_lat.json",
        "Name of the list with captions and training sizes, in the folder for metadata.",
        label="File of captions and sizes",
        when=_PREPARED,
        place="Folders",
    )
    full_path: bool = option(
        True,
        "Name the pictures in the lists by their whole path, so that names may occur twice. Off, the lists still fit "
        "after the folder was moved.",
        label="Whole paths in the lists",
        when=_PREPARED,
        place="Folders",
    )
    batch_size: int = option(
        1,
        "Pictures encoded at once in this preparation. Raise it to go faster where memory allows.",
        label="Pictures encoded at once first",
        minimum=1,
        step=1,
        unit="pictures",
        when=All(_PREPARED, Is("create_buckets", True)),
        place="Folders",
    )
