"""The scripts that the page runs as jobs, and the command that a form makes of one of them.

A new tool on the page is one more record in `tools_captions`, `tools_lora` or `tools_models`.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from kohya_gui import command as commands
from kohya_gui import launch_args, machine, tools_captions, tools_lora, tools_models
from kohya_gui.command import Plan
from kohya_gui.paths import Roots, caption_ending
from kohya_gui.phrases import phrase
from kohya_gui.tools_record import DEVICE, PREFIX, Shelf, Tool
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.suggest import nearest

__all__ = ["PREFIX", "SHELVES", "TOOLS", "Shelf", "Tool", "build", "find_tool", "is_tool", "resolved", "start_values",
           "tool_fields", "wants_gpu"]  # fmt: skip

_HUB_NAME = re.compile(r"^[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*\Z", re.ASCII)
_ENDINGS = ("caption_ext", "caption_extension", "caption_extention", "extension")
PATHS = ("file", "folder", "model", "weights", "target")
"""Kinds of options that name a file or folder."""
# what the switches of the scripts for weights are called where the script has no better name
_CALLED = {
    "concat": phrase("Put side by side"),
    "shuffle": phrase("Shuffle the ranks"),
    "no_metadata": phrase("Without modelspec notes"),
    "exact": phrase("Decompose exactly (slow)"),
    "legacy": phrase("As sd-scripts computed"),
    "overwrite": phrase("Overwrite existing files"),
    "unet_only": phrase("Mix the U-Nets only"),
    "show_skipped": phrase("Name what is left out"),
    "v_parameterization": phrase("Note v-parameterization"),
}
_SHELVES = (tools_captions, tools_lora, tools_models)

TOOLS: dict[str, Tool] = {tool.name: tool for shelf in _SHELVES for tool in shelf.TOOLS}
SHELVES: tuple[Shelf, ...] = tuple(shelf for part in _SHELVES for shelf in part.SHELVES)


def is_tool(command: str) -> bool:
    """Whether a job's command is a tool, not a training."""
    return command.startswith(PREFIX)


def find_tool(command: str) -> Tool:
    """The tool of a command "tool:<name>".

    Raises:
        UserError: if there is none.
    """
    name = command.removeprefix(PREFIX)
    if name not in TOOLS:
        raise UserError(f"There is no tool {name!r}.", hint=nearest(name, TOOLS))
    return TOOLS[name]


@cache
def _of_script(name: str) -> Mapping[str, OptionField]:
    """The options of a tool's script."""
    return {option.key: option for option in section_fields(TOOLS[name].section)}


@cache
def _fields(name: str) -> Mapping[str, OptionField]:
    """Everything that a form may say: the options of the script, and those of the page."""
    tool = TOOLS[name]
    own = {option.key: option for option in section_fields(tool.page)} if tool.page else {}
    known = {**_of_script(name), **own}
    said = {key: {"label": label} for key, label in _CALLED.items()} if tool.seen else {}
    return {key: replace(option, **{**said.get(key, {}), **tool.changes.get(key, {})}) for key, option in known.items()}


def tool_fields(tool: Tool) -> Mapping[str, OptionField]:
    """The options on a tool's form, in reading order."""
    known = _fields(tool.name)
    return {key: replace(known[key], basic=True) for key in tool.keys}


def start_values(tool: Tool) -> dict[str, Any]:
    """What the form opens with."""
    first = {key: tool.start.get(key, option.default) for key, option in tool_fields(tool).items()}
    here = "cuda" if machine.has_gpu() else "cpu"
    return {key: here if value is DEVICE else value for key, value in first.items()}


def wants_gpu(tool: Tool, values: Mapping[str, Any]) -> bool:
    """Whether a job with these values has to wait for trainings on the GPU."""
    return tool.gpu or str(values.get("device") or "").startswith("cuda")


def resolved(tool: Tool, values: Mapping[str, Any], roots: Roots) -> dict[str, Any]:
    """The values with every path as the real one inside the allowed folders; hub names stay.

    Raises:
        UserError: naming the field, if something that is needed is missing or a path is not allowed.
    """
    made = dict(values)
    for key, option in tool_fields(tool).items():
        value = made.get(key)
        if key == "repo_id" and value and not _is_hub_name(str(value)):
            raise UserError(f"{value!r} is no name on the Hugging Face Hub.", key, "Write it as owner/name.")
        if option.kind not in PATHS:
            continue
        if value in (None, ""):
            if option.default is None and not option.optional:
                raise UserError(f"{option.label} is missing.", key, _hint(option))
            continue
        hub = option.kind == "model" and key not in tool.models
        if value == option.default or (hub and _is_hub_name(str(value))):
            continue
        if option.kind == "target" and key in tool.endings:
            _refuse_folder(tool, key, str(value), made, roots)
        made[key] = str(roots.inside(with_ending(tool, key, str(value), made), key))
    return made


