"""Our own kinds of networks on small real models that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from network_kit import attached, family_of, model, output
from torch import Tensor, nn

from sd_scripts.families.base import Model
from sd_scripts.methods.base import freeze
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.networks.plugin import as_plugged

# Few layers of each part, where a network can be told so: quicker, and all that these tests ask for.
FEW = r"include_patterns=[r'.*mid(dle)?_block.*', r'.*input_blocks\.[13].*', r'.*layers\.0\..*']"
ARGUMENTS: dict[str, list[str]] = {
    "lora_fa": ["conv_dim=2"],
    "dylora": ["unit=2"],
    "oft": [],
    "loha": ["conv_dim=2", "use_tucker=True", FEW],
    "lokr": ["conv_dim=2", "conv_alpha=3", "factor=4", FEW],
}
KINDS = list(ARGUMENTS)
# Each kind on one family always, on the other with the slow tests.
ALWAYS = {"lora_fa": "sd1", "dylora": "sdxl", "oft": "sd1", "loha": "sdxl", "lokr": "sd1"}
PAIRS = [
    pytest.param(kind, version, marks=() if ALWAYS[kind] == version else pytest.mark.slow)
    for kind in KINDS
    for version in ("sd1", "sdxl")
]


def options(kind: str, **more: Any) -> dict[str, Any]:
    common = {"network_module": f"networks.{kind}", "network_dim": 4, "network_alpha": 2.0}
    return common | {"network_args": ARGUMENTS[kind]} | more


class Bases:
    """One small model of each family and its output, for all tests that leave its weights as they are."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Model, Tensor]] = {}

    def get(self, version: str) -> Model:
        return self._both(version)[0]

    def plain(self, version: str) -> Tensor:
        return self._both(version)[1]

    def _both(self, version: str) -> tuple[Model, Tensor]:
        if version not in self._made:
            base = model(version)
            freeze(base)
            self._made[version] = base, seen(base)
        return self._made[version]

    @contextmanager
    def network(self, version: str, checkpointing: bool = False, **more: Any) -> Iterator[NetworkMethod]:
        """A network in the model, and out of it again."""
        made = attached(self.get(version), checkpointing=checkpointing, **more)
        try:
            yield made
        finally:
            made.module.remove()

    def views(self, version: str) -> tuple[Any, nn.Module]:
        """Text encoder (or a list of them) and U-Net as a network gets them."""
        base = self.get(version)
        views = family_of(base).views(base)
        return as_plugged(views.text_encoders), views.unet


@torch.no_grad()
def seen(base: Model) -> Tensor:
    return output(base)


def filled(bases: Bases, version: str, kind: str, path: Path, **more: Any) -> Tensor:
    """A network full of random numbers, written to `path`; what the model puts out with it."""
    with bases.network(version, **options(kind, **more)) as made:
        torch.manual_seed(1)
        for name, parameter in made.module.named_parameters():
            if not (kind == "lora_fa" and "lora_down" in name):
                torch.nn.init.normal_(parameter, std={"oft": 0.05, "lora_fa": 0.2}.get(kind, 0.3))
        made.save(path, None, {"ss_v2": "False"})
        made.module.eval()
        return seen(bases.get(version))


def with_file(bases: Bases, version: str, **more: Any) -> Tensor:
    with bases.network(version, **more) as made:
        made.module.eval()
        return seen(bases.get(version))
