"""Options of the scripts that take networks out of models and make them smaller; the rules are those of tools.py."""

from .option import Is, option, section
from .tools import OVERWRITE

_FORMATS = ("float", "fp16", "bf16")
_MODES = ("fixed", "full", "threshold", "ratio", "quantile")
_DYNAMIC = ("sv_ratio", "sv_fro", "sv_cumulative")
_V2 = "The models are Stable Diffusion 2.x. Seen in the files themselves; a contradiction is reported."
_SDXL = "The models are Stable Diffusion XL. Seen in the files themselves; a contradiction is reported."
_DEVICE = "Where to compute, such as cpu or cuda."
_TARGET = "File to write: .safetensors, .ckpt or .pt."
_SAVE = "Number format of the saved weights; float if not given."
_LOAD_TO = "Where the weights of this model are put before they are subtracted; cpu if not given."
_EXACT = "Decompose every matrix exactly. Without it the error is at most 2 % above the least possible, much faster."


@section("Extract LoRA")
class ExtractLoraOptions:
    """Take a LoRA out of a tuned model: what its layers add to those of the original model, cut to a rank."""

    v2: bool = option(False, _V2, label="v2")
    v_parameterization: bool = option(
        False,
        "Note in the file that the models predict v. Noted for Stable Diffusion 2.x unless the model says otherwise.",
        label="v parameterization",
    )
    sdxl: bool = option(False, _SDXL, label="SDXL")
    load_precision: str | None = option(
        None,
        "Number format to round both models to before they are compared; as stored if not given.",
        choices=_FORMATS,
    )
    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    model_org: str = option(
        None, "The original model: a file or a diffusers folder.", label="Stable Diffusion base model", kind="model"
    )
    model_tuned: str = option(
        None, "The tuned model: a file or a diffusers folder.", label="Finetuned model", kind="model"
    )
    save_to: str = option(None, _TARGET)
    dim: int = option(4, "Rank of linear layers and 1x1 convolutions.", label="Network Dimension (Rank)", minimum=1)
    conv_dim: int | None = option(
        None,
        "Rank of 3x3 convolutions. Without it they are left out, and with them all of the residual blocks.",
        label="Conv Dimension (Rank)",
        minimum=1,
    )
    device: str | None = option(None, _DEVICE)
    clamp_quantile: float = option(
        0.99,
        "Cut off the largest values of each layer's factors beyond this share of all. 1 cuts nothing and is nearest.",
        minimum=0.5,
        maximum=1,
    )
    min_diff: float = option(
        0.01,
        "Leave the text encoder out if none of its weights differs by more than this.",
        label="Minimum difference",
        minimum=0,
    )
    no_metadata: bool = option(False, "Write no title, architecture and date of the modelspec standard into the file.")
    load_original_model_to: str | None = option(None, _LOAD_TO, label="Load Stable Diffusion base model to")
    load_tuned_model_to: str | None = option(None, _LOAD_TO, label="Load finetuned model to")
    exact: bool = option(False, _EXACT)
    legacy: bool = option(
        False,
        "Cut factors as sd-scripts did, by the signs of the decomposition, and 3x3 convolutions at most to the rank "
        "of their input channels.",
    )
    overwrite: bool = option(False, OVERWRITE)


@section("Extract LoRA from DyLoRA")
class ExtractDyloraOptions:
    """Split a DyLoRA file into LoRA files of all its ranks."""

    unit: int | None = option(
        None, "Step between the ranks, as in training.", label="Network Dimension (Rank)", minimum=1
    )
    save_to: str | None = option(None, "Name of the files to write; the rank is put before the ending.")
    model: str | None = option(None, "The DyLoRA file.", label="DyLoRA model", kind="file")
    legacy: bool = option(False, "Leave out the file of the full rank, as sd-scripts did.")
    overwrite: bool = option(False, OVERWRITE)


