"""The records of the tools that work on whole models, and on the notes in files."""

from kohya_gui import tools_fields as fields
from kohya_gui.phrases import phrase
from kohya_gui.tools_record import Shelf, Tool
from sd_scripts.schema.tools_inspect import EditMetadataOptions
from sd_scripts.schema.tools_models import (
    ConvertModelOptions,
    LcmConvertOptions,
    MergeModelsOptions,
    PruneModelOptions,
)

_TARGET = {"kind": "target", "label": "Save to", "optional": False, "default": None}
_FILES = (".safetensors", ".ckpt")
_MODELS = ("model_a", "model_b", "model_c", "model_d")

TOOLS: tuple[Tool, ...] = (
    Tool(
        "convert_model",
        "Convert model",
        "Turn a diffusers folder into one file or back, .ckpt into .safetensors, or change the number format.",
        "sd_scripts/tools/convert_diffusers20_original_sd.py",
        ConvertModelOptions,
        ("model_to_load", "source_model_type", "target_model_folder_input", "target_model_name_input",
         "target_model_type", "target_save_precision_type", "unet_use_linear_projection", "overwrite"),
        "target_model_folder_input",
        "Convert model",
        changes={
            "model_to_load": {"label": "Source model"},
            "unet_use_linear_projection": {"label": "UNet linear projection"},
        },
        wide=("target_model_folder_input",),
        page=fields.ConvertPage,
        into=fields.convert_options,
        seen=("model_to_load",),
    ),
    Tool(
        "merge_models",
        "Merge models",
        "Mix up to four models of one kind into one: the weighted sum of their weights.",
        "sd_scripts/tools/merge_models.py",
        MergeModelsOptions,
        ("model_a", "ratio_a", "model_b", "ratio_b", "model_c", "ratio_c", "model_d", "ratio_d", "output", "precision",
         "saving_precision", "device", "unet_only", "show_skipped", "overwrite"),
        "output",
        "Merge models",
        start={"saving_precision": "fp16"},
        changes={
            "output": _TARGET,
            "precision": {"label": "Merge precision"},
            "saving_precision": {"label": "Save precision"},
            "device": {"choices": ("cpu", "cuda"), "custom": True},
        },
        wide=("output",),
        page=fields.MergeModelsPage,
        into=fields.models_options,
        endings={"output": _FILES},
        models=_MODELS,
        seen=_MODELS,
    ),
    Tool(
        "prune_model",
        "Prune model",
        "Leave out of a model file what only further training by its maker would need.",
        "sd_scripts/tools/prune.py",
        PruneModelOptions,
        ("model_prune", "prune_output", "half", "overwrite"),
        "prune_output",
        "Prune model",
        changes={"model_prune": {"kind": "weights"}, "prune_output": _TARGET},
        wide=("model_prune", "prune_output"),
        endings={"prune_output": _FILES},
        seen=("model_prune",),
    ),
    Tool(
        "lcm_convert",
        "Convert to LCM",
        "Add an LCM LoRA to a model, so that it makes pictures in 4 to 8 steps.",
        "sd_scripts/tools/lcm_convert.py",
        LcmConvertOptions,
        ("model", "name", "lora_scale", "model_type", "lcm_lora", "overwrite"),
        "name",
        "Convert to LCM",
        changes={
            "name": {**_TARGET, "label": "Name of the new LCM model"},
            "lcm_lora": {
                "kind": "weights",
                "help": "Another LCM LoRA to add. Without it the one for the kind of model is fetched once.",
            },
        },
        wide=("model", "name"),
        page=fields.LcmPage,
        into=fields.lcm_options,
        endings={"name": _FILES},
        models=("model",),
        seen=("model", "lcm_lora"),
        labels={
            "model": ("Stable Diffusion model to convert to LCM",),
            "model_type": ("SD-1B",),
        },
    ),
    Tool(
        "edit_metadata",
        "Metadata",
        "See what is noted in a .safetensors file, and change it. The weights stay as they are.",
        "sd_scripts/tools/edit_metadata.py",
        EditMetadataOptions,
        ("model", "title", "author", "description", "usage_hint", "trigger_phrase", "tags", "license", "more",
         "without", "thumbnail", "save_to", "clear", "overwrite"),
        "model",
        "Save metadata",
        changes={
            "model": {"kind": "weights"},
            "save_to": {"kind": "target", "help": "Another file to write. Without it the file itself is changed."},
        },
        wide=("model", "save_to"),
        page=fields.MetadataPage,
        into=fields.metadata_options,
        endings={"save_to": (".safetensors",)},
        seen=("model",),
        dry=phrase("Show metadata"),
    ),
)  # fmt: skip

SHELVES: tuple[Shelf, ...] = (
    Shelf("models", "Models", ("convert_model", "merge_models", "prune_model")),
    Shelf("metadata", "Metadata", ("edit_metadata",)),
)
