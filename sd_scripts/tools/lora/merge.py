"""What all merging has in common: the networks with their strengths, and the checks before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora import block_weights

if TYPE_CHECKING:
    import torch

    from sd_scripts.networks.netfile import NetworkFile

ENDINGS = (".safetensors", ".ckpt", ".pt")
VERSIONS = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
NAMED = 5


@dataclass(frozen=True)
class Source:
    """A network to merge.

    Attributes:
        file: the network.
        ratio: its strength.
        blocks: strengths of the 26 blocks; None for 1 everywhere.
    """

    file: NetworkFile
    ratio: float
    blocks: Sequence[float] | None = None

    def strength(self, module: str) -> float:
        """Strength of one module."""
        if self.blocks is None:
            return self.ratio
        return self.ratio * self.blocks[block_weights.place_of(module)]

    def require_finite(self, module: str) -> None:
        """Raises UserError if a tensor of the module is not finite."""
        import torch

        for part, value in self.file.tensors(module).items():
            if value.is_floating_point() and not bool(torch.isfinite(value.float().sum())):
                name = self.file.stored_name(module, part)
                raise UserError(
                    f"{self.file.path}: {name} holds values that are not finite (NaN or infinity).",
                    "models",
                    "The network is damaged, or its training went wrong.",
                )


def number_format(name: str | None) -> torch.dtype | None:
    """torch's type for a number format of the command line; None for none."""
    import torch

    known = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, None: None}
    return known[name]


def sources_of(
    models: Sequence[str] | None, ratios: Sequence[float] | None, lbws: Sequence[str] | None = None
) -> list[Source]:
    """The networks of a command line, opened, with a strength each.

    Raises:
        UserError: there are none, one cannot be read, or the numbers of files and strengths differ.
    """
    paths = list(models or ())
    if not paths:
        raise UserError("models is missing.", "models", "Give --models and the networks to merge.")
    strengths = list(ratios or [1.0] * len(paths))
    if len(strengths) != len(paths):
        raise UserError(f"There are {len(strengths)} ratios for {len(paths)} networks.", "ratios", "Give one for each.")
    if not all(map(math.isfinite, strengths)):
        raise UserError("ratios has a number that is not finite.", "ratios")
    if lbws and len(lbws) != len(paths):
        raise UserError(f"There are {len(lbws)} lbws for {len(paths)} networks.", "lbws", "Give one for each.")
    blocks = [block_weights.parse(text) for text in lbws] if lbws else [None] * len(paths)

    from sd_scripts.networks.netfile import open_network

    found = []
    for path, ratio, weights in zip(paths, strengths, blocks):
        file = open_network(path, "models")
        found.append(Source(file, ratio, weights))
        kinds = ", ".join(file.kinds())
        by_block = "" if weights is None else ", with a strength for each block"
        say(f"{ratio:g} of {path} ({len(file.modules)} modules: {kinds}){by_block}")
        if file.others:
            say(f"left out of {path}: {listed(file.others, 'tensors')} that belong to no layer")
    return found


def target_file(text: str | None, overwrite: bool) -> Path:
    """The network file to write. Raises UserError if it is missing, of another format, or there already."""
    if not text:
        raise UserError("save_to is missing.", "save_to", "Give --save_to and the file to write.")
    target = Path(text)
    if target.suffix not in ENDINGS:
        raise UserError(f"save_to is {target}, but must end in {', '.join(ENDINGS)}.", "save_to")
    if target.is_dir():
        raise UserError(f"save_to is {target}, which is a folder.", "save_to", "Give a file.")
    refuse_existing([target], overwrite)
    return target


def listed(names: Sequence[str], what: str) -> str:
    """`12 layers (a, b, c, d, e ...)`."""
    more = " ..." if len(names) > NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:NAMED])}{more})"


def require_one_family(sources: Sequence[Source]) -> str:
    """The family that all networks are made for, "" where no file tells. Raises UserError if they differ."""
    told = {source.file.version: source.file.path for source in sources if source.file.version}
    if len(told) > 1:
        (first, one), (second, other) = list(told.items())[:2]
        raise UserError(
            f"{one} is made for {VERSIONS[first]}, but {other} for {VERSIONS[second]}.",
            "models",
            "Only networks for the same kind of model can be merged.",
        )
    return next(iter(told), "")


def note_contradiction(flag: str, given: bool, means: str, version: str, path: Path) -> None:
    """Say that a flag names another kind of model than the files; the files are right."""
    if given and version and version != means:
        say(f"note: {flag} was given, but {path} is for {VERSIONS[version]}; it is taken as that")