@section("Resize LoRA")
class ToolResizeLoraOptions:
    """Make a LoRA smaller: every layer's change, cut to a rank."""

    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    new_rank: int = option(
        4, "Rank of the new LoRA; the highest rank with a dynamic method.", label="Desired LoRA rank", minimum=1
    )
    save_to: str | None = option(None, _TARGET)
    model: str | None = option(None, "The LoRA file.", label="Source LoRA", kind="file")
    device: str | None = option(None, _DEVICE)
    verbose: bool = option(False, "Say for every layer what is kept.")
    dynamic_method: str | None = option(
        None,
        "Choose each layer's rank by its singular values: by ratio, by norm or by sum.",
        choices=_DYNAMIC,
        choice_labels=(
            "sv_ratio: the largest at most so many times the smallest",
            "sv_fro: a share of the norm",
            "sv_cumulative: a share of the sum",
        ),
    )
    dynamic_param: float | None = option(
        None,
        "Number for the dynamic method: 2 or more for sv_ratio, between 0 and 1 for the others.",
        label="Dynamic parameter",
        minimum=0,
    )
    legacy: bool = option(False, "Keep one rank more than the dynamic method asks for, as sd-scripts did.")
    overwrite: bool = option(False, OVERWRITE)


@section("Resize LoRA")
class ResizeLoraOptions(ToolResizeLoraOptions):
    """Make a LoRA smaller: every layer's change, cut to a rank."""

    new_conv_rank: int | None = option(
        None,
        "Rank of convolutions, 1x1 ones, too; as the others if not given.",
        label="Desired rank of convolutions",
        minimum=1,
    )


@section("Extract LyCORIS LoCon")
class ExtractLoconOptions:
    """Take a LyCORIS file out of a tuned model: low-rank changes of all layers, or the whole changes."""

    base_model: str = option(
        None,
        "The original model: a file or a diffusers folder.",
        label="Stable Diffusion base model",
        kind="model",
        flag=False,
    )
    db_model: str = option(
        None, "The tuned model: a file or a diffusers folder.", label="Finetuned model", kind="model", flag=False
    )
    output_name: str = option(
        None, "File to write: .safetensors or .pt; the ending may be missing.", label="Save to", flag=False
    )
    is_v2: bool = option(False, _V2, label="is v2")
    is_sdxl: bool = option(False, _SDXL, label="is SDXL")
    device: str = option("cpu", _DEVICE)
    mode: str = option(
        "fixed",
        "How much of each layer to keep: a fixed rank, everything, or by its singular values.",
        choices=_MODES,
        choice_labels=(
            "fixed: a rank for all",
            "full: whole changes, of norms and biases, too",
            "threshold: singular values above a number",
            "ratio: singular values above a share of the largest",
            "quantile: a share of the sum of all",
        ),
    )
    safetensors: bool = option(False, "Write .safetensors, also if the name has no ending.")
    linear_dim: int = option(
        1, "Rank of linear layers, in mode fixed.", label="Network Dimension", minimum=1, when=Is("mode", "fixed")
    )
    conv_dim: int = option(
        1, "Rank of 3x3 convolutions, in mode fixed.", label="Conv Dimension", minimum=1, when=Is("mode", "fixed")
    )
    linear_threshold: float = option(
        0.0, "Linear layers keep singular values above this.", minimum=0, when=Is("mode", "threshold")
    )
    conv_threshold: float = option(
        0.0, "3x3 convolutions keep singular values above this.", minimum=0, when=Is("mode", "threshold")
    )
    linear_ratio: float = option(
        0.0,
        "Linear layers keep singular values above this share of the largest.",
        minimum=0,
        maximum=1,
        when=Is("mode", "ratio"),
    )
    conv_ratio: float = option(
        0.0,
        "3x3 convolutions keep singular values above this share of the largest.",
        minimum=0,
        maximum=1,
        when=Is("mode", "ratio"),
    )
    linear_quantile: float = option(
        1.0,
        "Linear layers keep singular values up to this share of their sum.",
        minimum=0,
        maximum=1,
        when=Is("mode", "quantile"),
    )
    conv_quantile: float = option(
        1.0,
        "3x3 convolutions keep singular values up to this share of their sum.",
        minimum=0,
        maximum=1,
        when=Is("mode", "quantile"),
    )
    use_sparse_bias: bool = option(
        False,
        "Also store the largest values of what the rank leaves out. Few programs read them.",
        label="Use sparse bias",
    )
    sparsity: float = option(
        0.98, "Share of those values that is left out.", minimum=0, maximum=1, when=Is("use_sparse_bias", True)
    )
    disable_cp: bool = option(
        False,
        "Store 3x3 convolutions as two factors. Without it as three (Tucker), smaller and less exact.",
        label="Disable CP decomposition",
    )
    exact: bool = option(False, _EXACT)
    overwrite: bool = option(False, OVERWRITE)
