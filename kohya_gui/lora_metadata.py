"""Train like this LoRA: the settings that a trained .safetensors file tells in its header (`ss_*`).

Only the header is read, and only texts are taken from it. Paths are never made up: files tell names, not places.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_gui import lora_shapes, network_kind
from kohya_gui.draft import Draft, ReportLine
from kohya_gui.migrate import read_values
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.optimizer import OPTIMIZERS

MOST_HEADER_BYTES = 8_000_000
_MOST_TEXT = 20_000
_HINT = "Choose a LoRA or embedding that a trainer saved."
_LORA_MARKS = (
    "lora_down", "lora_up", "lora_A", "hada_w1_a", "lokr_w1", "oft_blocks", "dora_scale", "on_input", ".a1.weight",
)  # fmt: skip

# metadata that is an option of the same name behind ss_
_SAME = (
    "output_name", "training_comment", "learning_rate", "unet_lr", "text_encoder_lr", "lr_warmup_steps",
    "max_grad_norm", "gradient_checkpointing", "gradient_accumulation_steps", "mixed_precision", "full_fp16", "seed",
    "lowram", "clip_skip", "max_token_length", "cache_latents", "prior_loss_weight", "noise_offset",
    "multires_noise_iterations", "multires_noise_discount", "adaptive_noise_scale", "zero_terminal_snr",
    "min_snr_gamma", "ip_noise_gamma", "caption_dropout_rate", "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate", "noise_offset_random_strength", "ip_noise_gamma_random_strength", "loss_type",
    "huber_schedule", "huber_scale", "huber_c", "fp8_base", "fp8_base_unet", "validation_seed", "validation_split",
    "max_validation_steps", "validate_every_n_epochs", "validate_every_n_steps", "resize_interpolation", "color_aug",
    "flip_aug", "random_crop", "shuffle_caption", "enable_bucket", "bucket_no_upscale", "min_bucket_reso",
    "max_bucket_reso", "keep_tokens", "max_train_steps", "network_dim", "network_alpha", "network_dropout",
    "scale_weight_norms",
)  # fmt: skip
# metadata with another name or another way of writing
_OTHER: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "ss_debiased_estimation": ("debiased_estimation_loss", str),
    "ss_batch_size_per_device": ("train_batch_size", str),
    "ss_resolution": ("resolution", lambda text: _plain_pair(text)),
    "ss_face_crop_aug_range": ("face_crop_aug_range", lambda text: _plain_pair(text)),
    "ss_text_encoder_lr": ("text_encoder_lr", lambda text: text.strip("[]()")),
}
# what the files never say, for the report
_UNKNOWN = (
    "the folders of pictures and result, the base model's place, how often to save, samples, the ending of caption "
    "files, restarts and power of the schedule, and how attention is computed"
)


@dataclass(frozen=True)
class Header:
    """A file's name, its notes, and its tensors' shapes."""

    name: str
    notes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """What a file tells: the tab it is for ("" for any), values for its form, and what was and was not found."""

    tab: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    report: list[ReportLine] = field(default_factory=list)
    is_base_model: bool = False


def read_file(path: Path) -> Found:
    """What a .safetensors file tells; only its header is read.

    Raises:
        UserError: in one sentence, if it cannot be read or is no such file.
    """
    try:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist.", hint="Choose another one.")
        with path.open("rb") as file:
            head = file.read(8)
            return read_head(path.name, head + file.read(_length(path.name, head)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError("The file's name holds a sign that no name may hold.", hint="Choose another file.") from error


def read_head(name: str, head: bytes) -> Found:
    """The same from a file's first bytes: 8 for the length of the header, then the header.

    Raises:
        UserError: in one sentence, if it is no such file.
    """
    length = _length(name, head)
    if len(head) < 8 + length:
        raise UserError(f"{name} is cut off: its header is incomplete.", hint="Download it again.")
    return tell(_header(name, head[8 : 8 + length]))


def _length(name: str, head: bytes) -> int:
    if len(head) < 8:
        raise UserError(f"{name} is empty or cut off.", hint="Download it again.")
    (length,) = struct.unpack("<Q", head[:8])
    if length > MOST_HEADER_BYTES:
        raise UserError(f"{name} is no safetensors file, or its header is far too large.", hint=_HINT)
    return int(length)


def _header(name: str, raw: bytes) -> Header:
    damaged = UserError(f"{name} is damaged, or no safetensors file.", hint=_HINT)
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(table, dict):
        raise damaged
    notes = table.pop("__metadata__", None) or {}
    if not isinstance(notes, dict):
        raise damaged
    shapes = {}
    for key, entry in table.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
            raise damaged
        shapes[key] = tuple(shape)
    # texts only, and of a length that a form can hold; lists of tags are the long ones
    kept = {key: text for key, text in notes.items() if isinstance(text, str) and len(text) <= _MOST_TEXT}
    return Header(name, kept, shapes)


def tell(header: Header) -> Found:
    """What a header tells.

    Raises:
        UserError: if it is a file of weights without a word about its training.
    """
    is_lora = any(mark in key for key in header.shapes for mark in _LORA_MARKS)
    if not is_lora and "ss_network_module" not in header.notes:
        vectors = next((header.shapes[key] for key in ("emb_params", "clip_l") if key in header.shapes), None)
        if vectors is not None and len(header.shapes) <= 4:
            return _embedding(header, vectors)
        if any(key.startswith(("model.diffusion_model.", "conditioner.")) for key in header.shapes):
            line = ReportLine("kept", "pretrained_model_name_or_path", f"{header.name} is a base model, no LoRA.")
            return Found(report=[line], is_base_model=True)
    told = _told(header)
    guessed = {key: text for key, text in lora_shapes.of_model_card(header.notes).items() if key not in told}
    if is_lora:
        guessed |= {key: text for key, text in lora_shapes.of_tensors(header.shapes).items() if key not in told}
    if "ss_datasets" in told:
        guessed.pop("ss_resolution", None)
    if "ss_network_module" in told:
        # with other arguments these are another network's
        guessed.pop("ss_network_args", None)
    if not told and not is_lora:
        raise UserError(
            f"{header.name} does not tell how it was trained (it has no ss_ entries).", hint="Choose another LoRA."
        )
    tab = "lora" if is_lora or "ss_network_module" in told else ""
    found = _settings(header.name, told | guessed, tab)
    if not is_lora:
        return found
    if not told:
        text = f"{header.name} holds no notes of its training: only what its tensors tell was taken."
        found.report.insert(0, ReportLine("kept", "", text))
    return replace(found, values={**found.values, **_parts(header)})


def _parts(header: Header) -> dict[str, bool]:
    """Which parts of the model a LoRA changes, told from the names of its tensors."""
    text = any(key.startswith(("lora_te", "text_encoder")) for key in header.shapes)
    unet = any(key.startswith(("lora_unet", lora_shapes.OFT_PREFIX, "unet")) for key in header.shapes)
    if not (text or unet):
        return {}
    return {"network_train_unet_only": not text, "network_train_text_encoder_only": not unet}


def _told(header: Header) -> dict[str, str]:
    return {key: text for key, text in header.notes.items() if key.startswith("ss_")}


def _settings(name: str, notes: Mapping[str, str], tab: str) -> Found:
    draft = Draft({}, tab or "lora")
    sources = {f"ss_{key}": (key, str) for key in _SAME} | dict(_OTHER)
    told = {source: text for source, text in notes.items() if text not in ("None", "")}
    # lengths and warm-up are told in steps
    off = ["max_train_epochs", "lr_warmup"] if "ss_max_train_steps" in told else []
    for source, (key, read) in sources.items():
        if source in told and key in draft.known:
            draft.raw[key] = read(told[source])
        elif source in notes and key in draft.known:
            off.append(key)
    _schedule(draft, told)
    _optimizer(draft, told)
    _network(draft, told)
    _dataset(draft, told)
    _family(draft, told)
    off += ["optimizer_args"] if "ss_optimizer" in told else []
    off += ["lr_scheduler_type"] if "ss_lr_scheduler" in told else []
    off += _network_settings(draft)
    read_values(draft)
    names = ", ".join(draft.values)
    draft.report.insert(0, ReportLine("renamed", "", f"{len(draft.values)} settings were taken from {name}: {names}."))
    # what was not used must not stay from the form before
    draft.values = {**{key: _unused(draft, key) for key in off if key not in draft.values}, **draft.values}
    draft.report += _facts(told)
    draft.report.append(ReportLine("kept", "", f"The file does not tell: {_UNKNOWN}. These stay as they are."))
    return Found(tab, draft.values, draft.report)


def _embedding(header: Header, vectors: tuple[int, ...]) -> Found:
    """An embedding: how many vectors the new word has, and for which text encoder."""
    told = _told(header)
    found = _settings(header.name, told, "textual_inversion") if told else Found("textual_inversion")
    values = dict(found.values)
    if len(vectors) == 2 and 1 <= vectors[0] <= 1000:
        values["num_vectors_per_token"] = vectors[0]
        wide = {768: "sd1", 1024: "sd2"}.get(vectors[1])
        family = "sdxl" if "clip_g" in header.shapes else wide
        values |= {"model_family": family} if family and "model_family" not in values else {}
    line = ReportLine("kept", "", f"{header.name} is an embedding; its vectors: {vectors[0] if vectors else 0}.")
    return Found("textual_inversion", values, [line, *found.report])


def _schedule(draft: Draft, told: Mapping[str, str]) -> None:
    text = told.get("ss_lr_scheduler", "")
    if text.startswith("adafactor:"):
        draft.raw["lr_scheduler"] = "adafactor"
        draft.raw["learning_rate"] = text.partition(":")[2]
    elif text in draft.known["lr_scheduler"].choices:
        draft.raw["lr_scheduler"] = text
    elif text:
        draft.raw["lr_scheduler_type"] = text


def _optimizer(draft: Draft, told: Mapping[str, str]) -> None:
    """`package.module.Class(name=value,...)` -> the optimizer's name and its arguments."""
    text = told.get("ss_optimizer", "")
    path, _, inner = text.partition("(")
    cls = path.rpartition(".")[2]
    if not cls:
        return
    arguments = split_arguments(inner.rpartition(")")[0])
    named = {"SGD": "SGDNesterov", "SGD8bit": "SGDNesterov8bit"}.get(cls, cls)
    known = next((name for name in OPTIMIZERS if name.lower() == named.lower()), "")
    draft.raw["optimizer_type"] = known or (path if "." in path else cls)
    if named != cls:
        arguments = [item for item in arguments if not item.startswith("nesterov=")]
    if arguments:
        draft.raw["optimizer_args"] = arguments


