"""The control picture of a sample prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sd_scripts.data.image import load_picture, to_tensor
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.errors import UserError


def read_control_picture(prompt: SamplePrompt) -> Tensor | None:
    """[1, 3, H, W] in -1..1 in the size of the prompt's picture; None where the prompt names none.

    Raises:
        UserError: the file is missing or no picture.
    """
    if not prompt.controlnet_image:
        return None
    path = Path(prompt.controlnet_image)
    if not path.is_file():
        raise UserError(
            f"There is no control picture '{path}'.", "sample_prompts", "Write --cn with the path of a picture file."
        )
    pixels = load_picture(path).pixels
    if pixels.shape[:2] != (prompt.height, prompt.width):
        resized = Image.fromarray(pixels).resize((prompt.width, prompt.height), Image.Resampling.LANCZOS)
        pixels = np.array(resized)
    return to_tensor(pixels)[None]


def repeat_to(tensor: Tensor, batch: int) -> Tensor:
    """[1, ...] -> [batch, ...]: guidance computes the negative prompt and the prompt at once."""
    return tensor.expand(batch, *tensor.shape[1:])
