"""Fields that only the page has, and what its forms mean for the scripts of LoRA and model tools."""

import re
from typing import Any

from kohya_gui import weights
from kohya_gui.tools_record import Values
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import Given, Is, option, section

SLOTS = ("a", "b", "c", "d")
AUTO = "auto"
KINDS = (AUTO, "sd1", "sd2", "sdxl")
_KIND_LABELS = ("as the files say", "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL")
_KIND_HELP = "Which kind of Stable Diffusion the files are for. Only a .ckpt file does not tell it by itself."
_KIND = "Kind of model"


@section("Kind of model", target="gui")
class KindPage:
    """Which kind of model the files are for."""

    model_family: str = option(AUTO, _KIND_HELP, label=_KIND, choices=KINDS, choice_labels=_KIND_LABELS)


_STRENGTH = "Its strength: 1 is as trained, 0.5 half of it, less than 0 the opposite."


@section("Merge LoRA", target="gui")
class MergePage(KindPage):
    """Up to four networks, each with its strength."""

    lora_a_model: str | None = option(None, "The first LoRA.", label="LoRA model A", kind="weights")
    lora_b_model: str | None = option(None, "The second LoRA.", label="LoRA model B", kind="weights")
    lora_c_model: str | None = option(None, "The third LoRA.", label="LoRA model C", kind="weights")
    lora_d_model: str | None = option(None, "The fourth LoRA.", label="LoRA model D", kind="weights")
    ratio_a: float = option(0.0, _STRENGTH, label="Merge ratio of model A", minimum=-4, maximum=4, step=0.01)
    ratio_b: float = option(0.0, _STRENGTH, label="Merge ratio of model B", minimum=-4, maximum=4, step=0.01)
    ratio_c: float = option(0.0, _STRENGTH, label="Merge ratio of model C", minimum=-4, maximum=4, step=0.01)
    ratio_d: float = option(0.0, _STRENGTH, label="Merge ratio of model D", minimum=-4, maximum=4, step=0.01)


_SHARE = "Its share among all that are given: the shares are divided by their sum."


@section("Merge LoRA by SVD", target="gui")
class SvdMergePage:
    """Up to four networks, each with its share."""

    lora_a_model: str | None = option(None, "The first LoRA.", label="LoRA model A", kind="weights")
    lora_b_model: str | None = option(None, "The second LoRA.", label="LoRA model B", kind="weights")
    lora_c_model: str | None = option(None, "The third LoRA.", label="LoRA model C", kind="weights")
    lora_d_model: str | None = option(None, "The fourth LoRA.", label="LoRA model D", kind="weights")
    ratio_a: float = option(0.25, _SHARE, label="Merge ratio of model A", minimum=0, maximum=1, step=0.01)
    ratio_b: float = option(0.25, _SHARE, label="Merge ratio of model B", minimum=0, maximum=1, step=0.01)
    ratio_c: float = option(0.25, _SHARE, label="Merge ratio of model C", minimum=0, maximum=1, step=0.01)
    ratio_d: float = option(0.25, _SHARE, label="Merge ratio of model D", minimum=0, maximum=1, step=0.01)


@section("Merge models", target="gui")
class MergeModelsPage:
    """Up to four models, each with its share."""

    model_a: str = option(None, "The first model.", label="Model A", kind="model")
    model_b: str = option(None, "The second model.", label="Model B", kind="model")
    model_c: str | None = option(None, "A third model.", label="Model C", kind="model")
    model_d: str | None = option(None, "A fourth model.", label="Model D", kind="model")
    ratio_a: float = option(
        0.5, "Share of A in the mix; all shares together are usually 1.", label="Share of A", step=0.01
    )
    ratio_b: float = option(
        0.5, "Share of B in the mix; all shares together are usually 1.", label="Share of B", step=0.01
    )
    ratio_c: float = option(
        0.0, "Share of C in the mix; all shares together are usually 1.", label="Share of C", step=0.01
    )
    ratio_d: float = option(
        0.0, "Share of D in the mix; all shares together are usually 1.", label="Share of D", step=0.01
    )


@section("Convert to LCM", target="gui")
class LcmPage:
    """Which kind of model becomes an LCM."""

    model_type: str = option(
        "SD15", "Which kind of model it is; the weights that make it fast are fetched for this kind.",
        label="Model type", choices=("SD15", "SDXL", "SSD-1B"),
        choice_labels=("Stable Diffusion 1.5", "Stable Diffusion XL", "SSD-1B"),
    )  # fmt: skip


