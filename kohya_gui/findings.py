"""What is wrong with paths, models and the machine before a run starts: each finding names its field and a way out."""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kohya_gui import machine
from kohya_gui.dataset_view import DatasetView, FolderView, Problem
from kohya_gui.paths import Roots, nearest_name
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.dataset_file import Rules, read_dataset_config
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import ModelFacts, identify

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_GONE_MODELS = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
_FAMILY_NAMES = {"sd3": "Stable Diffusion 3", "flux": "Flux"}
_NOT_A_BASE = {
    "lora": "a LoRA",
    "embedding": "an embedding",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "unet": "a U-Net alone",
}
# start of the optimizer's name -> module, package
_PACKAGES = (
    (re.compile(r"(8bit|^Paged|^bitsandbytes)", re.IGNORECASE), "bitsandbytes", "bitsandbytes"),
    (re.compile(r"^DAdapt", re.IGNORECASE), "dadaptation", "dadaptation"),
    (re.compile(r"^Prodigy$", re.IGNORECASE), "prodigyopt", "prodigyopt"),
    (re.compile(r"ScheduleFree$", re.IGNORECASE), "schedulefree", "schedulefree"),
    (re.compile(r"^Lion$", re.IGNORECASE), "lion_pytorch", "lion-pytorch"),
)


@lru_cache(maxsize=256)
def _identified(path: str, changed: int, length: int) -> ModelFacts:
    return identify(path)


def model_facts(path: str) -> ModelFacts:
    """What a model path holds, from its header; remembered until the file changes."""
    try:
        found = os.stat(path)
    except OSError:
        return identify(path)
    return _identified(path, found.st_mtime_ns, found.st_size)


def is_hub_id(text: str) -> bool:
    """Whether a model is named by its place on the Hugging Face Hub rather than by a path."""
    return bool(_HUB_ID.match(text)) and not os.path.exists(text)


def missing(path: str, what: str, key: str) -> Problem:
    """The finding for a path that is not there, with the nearest name that is."""
    near = nearest_name(Path(path))
    return Problem(
        "error", key, f"{what} {path} does not exist.", f"Did you mean {near}?" if near else "Choose another one."
    )


def outside(values: Mapping[str, Any], keys: tuple[str, ...], roots: Roots | None) -> dict[str, Problem]:
    """Paths that the page may not touch, by option. They are not looked at any further."""
    found = {}
    for key in keys:
        value = values.get(key)
        if not isinstance(value, str) or not value:
            continue
        if "\0" in value:
            found[key] = Problem("error", key, "The path holds a NUL character.", "Type it again.")
        elif roots is not None and not (key in _MODEL_KEYS and is_hub_id(value)) and not roots.allows(value):
            hint = f"Choose one inside {', '.join(str(root) for root in roots.folders)}."
            found[key] = Problem("error", key, f"{value} lies outside the folders open to the page.", hint)
    return found


def dataset_file(values: Mapping[str, Any], command: str) -> list[Problem]:
    """What is wrong in the description of data sets: file, table and key, as the trainer would say it."""
    text = values.get("dataset_config")
    if not text:
        return []
    masks = bool(values.get("masked_loss")) and COMMANDS[command].method not in ("controlnet", "lllite")
    try:
        read_dataset_config(Path(str(text)), Rules.of(command, masks))
    except UserError as error:
        return [Problem("error", "dataset_config", error.message, error.hint)]
    return []


_MODEL_KEYS = ("pretrained_model_name_or_path", "vae")


def base_model(values: Mapping[str, Any]) -> Iterator[Problem]:
    """The base model: there, whole, of a kind that this tab trains, and not contradicting the switches."""
    key = "pretrained_model_name_or_path"
    text = str(values.get(key) or "")
    if not text:
        return
    if is_hub_id(text):
        if text in _GONE_MODELS:
            yield Problem("warning", key, f"{text} is no longer on the Hub.", f"Use {_GONE_MODELS[text]}, or a file.")
        elif not _in_hub_cache(text):
            yield Problem("warning", key, f"{text} will be fetched from the Hugging Face Hub (some gigabytes).")
        return
    if not os.path.exists(text):
        if text.startswith(("http://", "https://")) or "/blob/" in text:
            yield Problem("error", key, f"{text} is an address.", "Download the file, or give the name as user/model.")
        else:
            yield missing(text, "The base model", key)
        return
    yield from _model_fits(text, model_facts(text), values, key)


