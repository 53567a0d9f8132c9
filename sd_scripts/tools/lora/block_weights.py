"""Strengths by block, as they are written for networks: 12, 17, 20 or 26 numbers.

The 26 places are the text encoders, the blocks IN00 to IN11, the middle, and OUT00 to OUT11. Lists of 17 (Stable
Diffusion 1 and 2) and 12 (SDXL) leave out the blocks that plain LoRA does not train; 20 is all that SDXL has.
"""

from __future__ import annotations

import json
import math
import re

from sd_scripts.schema.errors import UserError

PLACES = 26
_MIDDLE, _FIRST_OUT = 13, 14
TARGETS: dict[int, tuple[int, ...]] = {
    12: (0, 5, 6, 8, 9, *range(13, 20)),
    17: (0, 2, 3, 5, 6, 8, 9, 13, *range(17, 26)),
    20: (*range(10), *range(13, 23)),
    26: tuple(range(PLACES)),
}
_DIFFUSERS = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(?:resnets|attentions|downsamplers|upsamplers)_(\d+)")
_SGM = re.compile(r"lora_unet_(input_blocks|output_blocks)_(\d+)")
_FIRST = ("lora_unet_conv_in", "lora_unet_time_embed", "lora_unet_label_emb")
_LAST_SD = ("lora_unet_conv_norm_out", "lora_unet_conv_out")


def place_of(module: str) -> int:
    """The place of a module, by kohya's name, in a list of 26.

    Raises:
        UserError: the name belongs to no block.
    """
    found = _SGM.match(module)
    if found:
        return (1 if found[1] == "input_blocks" else _FIRST_OUT) + int(found[2])
    found = _DIFFUSERS.match(module)
    if found:
        direction, block, item = found[1], int(found[2]), int(found[3])
        # three places a block; the way down begins with conv_in
        sampler = "samplers_" in module
        place = 3 * block + (2 if sampler else item)
        return place + 2 if direction == "down" else place + _FIRST_OUT
    if module.startswith("lora_te"):
        return 0
    if module.startswith(("lora_unet_mid_block", "lora_unet_middle_block")):
        return _MIDDLE
    if module.startswith(_FIRST):
        return 1
    if module.startswith("lora_unet_out_"):
        return _FIRST_OUT + 9
    if module.startswith(_LAST_SD):
        return PLACES - 1
    raise UserError(f"{module} lies in no block that a strength could be given for.", "lbws")


def parse(text: str) -> list[float]:
    """A list of strengths, as JSON or as numbers with commas, brought to 26 places; what it leaves out is 1.

    Raises:
        UserError: it is no list of numbers, or of no known length.
    """
    inner = text.strip()
    try:
        values = json.loads(inner if inner.startswith("[") else f"[{inner}]")
        numbers = [float(value) for value in values]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"lbws has {text!r}, which is no list of numbers.", "lbws", "Write it as [1,0,0.5,...]."
        ) from error
    if len(numbers) not in TARGETS or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"lbws has a list of {len(numbers)} numbers.",
            "lbws",
            "Give 12 (SDXL), 17, 20 (SDXL) or 26 finite numbers for each network.",
        )
    weights = [1.0] * PLACES
    for place, number in zip(TARGETS[len(numbers)], numbers):
        weights[place] = number
    return weights
