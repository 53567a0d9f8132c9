"""Kinds of data set, and which of them each trainer takes."""

from typing import Literal

Kind = Literal["dreambooth", "finetune", "controlnet"]
ALL_KINDS: tuple[Kind, ...] = ("dreambooth", "finetune", "controlnet")

_ONE_KIND: dict[str, Kind] = {
    "train_db": "dreambooth",
    "fine_tune": "finetune",
    "train_controlnet": "controlnet",
    "sdxl_train_control_net_lllite": "controlnet",
    "sdxl_train_control_net_lllite_old": "controlnet",
}
_WITHOUT_DROPOUT = ("train_textual_inversion", "train_textual_inversion_XTI", "sdxl_train_textual_inversion")


def supported_kinds(command: str, masks: bool = False) -> tuple[Kind, ...]:
    """Kinds of data set that a command trains on; with a masked loss also those with a mask for every picture."""
    one = _ONE_KIND.get(command)
    if one in ("finetune", "controlnet"):
        return (one,)
    kinds: tuple[Kind, ...] = (one,) if one else ("dreambooth", "finetune")
    return (*kinds, "controlnet") if masks else kinds


def supports_caption_dropout(command: str) -> bool:
    """Whether a command may drop captions; what a new word means is not learned without the word."""
    return command not in _WITHOUT_DROPOUT
