"""The arguments of LyCORIS 4.1.3: which there are, which algorithm takes which, and what does not go together.

LyCORIS takes whatever it is given: it ignores names that it does not know and settings that the chosen algorithm has no
use for, and any text but "false" switches a switch on. Here they become values of their own types, and sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .suggest import near

ALGORITHMS = (
    "lora", "locon", "loha", "lokr", "ia3", "dylora", "glora", "diag-oft", "boft", "full", "tlora",
)  # fmt: skip
PRESETS = (
    "full", "full-lin", "attn-mlp", "attn-only", "unet-only", "unet-transformer-only", "unet-convblock-only", "ia3",
)  # fmt: skip
# These leave convolutions larger than 1x1 alone.
PRESETS_WITHOUT_CONVOLUTIONS = ("full-lin", "attn-mlp", "attn-only", "unet-transformer-only", "ia3")

_LOW_RANK = ("lora", "locon", "loha", "lokr")
_TURNED = ("diag-oft", "boft")
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
# switch -> the algorithms that have a use for it
_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "use_tucker": _LOW_RANK,
    "use_scalar": (*_LOW_RANK, "glora"),
    "rank_dropout_scale": (*_LOW_RANK, "glora", "full"),
    "train_norm": ALGORITHMS,
    "dora_wd": _LOW_RANK,
    "wd_on_output": _LOW_RANK,
    "bypass_mode": (*_LOW_RANK, "glora", "tlora"),
    "rs_lora": (*_LOW_RANK, "glora"),
    "decompose_both": ("lokr",),
    "full_matrix": ("lokr",),
    "unbalanced_factorization": ("lokr",),
    "rescaled": _TURNED,
    "train_on_input": ("ia3",),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "conv_dim": tuple(name for name in ALGORITHMS if name not in ("full", "ia3")),
    "conv_alpha": (*_LOW_RANK, "dylora", "glora", "tlora"),
    "dropout": ALGORITHMS,
    "rank_dropout": (*_LOW_RANK, "glora", "full", "diag-oft"),
    "module_dropout": ALGORITHMS,
    "factor": ("lokr",),
    "block_size": ("dylora",),
    "constraint": _TURNED,
    **dict.fromkeys(_PLUS, ("lora", "locon", "dylora")),
}
_WHOLE = ("conv_dim", "factor", "block_size")
_OLDER_NAMES = {"use_cp": "use_tucker", "use_conv_cp": "use_tucker", "constrain": "constraint"}
# What is known and means nothing for these models.
_OTHERS = ("algo", "preset", "neuron_dropout", "warn_on_unmatched", "train_t5xxl", "train_llm_adapter")
_NO, _YES = ("false", "0", "no", "off", "none", ""), ("true", "1", "yes", "on")
_DEFAULTS: Mapping[str, Any] = {"wd_on_output": True, "factor": -1, "block_size": 4}
_DYLORA_BLOCK = 4
# The U-Net's layers have 320, 640 ... outputs: a power of 2 times 10, the smallest even piece that BOFT can take.
_SMALLEST_BUTTERFLY = 10


@dataclass(frozen=True)
class Settings:
    """Arguments read: `values` has every switch and number (None: not given), `given` what stood in the arguments."""

    algo: str
    preset: str
    values: Mapping[str, Any]
    given: frozenset[str]
    unknown: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def ignored(self) -> list[str]:
        """Arguments that are switched on but that this algorithm has no use for."""
        uses = {**_SWITCHES, **_NUMBERS}
        return [
            key
            for key, algorithms in uses.items()
            if self.algo not in algorithms and key in self.given and self.values[key] not in (None, False, 0, -1)
        ]


def _switch(key: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in (*_NO, *_YES):
        raise UserError(f"LyCORIS' {key} is '{value}', but it is a switch.", "network_args", "Write True or False.")
    return text in _YES


def _number(key: str, value: Any) -> float | int | None:
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "none"):
        return None
    try:
        number = float(text)
        if key not in _WHOLE:
            return number
        if number != int(number):
            raise ValueError(text)
    except (ValueError, OverflowError) as error:
        whole = f"LyCORIS' {key} is '{value}', which is no whole number."
        sentence = whole if key in _WHOLE else f"LyCORIS' {key} is '{value}', which is no number."
        raise UserError(sentence, "network_args") from error
    return int(number)


def read_settings(arguments: Mapping[str, Any]) -> Settings:
    """The arguments as values of their own types, older names under the present ones.

    Raises:
        UserError: for an algorithm that does not exist, or a value that cannot be read.
    """
    algo = str(arguments.get("algo") or "lora").lower()
    if algo not in ALGORITHMS:
        raise UserError(f"LyCORIS has no algo '{algo}'.", "network_args", f"It has: {', '.join(ALGORITHMS)}.")
    values: dict[str, Any] = dict.fromkeys(_SWITCHES, False) | dict.fromkeys(_NUMBERS) | dict(_DEFAULTS)
    given = set()
    for name, value in arguments.items():
        key = _OLDER_NAMES.get(name, name)
        if name == "disable_conv_cp":
            key, value = "use_tucker", not _switch(name, value)
        if key in _SWITCHES:
            # of two names for one switch, either may switch it on
            on = _switch(name, value)
            values[key] = on or (key in given and values[key])
        elif key in _NUMBERS:
            number = _number(name, value)
            if number is None:
                continue
            values[key] = number
        else:
            continue
        given.add(key)
    known = {*_SWITCHES, *_NUMBERS, *_OTHERS, *_OLDER_NAMES, "disable_conv_cp"}
    unknown = tuple(name for name in arguments if name not in known)
    return Settings(algo, str(arguments.get("preset") or "full"), values, frozenset(given), unknown)


def bypassable(algo: str, decomposed: bool) -> bool:
    """Whether adding to the outputs does the same as adding to the weights."""
    return algo in _SWITCHES["bypass_mode"] and not decomposed


def refusal(settings: Settings, rank: int | None) -> tuple[str, str, str] | None:
    """Why these settings cannot be trained: the setting, the sentence and the way out; None where they can."""
    algo, values = settings.algo, settings.values
    if values["bypass_mode"] and values["dora_wd"]:
        return (
            "dora_wd",
            "LyCORIS leaves DoRA out where the weights are bypassed, but writes it into the file.",
            "Switch bypass_mode or dora_wd off.",
        )
    if values["bypass_mode"] and algo not in _SWITCHES["bypass_mode"]:
        return (
            "bypass_mode",
            f"With {algo}, bypassing the weights trains something else than what the file does when it is loaded.",
            "Switch bypass_mode off.",
        )
    for key in ("rank_dropout", "module_dropout", "dropout"):
        if not 0 <= (values[key] or 0) < 1:
            return key, f"LyCORIS' {key} is {values[key]:g}, but must be 0 or more and below 1.", "Take 0.1 to 0.3."
    conv_rank = values["conv_dim"]
    if algo == "dylora":
        block = values["block_size"] or _DYLORA_BLOCK
        wrong = next((number for number in (rank or _DYLORA_BLOCK, conv_rank or 0) if number % block), None)
        if wrong:
            return "block_size", f"DyLoRA splits a rank of {wrong} into blocks of {block}.", "Choose a multiple of it."
    if algo == "tlora" and settings.preset in PRESETS and settings.preset not in PRESETS_WITHOUT_CONVOLUTIONS:
        return (
            "preset",
            f"The algorithm tlora cannot train the convolutions of the preset {settings.preset}.",
            f"Choose one of the presets {', '.join(PRESETS_WITHOUT_CONVOLUTIONS[:4])}.",
        )
    return None


def butterfly_refusal(settings: Settings, rank: int | None) -> str:
    """Why BOFT cannot be trained on the U-Net of a full-size model at this rank; empty where it can."""
    ranks = [number for number in (rank, settings["conv_dim"]) if number]
    lowest = min(ranks, default=_SMALLEST_BUTTERFLY)
    if settings.algo != "boft" or settings.preset not in PRESETS or lowest >= _SMALLEST_BUTTERFLY:
        return ""
    return f"BOFT cannot split the layers of Stable Diffusion into pieces of {lowest}."


def remarks(settings: Settings, dropout: float | None) -> list[tuple[str, str]]:
    """What LyCORIS would ignore without a word, as (setting, sentence)."""
    algo, values = settings.algo, settings.values
    found = [(key, f"LyCORIS' {algo} has no use for {key}.") for key in settings.ignored if key != "dropout"]
    for name in settings.unknown:
        guess = near(name, [*_SWITCHES, *_NUMBERS])
        known = f"LyCORIS does not know {name}; perhaps {guess} is meant."
        found.append((name, known if guess else f"LyCORIS does not know {name}."))
    if (dropout or values["dropout"]) and not (values["bypass_mode"] and algo in _SWITCHES["bypass_mode"]):
        found.append(
            ("network_dropout", "LyCORIS applies network_dropout only with bypass_mode; take rank or module dropout.")
        )
    if values["use_tucker"] and algo in _LOW_RANK and settings.preset in PRESETS_WITHOUT_CONVOLUTIONS:
        found.append(("use_tucker", f"The preset {settings.preset} trains no convolution that Tucker could split."))
    if values["conv_dim"] and settings.preset in PRESETS_WITHOUT_CONVOLUTIONS and "conv_dim" not in settings.ignored:
        found.append(("conv_dim", f"The preset {settings.preset} trains no convolution larger than 1x1."))
    if settings.preset == "ia3" and algo != "ia3":
        found.append(("preset", f"The preset ia3 is made for the algorithm ia3, not for {algo}."))
    if algo == "tlora":
        found.append(
            ("algo", "The ranks of tlora are not masked by the noise here: all of them are trained at any time.")
        )
    return found
