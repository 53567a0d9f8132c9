"""Reading the few options whose text holds several values."""

from collections.abc import Mapping
from typing import Any

from .errors import UserError
from .full import BLOCK_RATES

_BLOCKS_HINT = (
    "Give 23 with commas: embeddings, 9 blocks going down, 3 in the middle, 9 going up, the last layers; 0 leaves a "
    "part as it is."
)


def parse_resolution(text: str) -> tuple[int, int]:
    """Width and height in pixels from "512", "512,768" or "512x768".

    Raises:
        UserError: if the text is none of these.
    """
    parts = [part.strip() for part in str(text).lower().replace("x", ",").split(",") if part.strip()]
    if len(parts) not in (1, 2) or not all(map(_is_side, parts)):
        raise UserError(
            f"resolution is {text!r}, but must be one number or width,height in pixels.",
            "resolution",
            "For instance 512 or 512,768.",
        )
    return int(parts[0]), int(parts[-1])


def _is_side(text: str) -> bool:
    # seven digits are far beyond any picture, and Python refuses to read thousands of them
    return text.isdecimal() and len(text) < 8 and int(text) > 0


def parse_face_crop_range(text: str | None) -> tuple[float, float] | None:
    """Smallest and largest enlargement from "2.0,4.0"; None if not given.

    Raises:
        UserError: if the text is not two numbers in ascending order.
    """
    if not text:
        return None
    key = "face_crop_aug_range"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{key} is {text!r}, but must be two numbers.", key, "For instance 2.0,4.0.") from error
    if not 0 < low <= high:
        raise UserError(f"{key} is {text!r}, but the first number must be above 0 and not larger than the second.", key)
    return low, high


def parse_block_rates(text: str) -> list[float]:
    """The 23 learning rates of "1e-5,1e-5,..."; none for the empty text.

    Raises:
        UserError: for another number of them, or for one that is no number of 0 or more.
    """
    if not text.strip():
        return []
    key = "block_lr"
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError as error:
            raise UserError(f"block_lr holds {part.strip()!r}, which is no number.", key, _BLOCKS_HINT) from error
        if not 0 <= rate < float("inf"):
            raise UserError(f"block_lr holds {part.strip()}, but a learning rate is 0 or more.", key)
        rates.append(rate)
    if len(rates) != BLOCK_RATES:
        raise UserError(
            f"block_lr holds {len(rates)} numbers, but the U-Net has {BLOCK_RATES} parts.", key, _BLOCKS_HINT
        )
    return rates


def trains_text_encoder(values: Mapping[str, Any]) -> bool:
    """Whether a trainer of the whole model trains the text encoder too.

    train_db says so by stop_text_encoder_training, the others by train_text_encoder; `values` holds the options that
    the command offers.
    """
    if "stop_text_encoder_training" in values:
        stop = values["stop_text_encoder_training"]
        return stop is None or stop >= 0
    return bool(values["train_text_encoder"])
