"""Rules over the network: its kind, its size, and settings that do not go together."""

import math

from .finding import Finding, Rule, Values, error, rule, warning

_OTHER_MODELS = (
    "networks.lora_sd3", "networks.lora_flux", "networks.oft_flux", "networks.lora_lumina",
    "networks.lora_hunyuan_image", "networks.lora_anima",
)  # fmt: skip
_CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")
# how many numbers a list for blocks holds: Stable Diffusion 1 and 2, SDXL
_BLOCKS = {False: 25, True: 23}
_SIDE_BLOCKS = {False: 12, True: 9}
_BLOCK_NUMBERS = {"block_dims": int, "block_alphas": float, "conv_block_dims": int, "conv_block_alphas": float}
_MIDDLE_BLOCKS = {False: 1, True: 3}


@rule("network_module", "LoRA_type")
def network_module(values: Values) -> Finding | None:
    """There is a network module that this program has."""
    module = values["network_module"]
    if not module:
        return error("network_module", "The network module is missing.", "networks.lora is the usual LoRA.")
    if module in _OTHER_MODELS:
        return error(
            "network_module",
            f"{module} is for another family of models.",
            "networks.lora and lycoris.kohya work with Stable Diffusion.",
        )
    return None


@rule("dim_from_weights")
def rank_from_file(values: Values) -> Finding | None:
    """The rank can only come from a file that is given."""
    if values["dim_from_weights"] and not values["network_weights"]:
        return error(
            "dim_from_weights",
            "There is no LoRA file to take the rank from.",
            "Give network_weights, or switch this off.",
        )
    return None


@rule("base_weights")
def merged_strengths(values: Values) -> Finding | None:
    """Not more strengths than files."""
    files, strengths = values["base_weights"] or [], values["base_weights_multiplier"] or []
    if len(strengths) > len(files):
        return error(
            "base_weights_multiplier",
            f"There are {len(strengths)} strengths for {len(files)} LoRAs merged first.",
            "Give one for each.",
        )
    return None


@rule("network_alpha")
def strong_alpha(values: Values) -> Finding | None:
    """An alpha above the rank strengthens the network."""
    rank, alpha = values["network_dim"], values["network_alpha"]
    if values["network_module"] == "networks.oft":
        # there alpha is how far the blocks may turn
        return None
    if not rank or values.get("dim_from_weights"):
        return None
    root = math.sqrt(rank)
    if values.get("rs_lora") and alpha > root:
        return warning(
            "network_alpha",
            f"With rsLoRA, alpha {alpha:g} at rank {rank} makes the network learn {alpha / root:.3g} times as fast.",
            f"Alpha {root:.3g} or half of it is as strong as the usual ones without rsLoRA.",
        )
    if alpha > rank:
        return warning(
            "network_alpha",
            f"Alpha {alpha:g} above rank {rank} makes the network learn {alpha / rank:g} times as fast.",
            "The rank or half of it is usual.",
        )
    return None


@rule("block_dims")
def block_lists(values: Values) -> Finding | None:
    """Lists for blocks hold one number for each block."""
    blocks, sides = _BLOCKS[values["sdxl"]], _SIDE_BLOCKS[values["sdxl"]]
    for key in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
        if values[key] and len(_numbers(values[key])) != blocks:
            return error(
                key, f"{key} holds {len(_numbers(values[key]))} numbers, but must hold {blocks}, separated by commas."
            )
    for key in ("down_lr_weight", "up_lr_weight"):
        if values[key] and not _is_curve(values[key]) and len(_numbers(values[key])) != sides:
            return warning(
                key,
                f"{key} holds {len(_numbers(values[key]))} numbers instead of {sides}; missing ones count as 1, "
                "those beyond are left out.",
            )
    return None


