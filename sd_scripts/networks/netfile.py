"""Network files (LoRA, LyCORIS, OFT) read module by module, whatever names they use.

A module goes by kohya's name of the layer that it belongs to (`lora_unet_down_blocks_0_..._to_q`), its tensors by what
stands behind it (`lora_up.weight`, `alpha`). Names of diffusers and PEFT are turned into kohya's, and the U-Net names
that diffusers uses for SDXL into those of the original layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sd_scripts.networks.changes import Misfit, kind_of
from sd_scripts.networks.names import PEFT_TENSORS, TEXT_ENCODER_2, kohya_key, layer_of, sgm_name
from sd_scripts.schema.errors import UserError
from sd_scripts.tensormap import MappedTensors, open_tensors

PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_OTHER_PREFIXES = ("oft_", "lycoris_")
# Textual inversions that some programs put into the same file.
_BUNDLED = ("bundle_emb.",)
# Other words for the parts of a LoRA behind a module that goes by kohya's name.
_OTHER_PARTS = {**PEFT_TENSORS, "down.weight": "lora_down.weight", "up.weight": "lora_up.weight"}
_SGM = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks)_")
# What diffusers notes of PEFT's settings, alpha among them, which its files have no tensor for.
_PEFT_SETTINGS = "lora_adapter_metadata"
_SDXL_SIGNS = ("lora_te1_", "lora_te2_", f"{TEXT_ENCODER_2}.")
_CROSS_ATTENTION = re.compile(r"attn2[._](processor\.)?to_[kv]\S*(lora_down|lora_A|lora\.down|_lora\.down)")
_CROSS_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# Parts that are a single number, and how many axes the others have at least.
_NUMBERS = ("alpha", "scalar")
_LEAST_AXES = {"lora_mid": 3, "lokr_t2": 3, "hada_t1": 3, "hada_t2": 3, "oft_blocks": 3} | dict.fromkeys(
    (
        *("lora_up", "lora_down", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "a1", "a2", "b1", "b2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    ),
    2,
)
_NAMED = 3


class NetworkFile:
    """One network file.

    Attributes:
        path: of the file.
        metadata: its text entries.
        modules: module -> names of its tensors behind its own name, in the order of the file.
        others: tensors that belong to no module, such as a textual inversion in the same file, and those of a module
            that is in the file twice, under two names.
        version: "sd1", "sd2", "sdxl", or "" where the file does not tell.
    """

    def __init__(self, source: MappedTensors, key: str | None = None) -> None:
        self.path = source.path
        self.metadata = source.metadata
        self._source = source
        self._key = key
        self._stored: dict[str, dict[str, str]] = {}
        self.others: list[str] = []
        self.version = self._version()
        for name in source.names:
            self._place(name)
        if not self._stored:
            raise UserError(f"{self.path} is no network file: {self._instead()}.", key, "Give a LoRA or LyCORIS file.")
        self.modules = {name: tuple(parts) for name, parts in self._stored.items()}
        self._kinds = {name: self._kind(name) for name in self.modules}
        self._alphas = self._noted_alphas()

    def _place(self, name: str) -> None:
        split = _split(name, self.version == "sdxl")
        if split is None:
            self.others.append(name)
        else:
            module, part = split
            if self._stored.setdefault(module, {}).setdefault(part, name) != name:
                # the same layer under both spellings
                self.others.append(name)

    def _instead(self) -> str:
        if not self.others:
            return "it holds no tensors"
        named = ", ".join(self.others[:_NAMED])
        return f"none of its {len(self.others)} tensors belongs to a module of a known kind ({named} ...)"

    def _kind(self, module: str) -> str:
        parts = self._stored[module]
        axes = len(self._source.shapes[parts["oft_blocks"]]) if "oft_blocks" in parts else 3
        try:
            # kohya's OFT is told by the name as it stands in the file
            kind = kind_of(parts, axes=axes, module=next(iter(parts.values())))
        except Misfit as error:
            raise UserError(f"{self.path}: {module} {error}.", self._key, "The file may be incomplete.") from error
        if not kind:
            named = ", ".join(sorted(parts)[:_NAMED])
            raise UserError(f"{self.path}: {module} is of no known kind (it has {named}).", self._key)
        self._check_shapes(module, kind)
        return kind

    def _check_shapes(self, module: str, kind: str) -> None:
        """Raise UserError for what no program writes, and whoever computes with it would stumble over."""
        parts = self._stored[module]
        for part, stored in parts.items():
            shape, axes = self._source.shapes[stored], _LEAST_AXES.get(part.removesuffix(".weight"), 0)
            if len(shape) < axes or (axes and 0 in shape) or (part in _NUMBERS and prod(shape) != 1):
                raise UserError(f"{self.path}: {stored} has the shape {list(shape)}, which no network has.", self._key)
        for factor in ("lokr_w1", "lokr_w2") if kind == "lokr" else ():
            if factor not in parts and not {f"{factor}_a", f"{factor}_b"} <= parts.keys():
                raise UserError(f"{self.path}: {module} has no {factor}.", self._key, "The file may be incomplete.")

    def _version(self) -> str:
        named = self.metadata.get("ss_base_model_version", "")
        for start, version in (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")):
            if named.startswith(start):
                return version
        names = self._source.names
        if any(name.startswith(_SDXL_SIGNS) or _SGM.match(name) for name in names):
            return "sdxl"
        return next((version for version in map(self._told_by, names) if version), "")

    def _told_by(self, name: str) -> str:
        """The family that the width of a cross attention's input gives away."""
        found = _CROSS_ATTENTION.search(name)
        sides = self._source.shapes[name]
        return _CROSS_WIDTHS.get(sides[1], "") if found and len(sides) > 1 else ""

    def _noted_alphas(self) -> dict[str, float]:
        """Alphas of modules that PEFT made, which stand in the file's metadata if anywhere."""
        try:
            settings = json.loads(self.metadata.get(_PEFT_SETTINGS, "{}"))
        except ValueError:
            return {}
        found: dict[str, float] = {}
        for module, parts in self._stored.items():
            layer, rank = layer_of(module), self.rank(module)
            if layer is None or not rank or "alpha" in parts or not isinstance(settings, dict):
                continue
            each = settings.get(f"{layer.part}.alpha_pattern")
            found_alphas = each.items() if isinstance(each, dict) else ()
            alpha = next((value for path, value in found_alphas if _means(path, layer.path)), None)
            alpha = settings.get(f"{layer.part}.lora_alpha") if alpha is None else alpha
            if isinstance(alpha, int | float) and not isinstance(alpha, bool):
                # rank-stabilised: alpha / sqrt(rank) instead of alpha / rank
                stabilised = settings.get(f"{layer.part}.use_rslora")
                found[module] = alpha * math.sqrt(rank) if stabilised else float(alpha)
        return found

    def kind(self, module: str) -> str:
        """One of networks.changes.KINDS."""
        return self._kinds[module]

    def kinds(self) -> list[str]:
        """All kinds in the file, the most frequent first."""
        all_kinds = list(self._kinds.values())
        return sorted(set(all_kinds), key=lambda kind: (-all_kinds.count(kind), kind))

    def tensors(self, module: str) -> dict[str, Tensor]:
        """A module's tensors as stored, by the names behind its own; views of the file, not to be written into."""
        found = {part: self._source.get(stored) for part, stored in self._stored[module].items()}
        if module in self._alphas:
            found["alpha"] = torch.tensor(self._alphas[module])
        return found

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a module's tensors."""
        return {part: self._source.shapes[stored] for part, stored in self._stored[module].items()}

    def stored_name(self, module: str, part: str) -> str:
        """How a tensor is called in the file itself."""
        return self._stored[module][part]

    def rank(self, module: str) -> int | None:
        """Rank of a LoRA module; None for other kinds."""
        down = self._stored[module].get("lora_down.weight")
        return self._source.shapes[down][0] if down else None

    def alpha(self, module: str) -> float | None:
        """The stored alpha of a module, its rank where none is stored; None where neither is known."""
        stored = self._stored[module].get("alpha")
        value = float(self._source.get(stored)) if stored else self._alphas.get(module, 0.0)
        rank = self.rank(module)
        return value or (float(rank) if rank else None)

    def forget(self) -> None:
        """Give the memory behind the tensors back to the system."""
        self._source.forget()

    def close(self) -> None:
        """Let the file go."""
        self._source.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)