SD1_SOURCES = ("runwayml/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4")
SD2_SOURCES = (
    "stabilityai/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2",
)  # fmt: skip
FOLDER_KINDS = ("diffuser", "diffuser_safetensors")


@section("Convert model", target="gui")
class ConvertPage:
    """Where the converted model goes, and as what."""

    source_model_type: str | None = option(
        None, "Which kind of model it is, where its header does not tell, and whose scheduler and tokenizer a folder "
        "gets.", label="Source model type", choices=(*SD2_SOURCES, *SD1_SOURCES),
    )  # fmt: skip
    target_model_folder_input: str = option(
        None, "Folder for the new model; it must be there.", label="Target model folder", kind="folder"
    )
    target_model_name_input: str = option(
        None, "Name of the new file or folder, without an ending.", label="Target model name"
    )
    target_model_type: str = option(
        "safetensors", "One file as most programs read it, or a folder for diffusers.", label="Target model type",
        choices=("diffuser", "diffuser_safetensors", "ckpt", "safetensors"),
        choice_labels=("diffusers folder (.bin)", "diffusers folder (.safetensors)", ".ckpt file", ".safetensors file"),
    )  # fmt: skip
    target_save_precision_type: str = option(
        "unspecified", "Number format of the saved weights.", label="Target model precision",
        choices=("unspecified", "fp16", "bf16", "float"), choice_labels=("as it is", "fp16", "bf16", "float"),
    )  # fmt: skip


@section("Metadata", target="gui")
class MetadataPage:
    """The notes that people write most; what is left empty stays as it is in the file."""

    title: str | None = option(None, "Name that programs show for it.", label="Title")
    author: str | None = option(None, "Who made it.", label="Author")
    description: str | None = option(None, "What it is and what it was made from.", label="Description", kind="long")
    usage_hint: str | None = option(None, "How to use it: strength, sampler, size.", label="How to use it")
    trigger_phrase: str | None = option(None, "Words that call up what was learned.", label="Trigger phrase")
    tags: str | None = option(None, "Words by which it is found, with commas between.", label="Tags")
    license: str | None = option(None, "What others may do with it.", label="Licence")
    more: str | None = option(
        None, "Further notes, each on a line of its own as name=text.", label="Other notes", kind="long"
    )
    without: str | None = option(
        None, "Names of notes to take out, with commas or blanks between.", label="Notes to remove"
    )


# a command line takes no more at once on every system
MOST_NOTE = 20_000
NOTES = ("title", "author", "description", "usage_hint", "trigger_phrase", "tags", "license")
FOR_SDXL = Is("sdxl", True)
DYNAMIC = Given("dynamic_method")


# ---------------------------------------------------------------- from the form to the script


def slots(values: Values, of: str) -> list[tuple[str, str, float]]:
    """The slots that are filled: letter, path, number beside it.

    Args:
        values: the form's.
        of: the name of the options with {} for the letter.
    """
    filled = ((slot, values.get(of.format(slot)), values.get(f"ratio_{slot}")) for slot in SLOTS)
    return [(slot, str(path), float(ratio or 0)) for slot, path, ratio in filled if path]


def _listed(values: Values, of: str) -> dict[str, Any]:
    given = slots(values, of)
    if not given:
        raise UserError("No file to merge was chosen.", of.format("a"), "Choose at least one.")
    return {"models": [path for _, path, _ in given], "ratios": [ratio for _, _, ratio in given]}


def family_of(values: Values, keys: tuple[str, ...]) -> str:
    """The kind of model that the form means: as chosen, else as the first file says that tells; "" if none does."""
    chosen = str(values.get("model_family") or AUTO)
    if chosen != AUTO:
        return chosen
    told = (weights.weights(str(values[key])).family for key in keys if values.get(key))
    return next((family for family in told if family), "")


MERGED = ("sd_model", "lora_a_model", "lora_b_model", "lora_c_model", "lora_d_model")


def merge_options(values: Values) -> dict[str, Any]:
    """Networks and strengths; version 2 is said only where the form does."""
    return {**_listed(values, "lora_{}_model"), "v2": values.get("model_family") == "sd2" or None}


def merge_script(values: Values) -> str:
    """The script for the kind of model."""
    sdxl = family_of(values, MERGED) == "sdxl"
    return f"sd_scripts/networks/{'sdxl_merge_lora' if sdxl else 'merge_lora'}.py"


