"""Values of the form -> the command that trains: argv, TOML, environment. What is printed is what runs.

One law decides what is sent: an option goes into the TOML if and only if it applies with the other values and differs
from the trainer's default.
"""

import math
import os
import re
import shlex
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui import launch_args, machine
from kohya_gui.migrate import is_off
from kohya_gui.secret_store import VARIABLES
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete, convert, fields, find_command, split_words, trainer_fields
from sd_scripts.schema.folders import scan_class_folders
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.parse import build_parser
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.toml_text import dumps

PROJECT = Path(__file__).resolve().parent.parent
PROMPTS_FILE = "prompts.txt"
CONFIG_FILE = "config.toml"
# set by us for every job, never taken from a form, a file or further flags
_OURS = ("config_file", "output_config", "job_dir", "allow_plugins")


@dataclass(frozen=True)
class Plan:
    """A command ready to run.

    `argv` starts with the Python program; `toml_text` belongs into the file that argv names, and `files` (name -> text)
    beside it. `secrets` are environment variables that must appear nowhere else. `notes` are sentences for people.
    """

    command: str
    argv: list[str]
    toml: dict[str, Any]
    toml_text: str
    env: dict[str, str]
    notes: list[str]
    files: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def line(self, windows: bool | None = None) -> str:
        """The command as one line to paste into a terminal (sh; on Windows cmd)."""
        return printable(self.argv, self.env, os.name == "nt" if windows is None else windows)


def printable(argv: Sequence[str], env: Mapping[str, str], windows: bool) -> str:
    """One line that runs argv with these variables set, quoted for sh or for Windows' cmd."""
    if not windows:
        return shlex.join(["env", *(f"{name}={value}" for name, value in env.items()), *argv])
    settings = "".join(f'set "{name}={value}" && ' for name, value in env.items())
    return settings + " ".join(_cmd_quoted(part) for part in argv)


def _cmd_quoted(part: str) -> str:
    quoted = subprocess.list2cmdline([part])
    # cmd gives these signs a meaning outside quotes, which list2cmdline does not know
    return f'"{quoted}"' if quoted == part and re.search(r"[&|<>^()%!;,=]", part) else quoted


def build(
    command: str,
    values: Mapping[str, Any],
    *,
    job_dir: Path | None = None,
    allow_plugins: bool = False,
    on_cpu: bool | None = None,
) -> Plan:
    """The command for these values. Reads at most the names in the picture folders, writes nothing.

    Args:
        command: key of COMMANDS, such as "train_network"; with the switch for SDXL on, its relative for SDXL runs.
        values: option key -> value; a missing key or None means the default.
        job_dir: folder of the job; a placeholder stands in the result if it is not known yet.
        allow_plugins: foreign network, optimizer and dataset classes were allowed by whoever started the page.
        on_cpu: there is no GPU; found out if None.

    Raises:
        UserError: naming the option, if no command can be made.
    """
    name = trainer(command, values)
    notes: list[str] = []
    full, secrets = _complete(name, values, notes)
    folder = job_dir if job_dir is not None else Path("JOB_FOLDER")
    if allow_plugins:
        full["allow_plugins"] = True
    full["job_dir"] = str(folder)
    files = _prompt_file(full, folder)
    options = _trainer_options(name, full)
    toml = {key: options[key] for key in trainer_fields(name) if key in options}
    script = str(PROJECT / find_command(name).module)
    argv = [*launch_args.arguments(full, notes), script, "--config_file", str(folder / CONFIG_FILE)]
    cpu = not machine.has_gpu() if on_cpu is None else on_cpu
    env = launch_args.environment(full, PROJECT, cpu)
    return Plan(command, argv, toml, dumps(toml), env, notes, files, secrets)


def trainer(command: str, values: Mapping[str, Any]) -> str:
    """The command that runs: of the same method for SDXL where the form says that the base model is one.

    Raises:
        UserError: for an unknown command, or if the switch holds neither on nor off.
    """
    found = find_command(command)
    if found.family == "sdxl" or not typed(command, {"sdxl": values.get("sdxl")}).get("sdxl"):
        return command
    return next(
        (other.name for other in COMMANDS.values() if (other.family, other.method) == ("sdxl", found.method)), command
    )


