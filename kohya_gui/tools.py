"""The data scripts that the page runs as jobs: one record each, and the command that a form makes of it.

A new tool on the page is one more record in `TOOLS`.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from kohya_gui import command as commands
from kohya_gui import launch_args, machine
from kohya_gui.command import Plan
from kohya_gui.paths import Roots, caption_ending
from kohya_gui.phrases import phrase
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tools import GroupImagesOptions
from sd_scripts.schema.tools_captions import (
    Blip2CaptionOptions,
    BlipOptions,
    EditCaptionsOptions,
    GitOptions,
    TaggerOptions,
)

PREFIX = "tool:"
_HUB_NAME = re.compile(r"^[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*\Z", re.ASCII)
_ENDINGS = ("caption_ext", "caption_extension", "caption_extention", "extension")
_TAGGERS = tuple(
    f"SmilingWolf/{name}"
    for name in (
        "wd-v1-4-convnext-tagger-v2",
        "wd-v1-4-convnextv2-tagger-v2",
        "wd-v1-4-vit-tagger-v2",
        "wd-v1-4-swinv2-tagger-v2",
        "wd-v1-4-moat-tagger-v2",
        "wd-swinv2-tagger-v3",
        "wd-vit-tagger-v3",
        "wd-convnext-tagger-v3",
        "wd-eva02-large-tagger-v3",
    )
)


@dataclass(frozen=True)
class Tool:
    """One script as the page shows it.

    `keys` are the options on the form, in reading order; `start` what it opens with where that is not the script's own
    default, `sent` what is always given. `changes` describe options otherwise than the script does. A tool with `gpu`
    waits for trainings on the GPU. `folder` is the option that says where it works. In the texts of `blanks` blanks at
    the ends count.
    """

    name: str
    title: str
    does: str
    script: str
    section: type
    keys: tuple[str, ...]
    folder: str
    button: str = phrase("Start")
    gpu: bool = False
    start: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The name under which jobs know it."""
        return PREFIX + self.name


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "basic_caption",
            "Basic",
            "Write one caption for all pictures, add words to captions, or replace words in them.",
            "sd_scripts/tools/edit_captions.py",
            EditCaptionsOptions,
            ("images_dir", "caption_ext", "overwrite", "caption_text", "prefix", "postfix", "find_text", "replace_text",
             "recursive"),
            "images_dir",
            "Caption images",
            wide=("images_dir",),
            blanks=("find_text", "replace_text"),
        ),
        Tool(
            "blip_caption",
            "BLIP",
            "Describe every picture in a sentence by BLIP.",
            "sd_scripts/finetune/make_captions.py",
            BlipOptions,
            ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "batch_size", "beam_search",
             "num_beams", "top_p", "max_length", "min_length", "caption_weights", "recursive", "seed"),
            "train_data_dir",
            "Caption images",
            gpu=True,
            start={"caption_extension": ".txt", "beam_search": True},
            wide=("train_data_dir", "caption_weights"),
        ),
        Tool(
            "blip2_caption",
            "BLIP-2",
            "Describe every picture in a sentence by BLIP-2, which sees more and needs more memory.",
            "sd_scripts/finetune/make_captions_by_blip2.py",
            Blip2CaptionOptions,
            ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "do_sample", "num_beams",
             "repetition_penalty", "length_penalty", "temperature", "top_p", "min_new_tokens", "max_new_tokens",
             "batch_size", "model_id", "recursive", "seed"),
            "train_data_dir",
            "Caption images",
            gpu=True,
            wide=("train_data_dir", "model_id"),
        ),
        Tool(
            "git_caption",
            "GIT",
            "Describe every picture in a sentence by GIT.",
            "sd_scripts/finetune/make_captions_by_git.py",
            GitOptions,
            ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "batch_size",
             "max_data_loader_n_workers", "max_length", "model_id", "remove_words", "recursive"),
            "train_data_dir",
            "Caption images",
            gpu=True,
            start={"caption_extension": ".txt", "max_data_loader_n_workers": 2, "max_length": 75},
            wide=("train_data_dir", "model_id"),
        ),
        Tool(
            "wd14_caption",
            "WD14",
            "Write tags for every picture by a WD14 tagger.",
            "sd_scripts/finetune/tag_images_by_wd14_tagger.py",
            TaggerOptions,
            ("train_data_dir", "caption_extension", "caption_separator", "undesired_tags", "prefix", "postfix",
             "overwrite", "append_tags", "remove_underscore", "recursive", "debug", "frequency_tags", "repo_id",
             "force_download", "general_threshold", "character_threshold", "always_first_tags", "tag_replacement",
             "character_tag_expand", "character_tags_first", "use_rating_tags", "use_rating_tags_as_last_tag",
             "batch_size", "max_data_loader_n_workers", "model_dir"),
            "train_data_dir",
            "Caption images",
            gpu=True,
            start={
                "remove_underscore": True,
                "debug": True,
                "frequency_tags": True,
                "repo_id": "SmilingWolf/wd-v1-4-convnextv2-tagger-v2",
                "general_threshold": 0.35,
                "character_threshold": 0.35,
                "batch_size": 8,
                "max_data_loader_n_workers": 2,
            },
            sent={"onnx": True},
            changes={"repo_id": {"choices": _TAGGERS, "custom": True}},
            wide=("train_data_dir",),
            blanks=("caption_separator",),
        ),
        Tool(
            "group_images",
            "Group images",
            "Sort pictures by shape into groups of equal size and crop each group to one shape, so that batches are "
            "full.",
            "sd_scripts/tools/group_images.py",
            GroupImagesOptions,
            ("input_folder", "output_folder", "group_size", "include_subfolders", "do_not_copy_other_files", "pad",
             "caption", "caption_ext", "overwrite"),
            "output_folder",
            "Group images",
            start={"group_size": 4},
            wide=("input_folder", "output_folder"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Shelf:
    """One sub-tab with tools side by side on sub-tabs of its own, or a single one; `manual`: captions by hand, too."""

    name: str
    title: str
    tools: tuple[str, ...]
    manual: bool = False


SHELVES = (
    Shelf(
        "captioning",
        "Captioning",
        ("basic_caption", "blip_caption", "blip2_caption", "git_caption", "wd14_caption"),
        manual=True,
    ),
    Shelf("group", "Group images", ("group_images",)),
)


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
def _fields(name: str) -> Mapping[str, OptionField]:
    tool = TOOLS[name]
    return {option.key: replace(option, **tool.changes.get(option.key, {})) for option in section_fields(tool.section)}


def tool_fields(tool: Tool) -> Mapping[str, OptionField]:
    """The options on a tool's form, in reading order."""
    known = _fields(tool.name)
    return {key: replace(known[key], basic=True) for key in tool.keys}


def start_values(tool: Tool) -> dict[str, Any]:
    """What the form opens with."""
    return {key: tool.start.get(key, option.default) for key, option in tool_fields(tool).items()}


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
        if option.kind not in ("file", "folder", "model"):
            continue
        if value in (None, ""):
            if option.default is None and not option.optional:
                raise UserError(f"{option.label} is missing.", key, "Choose a folder.")
            continue
        if value == option.default or (option.kind == "model" and _is_hub_name(str(value))):
            continue
        made[key] = str(roots.inside(str(value), key))
    return made


def _is_hub_name(text: str) -> bool:
    return bool(_HUB_NAME.match(text))


def build(command: str, values: Mapping[str, Any], *, job_dir: Path | None = None) -> Plan:
    """The command for a tool's values; pure.

    Args:
        command: "tool:<name>".
        values: option key -> value; a missing key means the script's default.
        job_dir: folder of the job; a placeholder stands in the result if it is not known yet.

    Raises:
        UserError: naming the option, if no command can be made.
    """
    tool = find_tool(command)
    known = _fields(tool.name)
    given: dict[str, Any] = {}
    for key, value in {**values, **tool.sent}.items():
        if key not in known:
            raise UserError(f"{key} is no option of {tool.title}.", key, nearest(key, known))
        if value is not None and value != "":
            given[key] = convert(known[key], value)
            if key in _ENDINGS:
                given[key] = caption_ending(str(given[key]), key)
    full = {key: given.get(key, option.default) for key, option in known.items()}
    flags: list[str] = []
    places: list[str] = []
    for key, option in known.items():
        if not option.flag:
            if key not in given:
                raise UserError(f"{option.label} is missing.", key, "Fill it in.")
            places.append(str(given[key]))
        elif key in given and given[key] != option.default and (option.when is None or option.when.holds(full)):
            flags += _flag(key, given[key])
    folder = str(job_dir) if job_dir is not None else "JOB_FOLDER"
    argv = [sys.executable, str(commands.PROJECT / tool.script), "--job_dir", folder, *flags, "--", *places]
    env = launch_args.environment({"num_processes": 1}, commands.PROJECT, not machine.has_gpu())
    return Plan(command, argv, {}, "", env, [])


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}"]
    if isinstance(value, list):
        if any(str(item).startswith("-") for item in value):
            raise UserError(f"{key} holds a word that begins with a hyphen, which would count as a flag.", key)
        return [f"--{key}", *map(str, value)]
    # one word, so that a text that begins with a hyphen is no flag
    return [f"--{key}={value}"]