def _model_fits(text: str, facts: ModelFacts, values: Mapping[str, Any], key: str) -> Iterator[Problem]:
    name = os.path.basename(os.path.normpath(text))
    if facts.problem:
        yield Problem("error", key, f"{name} cannot be used: {facts.problem}.", "Choose another file.")
    elif facts.kind in _NOT_A_BASE:
        yield Problem(
            "error",
            key,
            f"{name} is {_NOT_A_BASE[facts.kind]}, not a whole model.",
            "Choose a checkpoint or a diffusers folder.",
        )
    elif facts.version == "sdxl" and not values.get("sdxl"):
        yield Problem("error", "sdxl", f"{name} is a Stable Diffusion XL model.", "Switch on SDXL model.")
    elif facts.version in ("sd1", "sd2") and values.get("sdxl"):
        yield Problem(
            "error",
            "sdxl",
            f"{name} is a Stable Diffusion {facts.version[-1]}.x model, but SDXL is switched on.",
            "Switch it off.",
        )
    elif facts.version in _FAMILY_NAMES:
        yield Problem(
            "error",
            key,
            f"{name} is a {_FAMILY_NAMES[facts.version]} model, which this tab cannot train.",
            "Choose a Stable Diffusion 1.x, 2.x or XL model.",
        )
    elif facts.version == "sd1" and values.get("v2"):
        yield Problem(
            "error", "v2", f"{name} is a Stable Diffusion 1.x model, but 2.x is switched on.", "Switch it off."
        )
    if facts.prediction == "v_prediction" and not values.get("v_parameterization"):
        yield Problem(
            "warning", "v_parameterization", f"{name} says that it predicts velocity.", "Switch velocity prediction on."
        )
    if facts.prediction == "epsilon" and facts.version == "sd1" and values.get("v_parameterization"):
        yield Problem(
            "warning", "v_parameterization", f"{name} predicts noise, not velocity.", "Switch velocity prediction off."
        )


def _in_hub_cache(model: str) -> bool:
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface")), "hub"
    )
    return os.path.isdir(os.path.join(home, "models--" + model.replace("/", "--")))


_FILES = (
    ("vae", "The VAE"),
    ("dataset_config", "The dataset description"),
    ("in_json", "The metadata file"),
    ("conditioning_data_dir", "The folder of masks"),
    ("sample_prompts", "The file of prompts"),
    ("log_tracker_config", "The tracker's settings file"),
)