@rule("block_dims", "mid_lr_weight")
def block_numbers(values: Values) -> Finding | None:
    """Lists for blocks are made of numbers, those of rates may be a curve."""
    for key, kind in _BLOCK_NUMBERS.items():
        if values[key] and not all(_is(kind, item) for item in _numbers(values[key])):
            if kind is int:
                return error(key, f"{key} must be whole numbers, separated by commas.")
            return error(key, f"{key} must be numbers, separated by commas.")
    for key in ("down_lr_weight", "up_lr_weight", "mid_lr_weight"):
        items = [] if not values[key] or _is_curve(values[key]) else _numbers(values[key])
        alone = len(items) == 1 and key != "mid_lr_weight"
        if alone or not all(_is(float, item) for item in items if item.strip()):
            if key == "mid_lr_weight":
                return error(key, f"{key} must be numbers, separated by commas.")
            hint = f"Curves are {', '.join(_CURVES)}, also with +0.25 behind them."
            return error(key, f"{key} must be numbers, separated by commas, or a curve.", hint)
    return None


@rule("mid_lr_weight")
def middle_rates(values: Values) -> Finding | None:
    """The middle of the U-Net is one block, or three in SDXL."""
    text, wanted = values["mid_lr_weight"], _MIDDLE_BLOCKS[values["sdxl"]]
    if text and len(_numbers(text)) > wanted:
        return warning(
            "mid_lr_weight",
            f"mid_lr_weight holds {len(_numbers(text))} numbers instead of {wanted}; the rest is left out.",
        )
    return None


@rule("unit", "LoRA_type")
def whole_units(values: Values) -> Finding | None:
    """DyLoRA trains ranks in groups of one size."""
    unit, rank = values["unit"], values["network_dim"]
    if values["LoRA_type"] == "Kohya DyLoRA" and unit and rank and rank % unit:
        return error(
            "unit",
            f"Rank {rank} is no multiple of the DyLoRA block size {unit}.",
            "Choose a block size that divides the rank.",
        )
    return None


@rule("network_module", "network_train_text_encoder_only")
def nothing_for_words(values: Values) -> Finding | None:
    """OFT turns layers of the U-Net only."""
    if values["network_module"] == "networks.oft" and values["network_train_text_encoder_only"]:
        return error(
            "network_train_text_encoder_only",
            "Kohya's OFT trains only the U-Net, so there is nothing to train in the text encoder.",
            "Switch this off, or choose another LoRA type.",
        )
    return None


@rule("init_lora_weights", "dim_from_weights")
def principal_start_from_file(values: Values) -> Finding | None:
    """PiSSA takes its ranks from the base model's weights, not from a file."""
    if values["init_lora_weights"] == "pissa" and values["dim_from_weights"]:
        return error(
            "dim_from_weights",
            "PiSSA cannot take its rank from a file, where every rank stands twice.",
            "Give the rank that the file was trained with, or start in the usual way.",
        )
    return None


@rule("init_lora_weights", "scale_weight_norms")
def principal_start_and_norms(values: Values) -> Finding | None:
    """With PiSSA the matrices hold part of the base model, which must not shrink."""
    if values["init_lora_weights"] == "pissa" and values["scale_weight_norms"]:
        return error(
            "scale_weight_norms",
            "Weight norms cannot be limited with PiSSA, whose matrices start as part of the base model.",
            "Switch one of both off.",
        )
    return None


@rule("rs_lora", "dim_from_weights")
def stabilised_rank_from_file(values: Values) -> Finding | None:
    """A file's alpha belongs to its weights, however it was made."""
    if values["rs_lora"] and values["dim_from_weights"]:
        return warning(
            "rs_lora", "With ranks from a file its alpha counts as well, so rsLoRA has no effect.", "Switch one off."
        )
    return None


def _is(kind: type[int] | type[float], text: str) -> bool:
    try:
        return math.isfinite(kind(text))
    except ValueError:
        return False


def _is_curve(text: str) -> bool:
    return text.split("+")[0].strip() in _CURVES


def _numbers(text: str) -> list[str]:
    return text.split(",")


RULES: tuple[Rule, ...] = (
    network_module, rank_from_file, merged_strengths, strong_alpha, block_lists, block_numbers, middle_rates,
    whole_units, nothing_for_words, principal_start_from_file, principal_start_and_norms, stabilised_rank_from_file,
)  # fmt: skip
