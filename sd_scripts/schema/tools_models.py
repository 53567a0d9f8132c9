"""Options of the scripts that work on whole model files; rules as in `tools.py`."""

from .option import option, section
from .tools import OVERWRITE


@section("Convert models")
class ConvertModelOptions:
    """Convert a Stable Diffusion model between one file in the original layout and a diffusers folder."""

    v1: bool = option(False, "The model is Stable Diffusion 1.x. Seen in the file itself; a contradiction is reported.")
    v2: bool = option(False, "The model is Stable Diffusion 2.x. Seen in the file itself; a contradiction is reported.")
    unet_use_linear_projection: bool = option(
        False, "Note in a diffusers folder of version 2 that the U-Net has linear projections. It always is noted."
    )
    fp16: bool = option(False, "Save in 16-bit floats, as --save_precision_as fp16.")
    bf16: bool = option(False, "Save in bfloat16, as --save_precision_as bf16.")
    float: bool = option(False, "Save in 32-bit floats, as --save_precision_as float.")
    save_precision_as: str = option(
        "no", "Number format of the saved weights; as they are if not given.", choices=("fp16", "bf16", "float")
    )
    epoch: int = option(0, "Epoch to note in a .ckpt file.", minimum=0)
    global_step: int = option(0, "Step to note in a .ckpt file.", minimum=0)
    metadata: str | None = option(None, 'Notes for a .safetensors file, as an object: {"key": "value"}.')
    variant: str | None = option(None, "Which weights of a folder or hub model to read, such as fp16.")
    reference_model: str | None = option(
        None, "Folder or hub name whose scheduler and tokenizer go into a diffusers folder instead of the usual ones."
    )
    use_safetensors: bool = option(False, "Save a diffusers folder as .safetensors instead of .bin.")
    model_to_load: str = option(None, "File, diffusers folder or hub name.", kind="model", flag=False)
    model_to_save: str = option(
        None, "What to write: a .safetensors or .ckpt file, or without an ending a diffusers folder.", flag=False
    )
    overwrite: bool = option(False, OVERWRITE)


@section("Merge models")
class MergeModelsOptions:
    """Mix models of one kind into one: the weighted sum of their weights."""

    models: list[str] | None = option(None, "The models: files, or diffusers folders.", kind="file", nargs="+")
    output: str | None = option(None, "File to write: .safetensors or .ckpt.", kind="file")
    ratios: list[float] | None = option(None, "Weight of each model; equal shares if not given.", nargs="+")
    unet_only: bool = option(False, "Mix the U-Nets only; the rest is that of the first model.")
    device: str = option("cpu", "Where to compute, such as cpu or cuda.")
    precision: str = option("float", "Number format to compute in.", choices=("float", "fp16", "bf16"))
    saving_precision: str = option("float", "Number format of the saved weights.", choices=("float", "fp16", "bf16"))
    show_skipped: bool = option(False, "Name the weights that not every model has, or that are left out.")
    overwrite: bool = option(False, OVERWRITE)


@section("Prune model")
class PruneModelOptions:
    """Leave out of a model file what only its maker's training needed: averaged copies, the state of the optimizer."""

    model_prune: str = option(None, "The model file.", kind="file", flag=False, label="Model")
    prune_output: str = option(None, "File to write: .safetensors or .ckpt.", flag=False, label="Save to")
    half: bool = option(False, "Save the weights as 16-bit floats (fp16).", label="Half precision")
    overwrite: bool = option(False, OVERWRITE)


@section("Convert to LCM")
class LcmConvertOptions:
    """Add an LCM LoRA to a model, so that it makes pictures in 4 to 8 steps."""

    name: str = option(
        None, "File to write: .safetensors or .ckpt; .safetensors is added.", label="Name of the new LCM model"
    )
    model: str = option(
        None, "The model: a file, or a diffusers folder.", kind="model", label="Model to convert to LCM"
    )
    lora_scale: float = option(
        1.0,
        "How strongly the LoRA is added.",
        minimum=0,
        maximum=2,
        step=0.1,
        aliases=("lora-scale",),
        label="Strength of the LCM",
    )
    sdxl: bool = option(
        False, "The model is Stable Diffusion XL. Seen in the model itself; a contradiction is reported."
    )
    ssd_1b: bool = option(
        False, "The model is SSD-1B, the smaller Stable Diffusion XL.", aliases=("ssd-1b",), label="SSD-1B"
    )
    lcm_lora: str | None = option(
        None,
        "LCM LoRA to add: a file, a folder with one, or a hub name. The one made for the kind of model if not given.",
        kind="file",
        label="LCM LoRA",
    )
    overwrite: bool = option(False, OVERWRITE)
