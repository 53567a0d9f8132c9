"""Values of the form -> the command that trains: argv, TOML, environment. What is printed is what runs.

One law decides what is sent: an option goes into the TOML if and only if it applies with the other values and differs
from the trainer's default.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui import launch_args, lengths, machine, metadata_steps, model_kind
from kohya_gui.command_line import printable
from kohya_gui.further import OURS, further_flags, without_secrets
from kohya_gui.migrate import is_off
from kohya_gui.secret_store import VARIABLES
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert, fields, find_command, trainer_fields
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.retired import retired
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import Tab, switch_of, tab_aliases, tab_complete, tab_of, tab_options, trainer_of
from sd_scripts.schema.toml_text import dumps

__all__ = ["OURS", "Plan", "Step", "build", "further_flags", "printable", "trainer", "typed", "without_secrets"]

PROJECT = Path(__file__).resolve().parent.parent
# on the command line only: the trainer takes it from no file
PLUGINS = ("--allow_plugins",)
PROMPTS_FILE = "prompts.txt"
CONFIG_FILE = "config.toml"
# the network's module follows from the LoRA type, although only the custom type has a field for it
_WORKED_OUT = ("network_module", "use_object_template", "use_style_template")
_TEMPLATES = {"object template": "use_object_template", "style template": "use_style_template"}


@dataclass(frozen=True)
class Step:
    """A program that runs before the trainer in the same job; `name` is what people call this phase."""

    name: str
    argv: list[str]


@dataclass(frozen=True)
class Plan:
    """A command ready to run.

    `argv` starts with the Python program; `toml_text` belongs into the file that argv names, and `files` (name -> text)
    beside it. `secrets` are environment variables that must appear nowhere else. `notes` are sentences for people.
    `before` runs first, in order, each program only if the one before it went well.
    """

    command: str
    argv: list[str]
    toml: dict[str, Any]
    toml_text: str
    env: dict[str, str]
    notes: list[str]
    files: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    before: list[Step] = field(default_factory=list)

    def line(self, windows: bool | None = None) -> str:
        """The command as one line to paste into a terminal (sh; on Windows cmd), with what runs before it.

        Raises:
            UserError: if a path holds a sign that cmd cannot be told.
        """
        steps = [step.argv for step in self.before]
        return printable(self.argv, self.env, os.name == "nt" if windows is None else windows, steps)


def build(
    command: str,
    values: Mapping[str, Any],
    *,
    job_dir: Path | None = None,
    allow_plugins: bool = False,
    on_cpu: bool | None = None,
    allowed: Callable[[str], bool] | None = None,
) -> Plan:
    """The command for these values. Reads at most the names in the picture folders, writes nothing.

    Args:
        command: a tab's own command such as "train_network", or directly one of its trainers.
        values: option key -> value; a missing key or None means the default. `model_family` says for which of the
            tab's trainers the base model is.
        job_dir: folder of the job; a placeholder stands in the result if it is not known yet.
        allow_plugins: foreign network, optimizer and dataset classes were allowed by whoever started the page.
        on_cpu: there is no GPU; found out if None.
        allowed: says of a path whether it may be looked at; None allows all.

    Raises:
        UserError: naming the option, if no command can be made.
    """
    notes: list[str] = []
    name, full, secrets = _complete(command, values, notes, allowed)
    folder = job_dir if job_dir is not None else Path("JOB_FOLDER")
    full["job_dir"] = str(folder)
    before: list[Step] = []
    if "train_dir" in full:
        before = [Step(title, argv) for title, argv in metadata_steps.programs(full, notes)]
        metadata_steps.use_metadata(full)
    files = _prompt_file(full, folder)
    options = _trainer_options(command, name, full)
    toml = {key: options[key] for key in trainer_fields(name) if key in options}
    script = str(PROJECT / find_command(name).module)
    argv = [*launch_args.arguments(full, notes, trusting=allow_plugins), script, *PLUGINS[: 1 if allow_plugins else 0]]
    argv += ["--config_file", str(folder / CONFIG_FILE)]
    cpu = not machine.has_gpu() if on_cpu is None else on_cpu
    env = launch_args.environment(full, PROJECT, cpu)
    return Plan(command, argv, toml, dumps(toml), env, notes, files, secrets, before)


def trainer(command: str, values: Mapping[str, Any], allowed: Callable[[str], bool] | None = None) -> str:
    """The trainer that runs: for a tab's own command that of the base model's family and of the other switches.

    Raises:
        UserError: for an unknown command, or if a switch holds neither on nor off.
    """
    tab = tab_of(command)
    if command != tab.command:
        return command
    keys = {"model_family", *model_kind.SWITCHES, *(switch for switch, _ in tab.variants)}
    given = typed(command, {key: value for key, value in values.items() if key in keys})
    return trainer_of(tab.name, model_kind.resolve({**values, **given}, allowed))


def _complete(
    command: str, values: Mapping[str, Any], notes: list[str], allowed: Callable[[str], bool] | None
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The trainer, all options of its tab with what follows from others worked out, and the secrets apart."""
    tab = tab_of(command)
    known = tab_options(tab.name)
    given = typed(command, values)
    name = trainer(command, given, allowed)
    flags = further_flags(name, given.get("additional_parameters"))
    if "network_module" in flags and "LoRA_type" in known:
        # a network named there is not overruled by the usual kind
        given["LoRA_type"] = "Custom"
    given = model_kind.resolve({**given, **flags}, allowed) | {
        key: flags[key] for key in model_kind.SWITCHES if key in flags
    }
    given["sdxl"] = find_command(name).family == "sdxl"
    if switch_of(name):
        given[switch_of(name)] = True
    if given.pop("allow_plugins", False):
        notes.append("Foreign plugins can only be allowed by whoever starts the page, with --allow_plugins.")
    secrets = {
        VARIABLES[key]: str(given.pop(key))
        for key in [key for key in given if key in known and known[key].kind == "secret"]
        if key in VARIABLES
    }
    _lengths(name, given, notes, allowed)
    _parts_to_train(given)
    if given.get("template") in _TEMPLATES:
        given[_TEMPLATES[given["template"]]] = True
    defaults = {key: field.default for key, field in trainer_fields(name).items()}
    full = tab_complete(tab.name, {**defaults, **given})
    if "LoRA_type" in known:
        _network(full)
    return name, full, secrets