def _hint(option: OptionField) -> str:
    return {"folder": "Choose a folder.", "target": "Say where to save."}.get(option.kind, "Choose a file.")


def _refuse_folder(tool: Tool, key: str, text: str, values: Mapping[str, Any], roots: Roots) -> None:
    """A folder is no name for a file: the file would come to stand beside it under its name."""
    source = str(values.get(tool.follows) or "") if tool.follows else ""
    if source and os.path.isdir(source):
        return
    if text.endswith(("/", "\\")) or os.path.isdir(roots.inside(text, key)):
        raise UserError(f"{text} is a folder.", key, "Say where to save.")


def with_ending(tool: Tool, key: str, text: str, values: Mapping[str, Any]) -> str:
    """The name of a file to write, with the usual ending if it has none of those it may have; of a model in a folder
    another folder is made."""
    allowed = tool.endings.get(key, ())
    if not allowed or text.lower().endswith(allowed):
        return text
    source = str(values.get(tool.follows) or "") if tool.follows else ""
    return text if source and os.path.isdir(source) else text + allowed[0]


def _is_hub_name(text: str) -> bool:
    return bool(_HUB_NAME.match(text))


def build(command: str, values: Mapping[str, Any], *, job_dir: Path | None = None) -> Plan:
    """The command for a tool's values; nothing is written and nothing read but headers of models.

    Args:
        command: "tool:<name>".
        values: option key -> value; a missing key means the script's default.
        job_dir: folder of the job; a placeholder stands in the result if it is not known yet.

    Raises:
        UserError: naming the option, if no command can be made.
    """
    tool = find_tool(command)
    options = _options(tool, _given(tool, values))
    known = _of_script(tool.name)
    full = {key: options.get(key, option.default) for key, option in known.items()}
    flags: list[str] = []
    places: list[str] = []
    for key, option in known.items():
        if not option.flag:
            if key not in options:
                raise UserError(f"{option.label} is missing.", key, "Fill it in.")
            places.append(str(options[key]))
        elif key in options and options[key] != option.default and (option.when is None or option.when.holds(full)):
            flags += _flag(key, options[key])
    folder = str(job_dir) if job_dir is not None else "JOB_FOLDER"
    if tool.reports:
        flags.append(f"--json={Path(folder) / tool.reports}")
    script = tool.choose(values) if tool.choose else tool.script
    argv = [
        sys.executable,
        str(commands.PROJECT / script),
        "--job_dir",
        folder,
        *flags,
        *(["--", *places] if places else []),
    ]
    if any("\0" in part for part in argv):
        raise UserError("A text on the form holds a NUL character.", hint="Type it again.")
    env = launch_args.environment({"num_processes": 1}, commands.PROJECT, not machine.has_gpu())
    return Plan(command, argv, {}, "", env, [])


def _given(tool: Tool, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the form says, each value of its option's kind.

    Raises:
        UserError: naming the option, if it is none of this tool or the value is none of its.
    """
    known = _fields(tool.name)
    given: dict[str, Any] = {}
    for key, value in {**values, **tool.sent}.items():
        if key not in known:
            raise UserError(f"{key} is no option of {tool.title}.", key, nearest(key, known))
        if value is not None and value != "":
            given[key] = convert(known[key], value)
            if key in _ENDINGS:
                given[key] = caption_ending(str(given[key]), key)
            if key in tool.endings:
                given[key] = with_ending(tool, key, str(given[key]), values)
    return given


def _options(tool: Tool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the script."""
    known = _of_script(tool.name)
    options = {key: value for key, value in given.items() if key in known}
    if tool.into is not None:
        full = {key: given.get(key, option.default) for key, option in _fields(tool.name).items()}
        options |= tool.into(full)
    return {key: value for key, value in options.items() if value is not None}


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}"]
    if isinstance(value, list):
        if any(isinstance(item, str) and item.startswith("-") for item in value):
            raise UserError(f"{key} holds a word that begins with a hyphen, which would count as a flag.", key)
        return [f"--{key}", *map(str, value)]
    # one word, so that a text that begins with a hyphen is no flag
    return [f"--{key}={value}"]
