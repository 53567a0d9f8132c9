"""Reading the `network_args` of the networks that are related to networks.lora."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sd_scripts.networks.base import read_weights
from sd_scripts.schema.errors import UserError

logger = logging.getLogger(__name__)

BLOCK_RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
BLOCK_SIZES = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
CONVOLUTIONS = ("conv_dim", "conv_alpha")
DROPOUTS = ("rank_dropout", "module_dropout")
PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")

_WORDS = {"true": True, "1": True, "yes": True, "on": True}
_WORDS |= {"false": False, "0": False, "no": False, "off": False, "none": False, "": False}


def checked(
    arguments: Mapping[str, Any], module: str, known: Collection[str], idle: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments that count.

    Args:
        arguments: what was given; None counts as not given.
        module: the network's name, for the message.
        known: what it takes.
        idle: what it leaves aside, with a warning.

    Raises:
        UserError: for an argument that is neither.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    # `stand_in_dropout` looks at this one.
    given.pop("dropout", None)
    for key in list(given):
        if key in idle:
            logger.warning("network_args %s has no effect on %s.", key, module)
            del given[key]
        elif key not in known:
            near = difflib.get_close_matches(key, list(known), 1)
            raise UserError(
                f"network_args has '{key}', which {module} does not know.",
                key,
                hint=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}.",
            )
    return given


def stand_in_dropout(
    arguments: Mapping[str, Any], module: str, network_dropout: float | None, counts: bool = False
) -> float | None:
    """The dropout: `network_dropout`, or where that is not given, perhaps a `dropout` among the arguments.

    Args:
        arguments: among which the trainer puts network_dropout as well.
        module: the network's name, for the warning that its `dropout` has no effect.
        network_dropout: the option.
        counts: whether `dropout` counts for this network.

    Raises:
        UserError: for a `dropout` that is no number.
    """
    value = arguments.get("dropout")
    if network_dropout is not None or value is None:
        return network_dropout
    if not counts:
        logger.warning("%s leaves network_args dropout aside; network_dropout is the option.", module)
        return None
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"network_args dropout must be a number, not '{value}'.", "dropout") from error


def switch(arguments: Mapping[str, Any], key: str) -> bool:
    """An argument that is on or off; "False" is off. Raises UserError for any other word."""
    value = arguments.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise UserError(f"network_args {key} must be True or False, not '{value}'.", key)
    return found


def whole_number(arguments: Mapping[str, Any], key: str, default: int, minimum: int) -> int:
    """A whole number of at least `minimum`. Raises UserError otherwise."""
    value = arguments.get(key)
    try:
        number = default if value is None else int(value)
    except ValueError as error:
        raise UserError(f"network_args {key} must be a whole number, not '{value}'.", key) from error
    if number < minimum:
        raise UserError(f"network_args {key} must be at least {minimum}, not {number}.", key)
    return number


def given_weights(file: str | Path | None, weights: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights handed over, or else those in the file."""
    if weights is not None:
        return weights
    if file is None:
        raise ValueError("either a file or its weights are needed")
    return read_weights(file)
