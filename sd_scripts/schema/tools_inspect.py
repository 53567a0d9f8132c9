"""Options of the scripts that look into network files, rename what is in them, and edit their notes; the rules are
those of tools.py."""

from .option import option, section
from .tools import OVERWRITE


@section("Show metadata")
class ShowMetadataOptions:
    """Print what is noted in the header of a .safetensors file."""

    model: str = option(None, "The .safetensors file.", kind="file")


@section("Edit metadata")
class EditMetadataOptions:
    """Change the notes in a .safetensors file; the weights stay as they are, byte for byte."""

    model: str = option(None, "The .safetensors file.", kind="file", label="Model file")
    save_to: str | None = option(
        None, "File to write. Without it the file itself is replaced, which takes --overwrite.", label="Save to"
    )
    clear: bool = option(False, "Take out all notes first.", label="Remove all notes")
    json: str | None = option(
        None,
        "JSON file with an object of notes to set; null takes a note out.",
        kind="file",
        label="File with notes",
    )
    remove: list[str] | None = option(None, "Notes to take out, by name.", nargs="+", label="Remove notes")
    set: list[str] | None = option(None, "Notes to set, as name=text.", nargs="+", label="Set notes")
    thumbnail: str | None = option(
        None, "Picture that programs show for the file; made smaller and put into it.", kind="file", label="Picture"
    )
    overwrite: bool = option(False, OVERWRITE, label="Overwrite existing files")


@section("Convert LoRA")
class ConvertLoraOptions:
    """Rename what is in a LoRA file to the names that other programs use; the weights stay as they are."""

    model: str = option(None, "The LoRA or LyCORIS file, or a folder that PEFT saved.", kind="file", label="LoRA file")
    save_to: str = option(None, "File to write, .safetensors. For PEFT also a folder.", label="Save to")
    to: str = option(
        "kohya",
        "Names to use: those of kohya's trainers, the same with diffusers' names of SDXL's blocks, or those of PEFT.",
        choices=("kohya", "kohya_diffusers", "peft", "diffusers"),
        choice_labels=(
            "kohya (for most programs)",
            "kohya with diffusers' names of blocks (SDXL)",
            "PEFT (today's diffusers)",
            "diffusers before PEFT",
        ),
        label="Names",
    )
    family: str = option(
        "auto",
        "Base model the LoRA is for. Seen in the file itself nearly always.",
        choices=("auto", "sd1", "sd2", "sdxl"),
        choice_labels=("as the file tells", "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"),
        label="Base model",
    )
    save_precision: str | None = option(
        None,
        "Number format of the saved weights; as they are if not given.",
        choices=("float", "fp16", "bf16"),
        label="Save precision",
    )
    overwrite: bool = option(False, OVERWRITE, label="Overwrite existing files")


@section("Verify LoRA")
class CheckLoraOptions:
    """Print how large the weights of a network file are, tensor by tensor, and look for what is wrong with them."""

    file: str = option(None, "The LoRA or LyCORIS file.", kind="file", label="LoRA file", flag=False)
    show_all_keys: bool = option(
        False, "Print the other tensors, too, such as alpha.", label="Show all tensors", aliases=("s",)
    )
    json: str | None = option(
        None, "File for a table of modules and blocks with their ranks and norms, as JSON.", label="File for the table"
    )
    overwrite: bool = option(False, OVERWRITE, label="Overwrite existing files")


@section("Interrogate LoRA")
class InterrogateLoraOptions:
    """List the words that a LoRA changes most in the text encoder: they may be what it was trained on."""

    v2: bool = option(
        False, "The model is Stable Diffusion 2.x. Seen in the files themselves; a contradiction is reported."
    )
    sd_model: str | None = option(None, "Base model: a file or a diffusers folder.", kind="model", label="Base model")
    model: str | None = option(None, "The LoRA file.", kind="file", label="LoRA file")
    batch_size: int = option(16, "Words in one pass of the text encoder.", minimum=1, label="Batch size")
    clip_skip: int | None = option(
        None, "Compare this layer of the text encoder, counted from the last one.", minimum=1, label="Clip skip"
    )
    words: list[str] | None = option(
        None, "Only compare these words instead of all, which takes seconds.", nargs="+", label="Words"
    )