def _means(pattern: str, path: str) -> bool:
    """Whether a name in PEFT's settings, which may stand for all layers that end so, means a layer."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    return f".{path}".endswith(f".{name}")


def open_network(path: str | Path, key: str | None = None) -> NetworkFile:
    """Open a network file: .safetensors, or .ckpt, .pt, .pth and .bin that hold tensors only.

    Args:
        path: of the file.
        key: the option that named it, for messages.

    Raises:
        UserError: it is missing, damaged, no network, or holds modules of an unknown kind.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a network file.", key, "Give the .safetensors file in it.")
    return NetworkFile(open_tensors(file, key), key)


def _split(name: str, sdxl: bool) -> tuple[str, str] | None:
    """Module and part of a tensor's name, both as kohya writes them; None for what belongs to no module."""
    if name.startswith(_BUNDLED):
        return None
    module, dot, part = name.partition(".")
    if dot and module.startswith((*PREFIXES, *_OTHER_PREFIXES, "lora_")):
        module = _usual_prefix(module)
        return sgm_name(module) if sdxl else module, _OTHER_PARTS.get(part, part)
    known = kohya_key(name, sdxl)
    if known is None:
        return None
    module, _, part = known.partition(".")
    return module, part


def _usual_prefix(module: str) -> str:
    """kohya's OFT and LyCORIS outside of kohya's trainers begin their names otherwise."""
    for prefix in _OTHER_PREFIXES:
        if module.startswith(prefix):
            rest = module.removeprefix(prefix)
            return f"lora_{rest}" if rest.startswith(("unet_", "te_", "te1_", "te2_")) else f"lora_unet_{rest}"
    return module
