"""What is wrong with paths, models and the machine before a run starts: each finding names its field and a way out."""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kohya_gui import machine
from kohya_gui.hub_cache import cached, is_hub_id
from kohya_gui.model_kind import FAMILY_NAMES, model_facts
from kohya_gui.paths import Roots, nearest_name
from kohya_gui.problem import Problem
from sd_scripts.schema.gui import AUTO_FAMILY
from sd_scripts.schema.headers import ModelFacts

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


def missing(path: str, what: str, key: str) -> Problem:
    """The finding for a path that is not there, with the nearest name that is."""
    near = nearest_name(Path(path))
    text = f"{what} {path} does not exist."
    if not near:
        return Problem("error", key, text, "Choose another one.")
    # of a folder that is missing the nearest one says nothing about the file inside it
    fix = {key: str(near)} if near.parent == Path(path).parent else {}
    return Problem("error", key, text, f"Did you mean {near}?", fix)


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


_MODEL_KEYS = ("pretrained_model_name_or_path", "vae", "controlnet_model_name_or_path")


def base_model(values: Mapping[str, Any], family: str) -> Iterator[Problem]:
    """The base model: there, whole, of a kind that can be trained, and of the family that the form says."""
    key = "pretrained_model_name_or_path"
    text = str(values.get(key) or "")
    if not text:
        return
    if is_hub_id(text):
        if text in _GONE_MODELS:
            better = _GONE_MODELS[text]
            hint = f"Use {better}, or a file."
            yield Problem("warning", key, f"{text} is no longer on the Hub.", hint, {key: better})
        elif not cached(text):
            yield Problem("warning", key, f"{text} will be fetched from the Hugging Face Hub (some gigabytes).")
        return
    if not os.path.exists(text):
        if text.startswith(("http://", "https://")) or "/blob/" in text:
            yield Problem("error", key, f"{text} is an address.", "Download the file, or give the name as user/model.")
        else:
            yield missing(text, "The base model", key)
        return
    yield from _model_fits(text, model_facts(text), values, family)


def _model_fits(text: str, facts: ModelFacts, values: Mapping[str, Any], family: str) -> Iterator[Problem]:
    key = "pretrained_model_name_or_path"
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
    elif facts.version in _FAMILY_NAMES:
        yield Problem(
            "error",
            key,
            f"{name} is a {_FAMILY_NAMES[facts.version]} model, which this tab cannot train.",
            "Choose a Stable Diffusion 1.x, 2.x or XL model.",
        )
    else:
        yield from _family_fits(name, facts, values, family)


def _family_fits(name: str, facts: ModelFacts, values: Mapping[str, Any], family: str) -> Iterator[Problem]:
    """What the form says about the model does not contradict the model's header."""
    said = "sd2" if family == "sd2-v" else family
    if facts.version in FAMILY_NAMES and facts.version != said:
        text = f"{name} is a {FAMILY_NAMES[facts.version]} model, not {FAMILY_NAMES[said]}."
        yield Problem("error", "model_family", text, "Let the file decide.", {"model_family": AUTO_FAMILY})
        return
    velocity = bool(values.get("v_parameterization"))
    if facts.prediction == "v_prediction" and not velocity:
        fix = {"model_family": "sd2-v" if said == "sd2" else AUTO_FAMILY}
        text = f"{name} says that it predicts velocity."
        yield Problem("warning", "model_family", text, "Switch velocity prediction on.", fix)
    if facts.prediction == "epsilon" and velocity:
        text = f"{name} predicts noise, not velocity."
        fix = {"model_family": said if said != "sdxl" else AUTO_FAMILY}
        yield Problem("warning", "model_family", text, "Switch velocity prediction off.", fix)


_FILES = (
    ("vae", "The VAE"),
    ("controlnet_model_name_or_path", "The ControlNet"),
    ("weights", "The embedding"),
    ("dataset_config", "The dataset description"),
    ("in_json", "The metadata file"),
    ("conditioning_data_dir", "The folder of masks or control pictures"),
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


def output(values: Mapping[str, Any], target: str) -> Iterator[Problem]:
    """The folder and the name of the result; `target` is the name of its last file."""
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
        if target and (path / target).exists() and not values.get("resume"):
            text = f"{target} exists and will be replaced."
            yield Problem("warning", "output_name", text, "Choose another name to keep it.")
        trained = values.get("train_data_dir")
        if trained and os.path.realpath(folder) == os.path.realpath(str(trained)):
            text = "The results would be written among the pictures."
            yield Problem("warning", "output_dir", text, "Choose another folder.")
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
            {"sdpa": True, "xformers": False},
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
        text = "There is no GPU: fp16 is slow on a processor."
        yield Problem("warning", "mixed_precision", text, "Use bf16 or no.", {"mixed_precision": "bf16"})