def other_files(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Further files and folders that a run reads."""
    for key, what in _FILES:
        text = str(values.get(key) or "")
        if text and not os.path.exists(text) and not (key in _MODEL_KEYS and is_hub_id(text)):
            yield missing(text, what, key)
    weights = [("network_weights", values.get("network_weights"))]
    weights += [("base_weights", path) for path in values.get("base_weights") or []]
    for key, path in weights:
        if path and not os.path.exists(path):
            yield missing(str(path), "The LoRA", key)
        elif path and str(path).endswith(".safetensors") and model_facts(str(path)).kind not in ("lora", "other"):
            yield Problem("error", key, f"{os.path.basename(str(path))} is no LoRA file.", "Choose another one.")
    resume = str(values.get("resume") or "")
    if resume and not values.get("resume_from_huggingface"):
        if not os.path.isdir(resume):
            yield missing(resume, "The training state", "resume")
        elif not os.listdir(resume):
            yield Problem("error", "resume", f"The training state {resume} is empty.", "Choose another one.")


def output(values: Mapping[str, Any]) -> Iterator[Problem]:
    """The folder and the name of the result."""
    folder, name = str(values.get("output_dir") or ""), str(values.get("output_name") or "last")
    if re.search(r'[/\\:*?"<>|\0]', name) or name.strip(". ") != name:
        yield Problem(
            "error",
            "output_name",
            f"{name!r} cannot be a file name.",
            'Leave out / \\ : * ? " < > | and dots at the ends.',
        )
    if not folder:
        return
    path = Path(folder)
    if path.is_dir():
        if not os.access(path, os.W_OK):
            yield Problem("error", "output_dir", f"Nothing can be written into {folder}.", "Choose another folder.")
        target = path / f"{name}.{values.get('save_model_as') or 'safetensors'}"
        if target.exists() and not values.get("resume"):
            yield Problem(
                "warning",
                "output_name",
                f"{target.name} exists and will be replaced.",
                "Choose another name to keep it.",
            )
    elif path.exists():
        yield Problem("error", "output_dir", f"{folder} is a file, not a folder.", "Choose a folder.")
    elif path.parent.is_dir():
        yield Problem("warning", "output_dir", f"The folder {folder} will be made.")
    else:
        near = nearest_name(path)
        yield Problem(
            "error",
            "output_dir",
            f"Neither {folder} nor the folder above it exists.",
            f"Did you mean {near}?" if near else "Make it first.",
        )


def samples(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Samples without prompts, prompts without samples."""
    wanted = any(values.get(key) for key in ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"))
    prompts = values.get("sample_prompts") or str(values.get("sample_prompt_text") or "").strip()
    if wanted and not prompts:
        yield Problem(
            "warning",
            "sample_prompt_text",
            "Samples are asked for, but there are no prompts.",
            "Write at least one prompt.",
        )
    elif prompts and not wanted and values.get("sample_prompt_text"):
        yield Problem(
            "warning", "sample_every_n_epochs", "There are prompts, but no samples are asked for.", "Say how often."
        )


def captions(view: DatasetView, folder_key: str = "train_data_dir") -> Iterator[Problem]:
    """Pictures that cannot be read, have no words, or share a name; endings that do not fit."""
    for folder in view.folders:
        key = "reg_data_dir" if folder.regularisation else folder_key
        damaged = [picture.name for picture in folder.pictures if "unreadable" in picture.problems]
        if damaged:
            yield Problem(
                "warning",
                key,
                f"{folder.name}: {_some(damaged)} cannot be read and will be left out.",
                "Replace or remove.",
            )
        stems = [os.path.splitext(picture.name)[0] for picture in folder.pictures]
        doubles = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
        if doubles:
            hint = "Rename one of each: they share a caption and a cache file."
            yield Problem("warning", key, f"{folder.name}: {_some(doubles)} stand for two pictures each.", hint)
        if not folder.regularisation:
            yield from _without_caption(folder, key)
    if view.folders and not any(folder.pictures for folder in view.folders if not folder.regularisation):
        yield Problem("error", folder_key, "There are no pictures to train with.", "Put pictures into the folder.")


def _without_caption(folder: FolderView, key: str) -> Iterator[Problem]:
    bare = [picture.name for picture in folder.pictures if picture.caption_path is None]
    if not bare:
        return
    ending = folder.caption_extension
    if folder.captions == 0 and folder.text_files:
        other, count = max(folder.text_files.items(), key=lambda item: item[1])
        text = f"{folder.name}: no {ending} files, but {count} {other} files."
        hint = f"Set the ending of caption files to {other}."
        yield Problem("warning", "caption_extension", text, hint, {"caption_extension": other})
        return
    instead = (
        f"the folder's words {folder.class_tokens!r} are used"
        if folder.class_tokens
        else "they are trained without words"
    )
    who = "the pictures have" if len(bare) == len(folder.pictures) else f"{_some(bare)} of {len(folder.pictures)} have"
    yield Problem(
        "warning",
        key,
        f"{folder.name}: {who} no caption ({ending}); {instead}.",
        "Write captions, or leave it so on purpose.",
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} pictures ({shown}, ...)" if len(names) > 3 else f"{len(names)} ({shown})"


def installed(module: str) -> bool:
    """Whether a package can be imported by the trainer; it is not imported here."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def packages(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Optional packages that the chosen settings need."""
    if values.get("xformers") and not installed("xformers"):
        yield Problem(
            "error",
            "xformers",
            "xformers is not installed.",
            "Choose PyTorch attention (SDPA), or: pip install xformers.",
        )
    if str(values.get("network_module") or "").startswith("lycoris") and not installed("lycoris"):
        yield Problem("error", "LoRA_type", "LyCORIS is not installed.", "Install it: pip install lycoris-lora.")
    if values.get("log_with") in ("wandb", "all") and not installed("wandb"):
        yield Problem("error", "log_with", "wandb is not installed.", "Install it: pip install wandb.")
    name = str(values.get("optimizer_type") or "")
    for pattern, module, package in _PACKAGES:
        if pattern.search(name) and not installed(module):
            yield Problem(
                "warning",
                "optimizer_type",
                f"{name} needs the package {package}.",
                f"Install it: pip install {package}.",
            )
            break


def devices(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Processes and GPUs that do not fit this machine."""
    processes, gpus = int(values["num_processes"]), machine.gpus()
    chosen = [part for part in str(values.get("gpu_ids") or "").replace(" ", "").split(",") if part.isdecimal()]
    absent = [part for part in chosen if gpus and int(part) not in {gpu.index for gpu in gpus}]
    if absent:
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
        yield Problem("error", "gpu_ids", f"There is no GPU {', '.join(absent)}.", f"There are {names}.")
    elif chosen and not gpus:
        yield Problem("error", "gpu_ids", "This machine has no GPU that can be chosen.", "Leave the field empty.")
    elif gpus and processes > (len(chosen) or len(gpus)) and int(values["num_machines"]) == 1:
        yield Problem(
            "error", "num_processes", f"{processes} processes need as many GPUs.", "Lower the number of processes."
        )
    if values.get("multi_gpu") and processes < 2:
        yield Problem(
            "warning",
            "num_processes",
            "Several GPUs are switched on, but there is one process.",
            "Set the number of processes to the number of GPUs.",
        )
    if not gpus and values.get("mixed_precision") == "fp16":
        yield Problem("warning", "mixed_precision", "There is no GPU: fp16 is slow on a processor.", "Use bf16 or no.")
