"""Choosing layers by regular expressions, with ranks and learning rates of their own, for LoHa and LoKr.

A pattern has to match the whole of a layer's name, either its path in the model (`...attn1.to_q`, with points) or its
name in the file (`lora_unet_...attn1_to_q`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sd_scripts.networks.lora_arguments import LoRASizes
from sd_scripts.schema.errors import UserError

KNOWN = ("exclude_patterns", "include_patterns", "network_reg_dims", "network_reg_lrs")
Pattern = re.Pattern[str]
Size = tuple[int, float]


@dataclass(frozen=True)
class LayerChoice:
    """Which layers are taken, and what is said of some of them. Of several patterns that match, the first counts."""

    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    dims: tuple[tuple[Pattern, int], ...] = ()
    rates: tuple[tuple[Pattern, float], ...] = ()

    def takes(self, names: tuple[str, ...]) -> bool:
        """Whether the layer with these names gets a module."""
        if self.include and not any(_matches(pattern, names) for pattern in self.include):
            return False
        return not any(_matches(pattern, names) for pattern in self.exclude)

    def dim(self, names: tuple[str, ...], usual: int) -> int:
        """The rank of the layer with these names."""
        return next((dim for pattern, dim in self.dims if _matches(pattern, names)), usual)

    def rate(self, names: tuple[str, ...]) -> float | None:
        """The learning rate of the layer with these names, or None where nothing is said of it."""
        return next((rate for pattern, rate in self.rates if _matches(pattern, names)), None)


@dataclass(frozen=True)
class ChosenSizes(LoRASizes):
    """Rank and alpha of chosen layers; `paths` leads from a layer's name in the file to that in the model."""

    choice: LayerChoice = field(default_factory=LayerChoice)
    paths: dict[str, str] = field(default_factory=dict)

    def names(self, name: str) -> tuple[str, ...]:
        """Both names of a layer."""
        return (name, self.paths.get(name, name))

    def of(self, name: str, layer: nn.Module, in_unet: bool) -> Size | None:
        """(rank, alpha) for this layer, or None when it gets no module. A file has chosen already."""
        size = super().of(name, layer, in_unet)
        if size is None or self.by_name is not None:
            return size
        names = self.names(name)
        return (self.choice.dim(names, size[0]), size[1]) if self.choice.takes(names) else None


def read_choice(arguments: Mapping[str, Any]) -> LayerChoice:
    """The choice that the arguments make. Raises UserError for what cannot be read."""
    return LayerChoice(
        include=_patterns(arguments, "include_patterns"),
        exclude=_patterns(arguments, "exclude_patterns"),
        dims=tuple((pattern, int(number)) for pattern, number in _pairs(arguments, "network_reg_dims", True)),
        rates=tuple(_pairs(arguments, "network_reg_lrs", False)),
    )


def _matches(pattern: Pattern, names: tuple[str, ...]) -> bool:
    return any(pattern.fullmatch(name) for name in names)


def _compiled(key: str, text: str) -> Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"network_args {key}: '{text}' is no regular expression ({error}).", key) from error


def _patterns(arguments: Mapping[str, Any], key: str) -> tuple[Pattern, ...]:
    """A list in brackets with quoted patterns, or one pattern as it is."""
    text = str(arguments.get(key) or "").strip()
    if not text:
        return ()
    texts: Any = [text]
    if text.startswith("["):
        try:
            texts = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            texts = None
        if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
            raise UserError(f"network_args {key} must be a list such as [r'.*attn1.*'], not '{text}'.", key)
    return tuple(_compiled(key, item) for item in texts)


def _pairs(arguments: Mapping[str, Any], key: str, whole: bool) -> list[tuple[Pattern, float]]:
    """`pattern=number`, separated by commas."""
    found: list[tuple[Pattern, float]] = []
    for part in filter(None, (part.strip() for part in str(arguments.get(key) or "").split(","))):
        pattern, equals, number = part.rpartition("=")
        try:
            value = int(number) if whole else float(number)
        except ValueError:
            value = -1
        if not equals or value < 0 or (whole and value < 1):
            kind = "a rank" if whole else "a rate"
            raise UserError(f"network_args {key}: '{part}' is not of the form pattern={kind}.", key)
        found.append((_compiled(key, pattern), value))
    return found
