"""A tuned model beside an original one, and what lies in network files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PARTS = ("unet", "text_encoder", "text_encoder_2")
Change = Callable[[str, Tensor], Tensor]


def tuned_folder(source: Path, target: Path, change: Change) -> Path:
    """A copy of a diffusers folder whose weights `change(part/name, weight)` has made anew."""
    shutil.copytree(source, target, copy_function=os.link)
    for part in PARTS:
        for file in (target / part).glob("*.safetensors"):
            weights = {name: change(f"{part}/{name}", value) for name, value in load_file(file).items()}
            file.unlink()
            save_file(weights, file, {"format": "pt"})
    return target


def noise(size: float, *, seed: int = 0, but: str = "nothing") -> Change:
    """Normal noise on all floating point weights but those whose name has `but` in it."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, weight: Tensor) -> Tensor:
        if but in name or not weight.is_floating_point():
            return weight
        return weight + size * torch.randn(weight.shape, generator=generator)

    return change


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Module -> its tensors, and the metadata of a .safetensors file."""
    modules: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        names: list[str] = list(file.keys())
        for name in names:
            module, _, part = name.partition(".")
            modules.setdefault(module, {})[part] = file.get_tensor(name)
        return modules, dict(file.metadata() or {})


def effect(module: dict[str, Tensor]) -> Tensor:
    """alpha / rank x up x down of a LoRA module in float64, as a matrix."""
    up, down = (module[f"lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    return up @ down * (float(module["alpha"]) / down.shape[0])


def from_recipe(lines: list[str]) -> dict[str, Tensor]:
    """`name=torch.randn(2, 3)*0.1` -> tensors, the seed in the first line."""
    made: dict[str, Any] = {}
    for line in lines:
        if line.startswith("torch.manual_seed("):
            torch.manual_seed(int(line.removeprefix("torch.manual_seed(").rstrip(")")))
            continue
        name, _, text = line.partition("=")
        shape, _, factor = text.removeprefix("torch.randn(").partition(")")
        made[name] = torch.randn(*map(int, shape.split(","))) * float(factor.lstrip("*") or 1)
    return made