def typed(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their options' types, without those that stand for "not given".

    Args:
        command: a tab's own command or one of its trainers; options of all trainers of the tab may be given.
        values: option key -> value.

    Raises:
        UserError: for an unknown key or a value that cannot be of the option's type.
    """
    tab = tab_of(command)
    known = tab_options(tab.name)
    given: dict[str, Any] = {}
    for key, value in _in_todays_names(tab, values).items():
        if value is None:
            continue
        if key not in known:
            raise UserError(f"{key} is no option of {command}.", key, nearest(key, known))
        _refuse_broken_text(key, value)
        converted = None if is_off(known[key], value) else convert(known[key], value)
        if converted is not None:
            given[key] = converted
    return given


def _in_todays_names(tab: Tab, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a job that an earlier version made: keys renamed since, without those that never had an effect."""
    known, renamed = tab_options(tab.name), tab_aliases(tab.name)
    idle = {"model_list", *retired(tab.command)} - known.keys()
    made = {key: value for key, value in values.items() if key not in idle and (key in known or key not in renamed)}
    for key, value in values.items():
        if key not in known and key in renamed:
            made.setdefault(renamed[key], value)
    return made


def _refuse_broken_text(key: str, value: Any) -> None:
    """Text with halves of characters (a file name in an old encoding) can stand in no TOML and no JSON."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                shown = item.encode("utf-8", "replace").decode("utf-8")
                raise UserError(f"{shown!r} holds a sign that is no Unicode.", key, "Rename it.") from error


def _lengths(name: str, given: dict[str, Any], notes: list[str], allowed: Callable[[str], bool] | None) -> None:
    """Steps that follow from epochs and percentages; the pictures are only counted where something follows from it."""
    unlimited = bool(given.get("epoch")) and not given.get("max_train_steps") and not given.get("max_train_epochs")
    share = name == "train_db" and bool(given.get("stop_text_encoder_percent"))
    shown = lengths.shown_pictures(given, allowed) if unlimited or share else None
    lengths.work_out(given, notes, shown)
    if name == "train_db":
        lengths.text_encoder_stop(given, shown, int(trainer_fields(name)["max_train_steps"].default))


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


def _trainer_options(command: str, name: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent to the trainer: what applies on its tab and differs from its default."""
    on_tab = tab_options(tab_of(command).name)
    sent = {}
    for key, option in trainer_fields(name).items():
        value, when = full.get(key), on_tab[key].when
        applies = when is None or when.holds(full) or key in _WORKED_OUT
        if applies and value is not None and value != option.default and option.kind != "secret":
            sent[key] = value
    idle = () if makes_samples(full) else ("sample_sampler", "sample_prompts")
    for key in ("config_file", "output_config", *idle):
        sent.pop(key, None)
    return sent
