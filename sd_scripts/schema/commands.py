"""The commands: which family of models each one trains by which method, and which options it offers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .configs import (
    Config,
    TrainConfig,
    TrainControlNetConfig,
    TrainEmbeddingConfig,
    TrainFullConfig,
    TrainLLLiteConfig,
    TrainNetworkConfig,
    section_classes,
)
from .gui import DreamBoothPageOptions, EmbeddingPageOptions, FinetunePageOptions, PageOptions
from .launcher import LauncherOptions
from .networkargs import NetworkArgsOptions
from .option import Any_, Given, Is

__all__ = [
    "COMMANDS",
    "Command",
    "Config",
    "TrainConfig",
    "TrainControlNetConfig",
    "TrainEmbeddingConfig",
    "TrainFullConfig",
    "TrainLLLiteConfig",
    "TrainNetworkConfig",
    "section_classes",
]


@dataclass(frozen=True)
class Command:
    """A trainer: its script, the family and method it stands for, and its options.

    `without` are options of its sections that it does not offer; `changes` says for single options what differs here
    from the record (default, choices, help, ...). `form` are sections that only the page has.
    """

    name: str
    family: str
    method: str
    config: type[TrainConfig]
    title: str
    form: Mapping[str, type]
    without: frozenset[str] = frozenset()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The script, seen from the project's folder."""
        return f"sd_scripts/{self.name}.py"

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults that differ from those of the section classes."""
        return {key: change["default"] for key, change in self.changes.items() if "default" in change}

    @cached_property
    def sections(self) -> dict[str, type]:
        """Attribute on the config object -> section class, in order."""
        return section_classes(self.config)


_FORM: Mapping[str, type] = {"launcher": LauncherOptions, "gui": PageOptions}
_NETWORK_FORM: Mapping[str, type] = {**_FORM, "network_args": NetworkArgsOptions}
_DREAMBOOTH_FORM: Mapping[str, type] = {**_FORM, "gui": DreamBoothPageOptions}
_EMBEDDING_FORM: Mapping[str, type] = {**_FORM, "gui": EmbeddingPageOptions}
_FINETUNE_FORM: Mapping[str, type] = {**_FORM, "gui": FinetunePageOptions}

_MODEL_FORMATS: Mapping[str, Any] = {
    "default": None,
    "choices": ("ckpt", "safetensors", "diffusers", "diffusers_safetensors"),
    "help": "File format of the result: one file (safetensors, or ckpt for old programs) or a diffusers folder. "
    "Without a choice, a file or a folder as the base model is.",
}
_EMBEDDING_FORMATS: Mapping[str, Any] = {"default": "pt", "optional": False}
_SMALL_FORMATS: Mapping[str, Any] = {"optional": False}


def _rate(words: str) -> Mapping[str, Any]:
    text = f"How far each step moves the weights. {words}; 1 for Prodigy and DAdapt, which choose the rate themselves."
    return {"help": text}


_SDXL: Mapping[str, Mapping[str, Any]] = {
    "pretrained_model_name_or_path": {"choices": ("stabilityai/stable-diffusion-xl-base-1.0",)},
    "resolution": {"help": "Size to train at, in pixels: one number for a square, or width,height. 1024 for SDXL."},
    "bucket_reso_steps": {
        "help": "Sides of buckets are multiples of this; for SDXL it is a multiple of 32. Smaller numbers cut off less "
        "of the picture, but make more and smaller batches.",
        "step": 32,
    },
    "v2": {"help": "Stable Diffusion 2.x. This trainer is for SDXL and takes no such model."},
    "weighted_captions": {"help": "Weights in captions, as in (word:1.3). Not offered for SDXL."},
    "clip_skip": {"help": "Take the text encoder's output this many layers before the end. Leave empty for SDXL."},
}
_FULL: Mapping[str, Mapping[str, Any]] = {
    "save_model_as": _MODEL_FORMATS,
    "learning_rate": _rate("About 1e-6 to 1e-5 for a whole model"),
    "fp8_base": {"help": "Store a frozen base model in 8 bits. Without effect here, where the model itself learns."},
}
_FINETUNE: Mapping[str, Mapping[str, Any]] = {
    **_FULL,
    "train_data_dir": {
        "help": "Folder with the pictures; what is known about each of them stands in the metadata file.",
        "aliases": ("image_folder",),
    },
    "dataset_repeats": {"when": Any_(Given("in_json"), Given("train_dir"))},
    "learning_rate_te": {"when": Is("train_text_encoder", True)},
}
# recipes for these name steps; the short form shows the steps then
_BY_STEPS: Mapping[str, Mapping[str, Any]] = {
    "max_train_epochs": {"basic": False},
    "max_train_steps": {"basic": True},
}
_EMBEDDING: Mapping[str, Mapping[str, Any]] = {
    **_BY_STEPS,
    "save_model_as": _EMBEDDING_FORMATS,
    # three fields for the word come to the short form instead
    "seed": {"basic": False},
    "save_every_n_epochs": {"basic": False},
    "learning_rate": _rate("About 5e-3 for an embedding"),
}
_CONTROL: Mapping[str, Mapping[str, Any]] = {
    **_BY_STEPS,
    "save_every_n_epochs": {"basic": False},
    "save_every_n_steps": {"basic": True},
    "save_model_as": _SMALL_FORMATS,
    "train_data_dir": {"help": "Folder with the pictures, which lie in it directly, each with its caption file."},
    "conditioning_data_dir": {
        "help": "Folder with one control picture (edges, depth, a pose ...) of the same name for each picture.",
        "label": "Control pictures",
        "basic": True,
    },
}
_LLLITE_NETWORK: Mapping[str, Mapping[str, Any]] = {
    "seed": {"basic": False},
    "network_dim": {
        "when": None,
        "help": "Rank: the size of each of the small networks; 64 if empty. More can follow the control picture more "
        "closely and makes a larger file.",
    },
    "network_dropout": {"when": None},
    "network_weights": {
        "when": None,
        "label": "Go on from this LLLite",
        "help": "A ControlNet-LLLite file to go on from, instead of starting with empty networks.",
        "aliases": (),
    },
}

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            name="train_network",
            family="sd",
            method="network",
            config=TrainNetworkConfig,
            title="LoRA and its relatives for Stable Diffusion 1 and 2",
            form=_NETWORK_FORM,
            changes={"save_model_as": _SMALL_FORMATS},
        ),
        Command(
            name="sdxl_train_network",
            family="sdxl",
            method="network",
            config=TrainNetworkConfig,
            title="LoRA and its relatives for SDXL",
            form=_NETWORK_FORM,
            changes={**_SDXL, "save_model_as": _SMALL_FORMATS},
        ),
        Command(
            name="train_db",
            family="sd",
            method="full",
            config=TrainFullConfig,
            title="DreamBooth: the whole model of Stable Diffusion 1 and 2, from picture folders",
            form=_DREAMBOOTH_FORM,
            without=frozenset({"in_json", "dataset_repeats", "train_text_encoder", "diffusers_xformers"}),
            changes={**_FULL, "max_train_steps": {"basic": True}},
        ),
        Command(
            name="fine_tune",
            family="sd",
            method="full",
            config=TrainFullConfig,
            title="Fine-tuning: the whole model of Stable Diffusion 1 and 2, from a metadata file",
            form=_FINETUNE_FORM,
            without=frozenset(
                {
                    "reg_data_dir", "prior_loss_weight", "conditioning_data_dir", "stop_text_encoder_training",
                    "no_token_padding",
                }
            ),
            changes=_FINETUNE,
        ),
        Command(
            name="sdxl_train",
            family="sdxl",
            method="full",
            config=TrainFullConfig,
            title="The whole SDXL model",
            form=_FORM,
            without=frozenset({"stop_text_encoder_training", "no_token_padding"}),
            changes={**_SDXL, **_FULL},
        ),
        Command(
            name="train_textual_inversion",
            family="sd",
            method="embedding",
            config=TrainEmbeddingConfig,
            title="Textual Inversion for Stable Diffusion 1 and 2",
            form=_EMBEDDING_FORM,
            changes=_EMBEDDING,
        ),
        Command(
            name="train_textual_inversion_XTI",
            family="sd",
            method="xti",
            config=TrainEmbeddingConfig,
            title="Textual Inversion with a vector for each block (XTI) for Stable Diffusion 1 and 2",
            form=_EMBEDDING_FORM,
            changes=_EMBEDDING,
        ),
        Command(
            name="sdxl_train_textual_inversion",
            family="sdxl",
            method="embedding",
            config=TrainEmbeddingConfig,
            title="Textual Inversion for SDXL",
            form=_EMBEDDING_FORM,
            changes={**_SDXL, **_EMBEDDING},
        ),
        Command(
            name="train_controlnet",
            family="sd",
            method="controlnet",
            config=TrainControlNetConfig,
            title="ControlNet for Stable Diffusion 1 and 2",
            form=_FORM,
            changes={**_CONTROL, "learning_rate": _rate("About 1e-5 for a ControlNet")},
        ),
        Command(
            name="sdxl_train_control_net_lllite",
            family="sdxl",
            method="lllite",
            config=TrainLLLiteConfig,
            title="ControlNet-LLLite for SDXL",
            form=_FORM,
            without=frozenset(
                {
                    "network_module", "network_alpha", "network_args", "dim_from_weights", "scale_weight_norms",
                    "base_weights", "base_weights_multiplier", "network_train_unet_only",
                    "network_train_text_encoder_only",
                }
            ),
            changes={
                **_SDXL,
                **_CONTROL,
                **_LLLITE_NETWORK,
                "learning_rate": _rate("About 2e-4 for ControlNet-LLLite"),
            },
        ),
    )
}  # fmt: skip
