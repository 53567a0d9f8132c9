"""Options of the scripts that merge networks into models and into one another; the rules are those of tools.py."""

from .option import option, section
from .tools import OVERWRITE

_FORMATS = ("float", "fp16", "bf16")
_V2 = "The model is Stable Diffusion 2.x. Seen in the files themselves; a contradiction is reported."
_SAVE = "Number format of the saved weights; that of --precision if not given."
_PRECISION = "Number format of the result. It is computed in 32 bits and rounded once."
_MODEL = "Model to merge into: a file or a diffusers folder. Without it the networks are merged into one LoRA."
_TARGET = "File to write: .safetensors, .ckpt or .pt; for a diffusers folder as model, a folder."
_MODELS = "The networks to merge: LoRA, LyCORIS or OFT files."
_RATIOS = "Strength of each network, any number; 1 is as trained."
_CONCAT = "Put the networks side by side: exactly their sum, of all ranks together. Else as near as one rank can be."
_SHUFFLE = "Put the ranks of every module into a random order, which changes nothing in the effect."
_SEED = "Seed of that order."
_BARE = "Write no title, architecture and date of the modelspec standard into the file."
_LEGACY = "Compute as sd-scripts did: factors are added, a ratio counts squared, and --concat keeps one alpha for all."
_LBWS = "Strength by block for each network: a list of 12, 17, 20 or 26 numbers, as [1,0,0.5,...]."


@section("Merge LoRA")
class MergeLoraOptions:
    """Merge networks (LoRA, LyCORIS, OFT) into a Stable Diffusion model, or several LoRA files into one."""

    v2: bool = option(False, _V2)
    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    precision: str = option("float", _PRECISION, choices=_FORMATS)
    sd_model: str | None = option(None, _MODEL, kind="model")
    save_to: str | None = option(None, _TARGET)
    models: list[str] | None = option(None, _MODELS, kind="file", nargs="*")
    ratios: list[float] | None = option(None, _RATIOS, nargs="*")
    lbws: list[str] | None = option(None, _LBWS, nargs="*")
    no_metadata: bool = option(False, _BARE)
    concat: bool = option(False, _CONCAT)
    shuffle: bool = option(False, _SHUFFLE)
    seed: int = option(0, _SEED, minimum=0)
    legacy: bool = option(False, _LEGACY)
    overwrite: bool = option(False, OVERWRITE)


@section("Merge SDXL LoRA")
class SdxlMergeLoraOptions:
    """Merge networks (LoRA, LyCORIS, OFT) into a Stable Diffusion XL model, or several LoRA files into one."""

    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    precision: str = option("float", _PRECISION, choices=_FORMATS)
    sd_model: str | None = option(None, _MODEL, kind="model")
    save_to: str | None = option(None, _TARGET)
    models: list[str] | None = option(None, _MODELS, kind="file", nargs="*")
    ratios: list[float] | None = option(None, _RATIOS, nargs="*")
    lbws: list[str] | None = option(None, _LBWS, nargs="*")
    no_metadata: bool = option(False, _BARE)
    concat: bool = option(False, _CONCAT)
    shuffle: bool = option(False, _SHUFFLE)
    seed: int = option(0, _SEED, minimum=0)
    legacy: bool = option(False, _LEGACY)
    overwrite: bool = option(False, OVERWRITE)


@section("Merge LoRA, old form")
class MergeLoraOldOptions:
    """Merge networks into a model or into one another: what merge_lora.py does, with fewer settings."""

    v2: bool = option(False, _V2)
    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    precision: str = option("float", _PRECISION, choices=_FORMATS)
    sd_model: str | None = option(None, _MODEL, kind="model")
    save_to: str | None = option(None, _TARGET)
    models: list[str] | None = option(None, _MODELS, kind="file", nargs="*")
    ratios: list[float] | None = option(None, _RATIOS, nargs="*")
    overwrite: bool = option(False, OVERWRITE)


@section("Merge LoRA by SVD")
class SvdMergeLoraOptions:
    """Merge networks of any ranks into one LoRA of a given rank, as near to their sum as that rank can be."""

    save_precision: str | None = option(None, _SAVE, choices=_FORMATS)
    precision: str = option("float", _PRECISION, choices=_FORMATS)
    save_to: str | None = option(None, "File to write: .safetensors, .ckpt or .pt.")
    models: list[str] | None = option(
        None, "The networks to merge: LoRA, LoHa, LoKr or full files.", kind="file", nargs="*"
    )
    ratios: list[float] | None = option(None, _RATIOS, nargs="*")
    lbws: list[str] | None = option(None, _LBWS, nargs="*")
    new_rank: int = option(4, "Rank of the new LoRA.", minimum=1)
    new_conv_rank: int | None = option(None, "Rank for 3x3 convolutions; as the others if not given.", minimum=1)
    device: str | None = option(None, "Where to compute, such as cpu or cuda.")
    no_metadata: bool = option(False, _BARE)
    exact: bool = option(
        False, "Decompose LoHa, LoKr and full networks exactly, not fast within 2 % of the least error."
    )
    legacy: bool = option(
        False, "Cut off the largest hundredth of the values, as sd-scripts did. It changes the effect."
    )
    overwrite: bool = option(False, OVERWRITE)


@section("Merge LyCORIS")
class MergeLycorisOptions:
    """Merge a network (LyCORIS, LoRA, OFT) into a Stable Diffusion model."""

    base_model: str = option(None, "Model to merge into: a file or a diffusers folder.", kind="model", flag=False)
    lycoris_model: str = option(None, "The network.", kind="file", flag=False)
    output_name: str = option(None, _TARGET, flag=False)
    is_v2: bool = option(False, _V2)
    is_sdxl: bool = option(False, "The model is Stable Diffusion XL. Seen in the files; a contradiction is reported.")
    device: str = option("cpu", "Where to compute, such as cpu or cuda.")
    dtype: str = option(
        "float",
        "Number format of the saved weights.",
        choices=("float", "float16", "float32", "float64", "bfloat", "bfloat16"),
        custom=True,
    )
    weight: float = option(1.0, "Strength of the network, any number; 1 is as trained.")
    overwrite: bool = option(False, OVERWRITE)