def split_arguments(text: str) -> list[str]:
    """The items of "a=1, b=(2, 3)", split at the commas outside brackets, without blanks inside."""
    items, depth, current = [], 0, ""
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            items.append(current)
            current = ""
        else:
            current += sign
    items.append(current)
    return [re.sub(r"\s+", "", item) for item in items if "=" in item]


def _network(draft: Draft, told: Mapping[str, str]) -> None:
    module = told.get("ss_network_module")
    if not module or draft.tab != "lora":
        return
    arguments = _json(told.get("ss_network_args"))
    named = {str(key): value for key, value in arguments.items()} if isinstance(arguments, dict) else {}
    dropout = named.pop("dropout", None)
    if dropout not in (None, "None"):
        draft.raw.setdefault("network_dropout", dropout)
    network_kind.split(draft, module, named)


def _network_settings(draft: Draft) -> list[str]:
    """The fields that the network's type takes; those it does not tell were not used."""
    kind = LORA_TYPES.get(str(draft.raw.get("LoRA_type")))
    return ["network_args", *(key for key, _ in kind.args)] if kind else []


def _unused(draft: Draft, key: str) -> Any:
    option = draft.known[key]
    return None if option.optional else option.default


def _dataset(draft: Draft, told: Mapping[str, str]) -> None:
    """Settings of the one described dataset; of several, none can be the form's."""
    described = _json(told.get("ss_datasets"))
    if not isinstance(described, list) or not described:
        return
    if len(described) > 1 or not isinstance(described[0], dict):
        draft.say("kept", "dataset_config", f"It was trained on {len(described)} datasets with settings of their own.")
        return
    entry = described[0]
    for source, key in (
        ("batch_size_per_device", "train_batch_size"),
        ("enable_bucket", "enable_bucket"),
        ("min_bucket_reso", "min_bucket_reso"),
        ("max_bucket_reso", "max_bucket_reso"),
        ("bucket_no_upscale", "bucket_no_upscale"),
    ):
        if isinstance(entry.get(source), bool | int):
            draft.raw.setdefault(key, entry[source])
    if isinstance(entry.get("resolution"), list):
        draft.raw.setdefault("resolution", ",".join(str(side) for side in entry["resolution"][:2]))


