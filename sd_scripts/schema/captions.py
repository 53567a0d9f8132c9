"""Captions: reading a caption file and making the words of one training step from it.

All chance comes from the `random.Random` that is handed in, drawn in a fixed order: caption dropout, line, wildcards
from left to right, shuffle, one draw per tag for tag dropout, replacement.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_scripts.schema.errors import DataError
from sd_scripts.schema.filework import read_bytes

_WILDCARD = re.compile(r"\{([^}]+)\}")
_OPEN, _CLOSE = "\x02", "\x03"  # stand in for {{ and }}; control characters do not occur in captions


CHANGING = (
    "shuffle_caption",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_step",
    "enable_wildcard",
)
"""The options by which one caption becomes different words from use to use."""

Replacements = Sequence[tuple[str, str | Sequence[str]]]
"""Pairs of a text and what comes in its place: another text, or one drawn from several."""


@dataclass(frozen=True)
class CaptionRules:
    """What happens to a caption of one subset at each use.

    token_warmup_step: steps until all tags are used; below 1 it is a share of the whole training.
    The other names are those of the command line options.
    """

    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0

    @property
    def works_on_tags(self) -> bool:
        """Whether captions are split into tags at all; otherwise they stay as they are written."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0

    @property
    def changing(self) -> tuple[str, ...]:
        """Names of the options set here by which one caption becomes different words from use to use."""
        return tuple(name for name in CHANGING if getattr(self, name) > 0)

    @property
    def draws(self) -> bool:
        """Whether one caption can become different words from use to use."""
        return bool(self.changing)


@dataclass(frozen=True)
class Moment:
    """Where in the training a caption is used: epoch from 1, optimiser steps done, and steps in all."""

    epoch: int = 1
    step: int = 0
    max_steps: int = 0


def compose(
    caption: str,
    rules: CaptionRules,
    rng: random.Random,
    moment: Moment | None = None,
    replacements: Replacements = (),
) -> str:
    """The words for one use of a caption.

    replacements: applied last, in their order; "" stands for the whole caption. Where there are several texts to
    choose from, one is drawn for each use, whether the caption holds the old text or not. A caption that was dropped
    stays empty.
    """
    moment = moment or Moment()
    caption = " ".join(part for part in (rules.caption_prefix, caption, rules.caption_suffix) if part is not None)
    if _is_dropped(rules, rng, moment.epoch):
        return ""
    caption = _resolve_wildcards(caption, rng) if rules.enable_wildcard else caption.split("\n")[0]
    if rules.works_on_tags:
        caption = _rearrange(caption, rules, rng, moment)
    if rules.secondary_separator:
        caption = caption.replace(rules.secondary_separator, rules.caption_separator)
    return replace(caption, replacements, rng)


def replace(caption: str, replacements: Replacements, rng: random.Random) -> str:
    """A caption with other texts in the place of those named; see `compose`."""
    for old, new in replacements:
        chosen = new if isinstance(new, str) else rng.choice(new)
        caption = caption.replace(old, chosen) if old else chosen
    return caption


def _is_dropped(rules: CaptionRules, rng: random.Random, epoch: int) -> bool:
    by_chance = rules.caption_dropout_rate > 0 and rng.random() < rules.caption_dropout_rate
    every = rules.caption_dropout_every_n_epochs
    return by_chance or (every > 0 and epoch % every == 0)


def _resolve_wildcards(caption: str, rng: random.Random) -> str:
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    caption = caption.replace("{{", _OPEN).replace("}}", _CLOSE)
    caption = _WILDCARD.sub(lambda match: rng.choice(match.group(1).split("|")), caption)
    return caption.replace(_OPEN, "{").replace(_CLOSE, "}")


def _split(caption: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that move, tags that stay at the end."""
    comma, keep = rules.caption_separator, rules.keep_tokens_separator
    if keep and keep in caption:
        parts = caption.split(keep, 2)
        lists = [[tag.strip() for tag in part.split(comma) if tag.strip()] for part in parts]
        return lists[0], lists[1], lists[2] if len(lists) == 3 else []
    tags = [tag.strip() for tag in caption.strip().split(comma)]
    count = max(0, rules.keep_tokens)
    return tags[:count], tags[count:], []


def _rearrange(caption: str, rules: CaptionRules, rng: random.Random, moment: Moment) -> str:
    first, tags, last = _split(caption, rules)
    warmup = rules.token_warmup_step
    if warmup < 1:
        warmup = math.floor(warmup * moment.max_steps)
    if warmup and moment.step < warmup:
        least = rules.token_warmup_min
        tags = tags[: math.floor(moment.step * ((len(tags) - least) / warmup)) + least]
    if rules.shuffle_caption:
        rng.shuffle(tags)
    if rules.caption_tag_dropout_rate > 0:
        tags = [tag for tag in tags if rng.random() >= rules.caption_tag_dropout_rate]
    return ", ".join(first + tags + last)


def decode_caption(content: bytes, path: Path | str) -> str:
    """Text of a caption file: UTF-8 with or without byte order mark, or UTF-16 with one.

    Raises DataError naming the file for any other encoding; a guess would train on garbled words.
    """
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"the caption file {path} is not UTF-8 text (byte {error.start})",
            key="caption_extension",
            hint="Save it again as UTF-8.",
        ) from error


def caption_of(text: str, enable_wildcard: bool = False) -> str | None:
    """Caption in the text of a file: the first line, or with wildcards all lines that are not empty.

    None for a file without any text at all, so that the class words can be used.
    """
    if not text.strip():
        return "" if text else None
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    if enable_wildcard:
        return "\n".join(line for line in lines if line)
    return lines[0]


def read_caption(path: Path | str, enable_wildcard: bool = False) -> str | None:
    """Caption in a file, None if the file is empty. Raises DataError naming a file that cannot be read."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read the caption file {path}: {error.strerror or error}") from error
    return caption_of(decode_caption(content, path), enable_wildcard)


def count_tags(counts: Counter[str], caption: str, times: int = 1) -> None:
    """Add the tags of a caption to the counts: split at commas, lower case, without blanks and empty ones."""
    for tag in caption.split(","):
        tag = tag.strip().lower()
        if tag:
            counts[tag] += times
