"""Paths in the form that the page may not touch, and where relative ones start."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kohya_gui import findings, launch_args
from kohya_gui.command import PROJECT
from kohya_gui.hub_cache import is_hub_id
from kohya_gui.paths import Roots
from kohya_gui.problem import Problem
from sd_scripts.schema.errors import UserError

_LISTS = ("base_weights",)
# "name=value" items: a value that says a place by its form is held to the allowed folders as well
_ARGUMENTS = ("network_args", "optimizer_args", "lr_scheduler_args")
_PLACE = re.compile(r"[/\\~]|[A-Za-z]:|.*(?:^|[/\\])\.\.(?:[/\\]|$)")
# control pictures of sample prompts: in lines, and in files of tables
_CONTROL = re.compile(
    r"""--cn[ \t]+(.+?)[ \t]*(?=\s--|$)|"?controlnet_image"?\s*[=:]\s*(?:"([^"\n]+)"|'([^'\n]+)')""", re.MULTILINE
)
_MOST_PROMPTS = 1_000_000
_LAUNCH_PATHS = ("--config_file", "--log_dir", "--deepspeed_config_file", "--deepspeed_hostfile")
_LONGEST_NAME, _LONGEST_PATH = 255, 4096


def refused(values: Mapping[str, Any], keys: tuple[str, ...], roots: Roots | None) -> dict[str, Problem]:
    """Paths outside the allowed folders or longer than any file system takes, by option; not looked at any further."""
    found = findings.outside(values, keys, roots)
    for key in keys:
        text = values.get(key)
        if isinstance(text, str) and key not in found and _too_long(text):
            found[key] = Problem("error", key, "The path is longer than a path can be.", "Type it again.")
    for key, path in (*_in_lists(values), *_in_prompts(values, roots)):
        found |= {k: replace(p, key=key) for k, p in findings.outside({key: path}, (key,), roots).items()}
    return found | _launch(values, roots)


def _in_lists(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Option and path for every path in an option that takes several things."""
    for key in _LISTS:
        yield from ((key, str(path)) for path in values.get(key) or [])
    for key in _ARGUMENTS:
        given = (str(item).partition("=")[2].strip().strip("\"'") for item in values.get(key) or [])
        yield from ((key, path) for path in given if _PLACE.match(path))


def _in_prompts(values: Mapping[str, Any], roots: Roots | None) -> Iterator[tuple[str, str]]:
    """Option and path for every control picture that sample prompts name."""
    texts = {"sample_prompt_text": str(values.get("sample_prompt_text") or "")}
    file = str(values.get("sample_prompts") or "")
    if file and roots is not None and roots.allows(file):
        try:
            with Path(PROJECT, file).open("rb") as opened:
                texts["sample_prompts"] = opened.read(_MOST_PROMPTS).decode("utf-8", "replace")
        except (OSError, ValueError):
            pass  # said where the run's files are looked at
    for key, text in texts.items():
        for parts in _CONTROL.findall(text):
            path = "".join(parts)
            # the trainer starts at the project's folder
            yield key, path if _PLACE.match(path) else str(PROJECT / path)


def _too_long(text: str) -> bool:
    parts = text.replace("\\", "/").split("/")
    return len(os.fsencode(text)) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts)


def _launch(values: Mapping[str, Any], roots: Roots | None) -> dict[str, Problem]:
    key = "extra_accelerate_launch_args"
    try:
        words = launch_args.extra_arguments(values.get(key))
    except UserError:
        # said where the command is built
        return {}
    found: dict[str, Problem] = {}
    for flag, path in zip(words, words[1:]):
        if flag in _LAUNCH_PATHS:
            found |= findings.outside({key: path}, (key,), roots)
    return found


def absolute(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The values with relative paths starting where the trainer runs, in the project's folder."""
    moved = dict(values)
    for key in keys:
        text = values.get(key)
        if not isinstance(text, str) or not text or os.path.isabs(text) or text[0] == "~" or "://" in text:
            continue
        if os.path.exists(PROJECT / text) or not is_hub_id(text):
            moved[key] = str(PROJECT / text)
    return moved
