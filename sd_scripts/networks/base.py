"""What every network shares: parameter groups, and reading weights.

Nothing here knows about a particular kind of network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sd_scripts.schema.errors import UserError


@dataclass
class ParameterGroup:
    """Parameters that are trained at one learning rate.

    `name` is shown to people (`unet`, `textencoder`, `unet_block4 plus`); `lr` None means the
    optimizer's own default rate. `extra` holds further optimizer settings that a plugin asked for.
    """

    name: str
    params: list[nn.Parameter]
    lr: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a weight file (safetensors, or a torch file without any code in it) onto the CPU.

    Raises UserError when the file is missing, damaged, or holds something else than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"The weight file '{file}' does not exist.", hint="Check the path.")
    try:
        if file.suffix == ".safetensors":
            return load_file(str(file), device="cpu")
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(f"The weight file '{file}' is damaged, or holds code instead of weights.") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"The weight file '{file}' cannot be read: {error}", hint="It may be damaged.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"'{file}' does not hold network weights (a table of named tensors was expected).")
    return content