def svd_options(values: Values) -> dict[str, Any]:
    """Networks and shares; together the shares are 1."""
    made = _listed(values, "lora_{}_model")
    total = sum(made["ratios"])
    if not total:
        raise UserError("All shares are 0.", "ratio_a", "Give one of them more.")
    return made | {"ratios": [round(ratio / total, 6) for ratio in made["ratios"]]}


def models_options(values: Values) -> dict[str, Any]:
    """Models and shares."""
    return _listed(values, "model_{}")


def switches(v2: str, sdxl: str) -> Any:
    """What makes the two switches of a script of the one choice on the page; "auto" leaves it to the script."""

    def make(values: Values) -> dict[str, Any]:
        chosen = values.get("model_family")
        return {v2: chosen == "sd2" or None, sdxl: chosen == "sdxl" or None}

    return make


def extract_options(values: Values) -> dict[str, Any]:
    """The switches for the kind of model; a rank of 0 leaves the convolutions out."""
    return {**switches("v2", "sdxl")(values), "conv_dim": values.get("conv_dim") or None}


def only_v2(values: Values) -> dict[str, Any]:
    """The switch for version 2, where the form says it."""
    return {"v2": values.get("model_family") == "sd2" or None}


def lcm_options(values: Values) -> dict[str, Any]:
    """The switches for the kind of model."""
    kind = values["model_type"]
    return {"sdxl": kind == "SDXL" or None, "ssd_1b": kind == "SSD-1B" or None}


def converted(values: Values) -> str:
    """The file or folder that a conversion writes."""
    kind, name = str(values["target_model_type"]), str(values.get("target_model_name_input") or "").strip()
    if not name or name in (".", "..") or set(name) & set("/\\:\0") or name.startswith("."):
        raise UserError(f"{name!r} is no name for a model.", "target_model_name_input", "Give a plain name.")
    ending = "" if kind in FOLDER_KINDS else f".{kind}"
    folder = str(values.get("target_model_folder_input") or "").rstrip("/\\")
    if not folder:
        raise UserError("The target model folder is missing.", "target_model_folder_input", "Choose a folder.")
    return f"{folder}/{name.removesuffix(ending) if ending else name}{ending}"


def convert_options(values: Values) -> dict[str, Any]:
    """Source, target and flags."""
    kind, source, precision = (
        values[key] for key in ("target_model_type", "source_model_type", "target_save_precision_type")
    )
    return {
        "model_to_save": converted(values),
        "use_safetensors": kind == "diffuser_safetensors" or None,
        "v1": source in SD1_SOURCES or None,
        "v2": source in SD2_SOURCES or None,
        "reference_model": source if source and kind in FOLDER_KINDS else None,
        "save_precision_as": precision if precision != "unspecified" else None,
    }


def changed_notes(values: Values) -> tuple[dict[str, str], list[str]]:
    """The notes that a form sets, and those that it takes out.

    Raises:
        UserError: a line of further notes is none.
    """
    made = {f"modelspec.{name}": str(values[name]) for name in NOTES if values.get(name)}
    for line in str(values.get("more") or "").splitlines():
        name, sign, text = line.partition("=")
        if not line.strip():
            continue
        if not sign or not name.strip() or name.strip().startswith("-"):
            raise UserError(f"{line[:60]!r} is no note.", "more", "Write name=text, one on each line.")
        made[name.strip()] = text.strip()
    for name, text in made.items():
        if len(text) > MOST_NOTE:
            field = name.removeprefix("modelspec.")
            raise UserError(
                f"{name} is longer than {MOST_NOTE:,} characters.",
                field if values.get(field) == text else "more",
                "Shorten it, or give the script a file with --json.",
            )
    gone = [name for name in re.split(r"[,\s]+", str(values.get("without") or "")) if name]
    both = sorted(set(made) & set(gone))
    if both:
        raise UserError(f"{both[0]} is to be set and removed.", "without", "Choose one of both.")
    return made, gone


def metadata_options(values: Values) -> dict[str, Any]:
    """Notes to set and to take out; without another name the file itself is changed."""
    made, gone = changed_notes(values)
    same = not values.get("save_to")
    return {
        "set": [f"{name}={text}" for name, text in made.items()] or None,
        "remove": gone or None,
        "overwrite": same or values.get("overwrite") or None,
    }