def _family(draft: Draft, told: Mapping[str, str]) -> None:
    version = told.get("ss_base_model_version", "")
    family = {"sd_v1": "sd1", "sd_v1_v": "sd1", "sd_v2": "sd2", "sd_v2_v": "sd2-v"}.get(version)
    if version.startswith("sdxl"):
        family = "sdxl"
    if not version and told.get("ss_v2") in ("True", "False"):
        family = "sd2" if told["ss_v2"] == "True" else None
    if family:
        draft.raw["model_family"] = family
    if version == "sd_v1_v":
        draft.say(
            "kept", "model_family", "Its base model predicts velocity; the page reads that from the model's header."
        )
    if version and not family:
        draft.say("kept", "model_family", f"Its base model is of the kind {version[:40]}, which is not here.")


def _facts(told: Mapping[str, str]) -> list[ReportLine]:
    """What is only reported: the base model's name and hash, the pictures, the epochs."""
    lines = []
    for what, label in (("sd_model", "base model"), ("vae", "VAE")):
        name, digest = told.get(f"ss_{what}_name", ""), told.get(f"ss_{what}_hash") or told.get(f"ss_new_{what}_hash")
        if name:
            known = f" with the hash {digest[:16]}" if digest and re.fullmatch("[0-9a-f]{8,64}", digest) else ""
            lines.append(ReportLine("kept", "", f"The {label} was called {name[:100]}{known}."))
    folders = _json(told.get("ss_dataset_dirs"))
    if isinstance(folders, dict) and folders:
        shown = [
            f"{name[:40]} ({entry.get('img_count')} pictures, {entry.get('n_repeats')} repeats)"
            for name, entry in list(folders.items())[:5]
            if isinstance(entry, dict)
        ]
        lines.append(ReportLine("kept", "", f"It was trained on {', '.join(shown)}."))
    epochs, batches = told.get("ss_num_epochs"), told.get("ss_total_batch_size")
    if epochs:
        at_once = f"; pictures a step over all devices: {batches[:20]}" if batches else ""
        lines.append(ReportLine("kept", "", f"Epochs it ran for: {epochs[:20]}{at_once}."))
    return lines


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _plain_pair(text: str) -> str:
    """`(512, 768)` as `512,768`."""
    return re.sub(r"[()\[\]\s]", "", text)