def without_secrets(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that may be written into a file: no tokens, no keys, also not inside further flags."""
    known = fields(command)
    secret = {key for key, option in known.items() if option.kind == "secret"}
    kept = {key: value for key, value in values.items() if key not in secret}
    text = kept.get("additional_parameters")
    if isinstance(text, str):
        kept["additional_parameters"] = _without_secret_flags(text, secret, known)
    return kept


def _without_secret_flags(text: str, secret: set[str], known: Container[str]) -> str:
    """The text without secret flags and their values, however these are quoted or shortened."""
    try:
        words = split_words(text)
    except ValueError:
        # it cannot be taken apart, so no part of it can be trusted to hold no secret
        return "" if any(key[:6] in text.replace("-", "_") for key in secret) else text
    kept: list[str] = []
    position, found = 0, False
    while position < len(words):
        name, has_value, _ = words[position].partition("=")
        name = name.removeprefix("--") if name.startswith("--") else ""
        # argparse takes the start of a flag for the flag
        if name and (name in secret or (name not in known and any(key.startswith(name) for key in secret))):
            found = True
            position += 1 if has_value else 2
            continue
        kept.append(words[position])
        position += 1
    return " ".join(_flag_quoted(word) for word in kept) if found else text


def _flag_quoted(word: str) -> str:
    """A word so that `split_words` gives it back: a quotation mark of one kind stands inside the other kind."""
    if word and not re.search(r"[\s'\"]", word):
        return word
    return "".join(f"'{part}'" if '"' in part else f'"{part}"' for part in re.findall(r"[^']+|'+", word)) or '""'


def _complete(command: str, values: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """All options with what follows from others worked out, and the secrets apart."""
    known = fields(command)
    given = typed(command, values)
    given |= further_flags(command, given.get("additional_parameters"))
    if given.pop("allow_plugins", False):
        notes.append("Foreign plugins can only be allowed by whoever starts the page, with --allow_plugins.")
    secrets = {
        VARIABLES[key]: str(given.pop(key))
        for key in [key for key in given if known[key].kind == "secret"]
        if key in VARIABLES
    }
    _lengths(given, notes)
    _parts_to_train(given)
    full = complete(command, given)
    if full.get("sdxl_cache_text_encoder_outputs") and "cache_text_encoder_outputs" in known:
        full["cache_text_encoder_outputs"] = True
    if "LoRA_type" in known:
        _network(full)
    return full, secrets


def typed(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their options' types, without those that stand for "not given".

    Raises:
        UserError: for an unknown key or a value that cannot be of the option's type.
    """
    known = fields(command)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        if key not in known:
            raise UserError(f"{key} is no option of {command}.", key, nearest(key, known))
        _refuse_broken_text(key, value)
        converted = None if is_off(known[key], value) else convert(known[key], value)
        if converted is not None:
            given[key] = converted
    return given


def _refuse_broken_text(key: str, value: Any) -> None:
    """Text with halves of characters (a file name in an old encoding) can stand in no TOML and no JSON."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                shown = item.encode("utf-8", "replace").decode("utf-8")
                raise UserError(f"{shown!r} holds a sign that is no Unicode.", key, "Rename it.") from error


def further_flags(command: str, text: str | None) -> dict[str, Any]:
    """The options in a text of flags as typed in a terminal; they go before the fields.

    Raises:
        UserError: for an unknown flag, a wrong value, or a flag that the page sets itself.
    """
    key = "additional_parameters"
    try:
        words = split_words(text or "")
    except ValueError as error:
        raise UserError("A quotation mark in the further flags is not closed.", key) from error
    if not words:
        return {}
    known = trainer_fields(command)
    try:
        namespace, unknown = build_parser(command).parse_known_args(words)
    except UserError as error:
        # an abbreviation that could be several flags, or a flag without its value
        raise UserError(f"The further flags cannot be read: {error.message}", key, error.hint) from error
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        hint = nearest(f"--{name}", [f"--{option}" for option in known]) if unknown[0].startswith("-") else ""
        raise UserError(f"{unknown[0]!r} in the further flags is no flag of the trainer.", key, hint)
    try:
        read = {name: convert(known[name], value, "in the further flags") for name, value in vars(namespace).items()}
    except UserError as error:
        raise UserError(error.message, key, error.hint) from error
    for name in _OURS:
        if name in read:
            raise UserError(f"--{name} cannot be set in the further flags.", key, "Leave it out.")
    return read


def _lengths(given: dict[str, Any], notes: list[str]) -> None:
    """Steps from the old epochs field, and warm-up steps from a percentage, as kohya_ss works them out."""
    epoch = given.get("epoch")
    if epoch and not given.get("max_train_steps") and not given.get("max_train_epochs"):
        shown = shown_pictures(given)
        if shown:
            share = shown / int(given.get("train_batch_size", 1)) / int(given.get("gradient_accumulation_steps", 1))
            given["max_train_steps"] = math.ceil(share * int(epoch) * (2 if given.get("reg_data_dir") else 1))
            notes.append(f"{given['max_train_steps']} steps, worked out from {epoch} epochs of {shown} pictures.")
        elif given.get("dataset_config"):
            # kohya_ss never counted described datasets: the trainer's own number of steps held
            notes.append("No steps are given: the usual number holds. Give epochs or steps to change it.")
        else:
            given["max_train_epochs"] = int(epoch)
    percent = given.get("lr_warmup")
    if percent and not given.get("lr_warmup_steps"):
        steps = given.get("max_train_steps")
        if steps and not given.get("max_train_epochs"):
            given["lr_warmup_steps"] = round(int(percent) * int(steps) / 100)
        else:
            # from 1 on the trainer reads steps, below it a share
            given["lr_warmup_steps"] = min(float(percent) / 100, 0.9999)


def shown_pictures(values: Mapping[str, Any]) -> int | None:
    """Pictures times repeats of the training folder; None if they cannot be counted from folder names."""
    if values.get("dataset_config") or values.get("in_json") or not values.get("train_data_dir"):
        return None
    try:
        folders = scan_class_folders(str(values["train_data_dir"]), str(values.get("caption_extension", ".caption")))
    except UserError:
        return None
    return sum(folder.repeats * len(folder.images) for folder in folders) or None


def _parts_to_train(given: dict[str, Any]) -> None:
    """A rate of 0 for one part means: train only the other."""
    text, unet = given.get("text_encoder_lr"), given.get("unet_lr")
    no_text = text is not None and not any(text)
    no_unet = unet == 0
    if no_text and not no_unet:
        given["network_train_unet_only"] = True
        del given["text_encoder_lr"]
    elif no_unet and not no_text:
        given["network_train_text_encoder_only"] = True
        del given["unet_lr"]


def _network(full: dict[str, Any]) -> None:
    """The network's module and its arguments from the LoRA type and the fields that it offers."""
    name = str(full.get("LoRA_type"))
    kind = LORA_TYPES.get(name)
    if kind is None:
        raise UserError(
            f"The LoRA type {name!r} cannot be trained here.",
            "LoRA_type",
            nearest(name, LORA_TYPES) or f"Possible are {', '.join(LORA_TYPES)}.",
        )
    if kind.module is not None:
        full["network_module"] = kind.module
    foreign = bool(kind.module) and not str(kind.module).startswith("networks.")
    known = fields("train_network")
    items = list(kind.fixed)
    for key, argument in kind.args:
        option, value = known[key], full.get(key)
        if value is None or (option.when is not None and not option.when.holds(full)):
            continue
        if _worth_sending(option, value, foreign):
            items.append(f"{argument}={_plain(value)}")
    own = full.get("network_args") or []
    full["network_args"] = items + list(own) or None


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _worth_sending(option: OptionField, value: Any, foreign: bool) -> bool:
    if isinstance(value, bool):
        # LyCORIS takes some switches as they come, and the text "False" counts as true there
        return value
    # the defaults of a foreign package are its own, so numbers are always said
    return foreign or value != option.default


def _prompt_file(full: dict[str, Any], folder: Path) -> dict[str, str]:
    """Prompts typed into the form become a file of the job; without samples neither text nor file is sent."""
    text = full.get("sample_prompt_text")
    if text and not full.get("sample_prompts") and makes_samples(full):
        full["sample_prompts"] = str(folder / PROMPTS_FILE)
        return {PROMPTS_FILE: text if text.endswith("\n") else f"{text}\n"}
    return {}


def makes_samples(full: Mapping[str, Any]) -> bool:
    """Whether samples are asked for at all."""
    return any(full.get(key) for key in ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"))


def _trainer_options(command: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent to the trainer: what applies and differs from its default."""
    sent = {}
    for key, option in trainer_fields(command).items():
        value = full.get(key)
        applies = option.when is None or option.when.holds(full) or key == "network_module"
        if applies and value is not None and value != option.default and option.kind != "secret":
            sent[key] = value
    idle = () if makes_samples(full) else ("sample_sampler", "sample_prompts")
    for key in ("config_file", "output_config", *idle):
        sent.pop(key, None)
    return sent
