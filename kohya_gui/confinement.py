"""Paths in the form that the page may not touch, and where relative ones start."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kohya_gui import findings, launch_args
from kohya_gui.command import PROJECT
from kohya_gui.paths import Roots
from kohya_gui.problem import Problem
from sd_scripts.schema.errors import UserError

_LISTS = ("base_weights",)
_LAUNCH_PATHS = ("--config_file", "--log_dir", "--deepspeed_config_file", "--deepspeed_hostfile")
_LONGEST_NAME, _LONGEST_PATH = 255, 4096


def refused(values: Mapping[str, Any], keys: tuple[str, ...], roots: Roots | None) -> dict[str, Problem]:
    """Paths outside the allowed folders or longer than any file system takes, by option; not looked at any further."""
    found = findings.outside(values, keys, roots)
    for key in keys:
        text = values.get(key)
        if isinstance(text, str) and key not in found and _too_long(text):
            found[key] = Problem("error", key, "The path is longer than a path can be.", "Type it again.")
    for key in _LISTS:
        for path in values.get(key) or []:
            found |= {k: replace(p, key=key) for k, p in findings.outside({key: path}, (key,), roots).items()}
    return found | _launch(values, roots)


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
        if os.path.exists(PROJECT / text) or not findings.is_hub_id(text):
            moved[key] = str(PROJECT / text)
    return moved
