"""What a file of weights holds, for the tools: told from its header alone and remembered until the file changes."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kohya_gui import lora_shapes
from kohya_gui.model_kind import model_facts
from sd_scripts.schema.headers import Header, HeaderError, read_safetensors_header

ADAPTER = "adapter_model.safetensors"
"""The weights in a folder that PEFT saved."""
FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
PRECISIONS = {"float": 4, "fp16": 2, "bf16": 2, "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2, "bfloat": 2}
"""Bytes of a number in a precision."""
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_KINDS = (
    ("hada_w1_a", "LoHa"), ("lokr_w", "LoKr"), ("oft_blocks", "OFT"), ("oft_diag", "OFT"), ("on_input", "iA3"),
    (".a1.weight", "GLoRA"), ("dora_scale", "DoRA"), ("lora_", "LoRA"), ("lora.", "LoRA"), (".diff", "full"),
)  # fmt: skip
_ENDINGS = (
    ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha", ".lora_A.weight", ".lora_B.weight",
    ".lora.down.weight", ".lora.up.weight", ".dora_scale",
)  # fmt: skip
# the second side of the tensor that ends like this is what goes into the layer
_INTO = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".hada_w1_b")
_SDXL = (
    "lora_te1_",
    "lora_te2_",
    "lora_unet_input_blocks_",
    "lora_unet_output_blocks_",
    "text_encoder_2.",
    "oft_unet_input_blocks_",
)
_VERSIONS = {"sdxl": "sdxl", "sd_v1": "sd1", "sd_v2": "sd2"}


@dataclass(frozen=True)
class Weights:
    """What is known of a file or folder.

    `kind` is as `ModelFacts.kind`; of a network also its `algorithm`, the `rank` that most linear layers have,
    `conv_rank`, and how many `modules` it has. `family` is "sd1", "sd2", "sdxl" or "" where nothing tells. `numbers`
    counts the numbers in it (0 where that is unknown), `size` its bytes. `problem` says why it cannot be used.
    """

    kind: str
    family: str = ""
    algorithm: str = ""
    rank: int = 0
    conv_rank: int = 0
    modules: int = 0
    numbers: int = 0
    size: int = 0
    detail: str = ""
    problem: str = ""

    @property
    def is_network(self) -> bool:
        """Whether it changes a model instead of being one."""
        return self.kind == "lora"

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model, as far as its header tells."""
        return self.kind in ("checkpoint", "diffusers", "unet")

    @property
    def dark(self) -> bool:
        """Whether only reading all of it would tell what it is."""
        return self.kind == "pickle"


def weights(path: str | os.PathLike[str]) -> Weights:
    """What lies there; never raises."""
    text = os.fspath(path)
    try:
        found = os.stat(text)
    except (OSError, ValueError):
        return Weights("missing", problem="there is no such file or folder")
    try:
        return _looked(text, found.st_mtime_ns, found.st_size)
    except OSError as error:
        return Weights("other", problem=f"it cannot be opened ({error.strerror or error})")


@lru_cache(maxsize=256)
def _looked(path: str, changed: int, length: int) -> Weights:
    facts = model_facts(path)
    family = facts.version if facts.version in FAMILIES else ""
    adapter = os.path.join(path, ADAPTER)
    if os.path.isdir(path) and os.path.isfile(adapter):
        return weights(adapter)
    if os.path.isdir(path):
        size = _folder_size(Path(path))
        # what is in the parts is not looked at one by one: most folders hold 16-bit weights
        return Weights(facts.kind, family, numbers=size // 2, size=size, detail=facts.detail, problem=facts.problem)
    if facts.kind == "pickle" or facts.problem:
        return Weights(facts.kind, size=length, numbers=length // 4, detail=facts.detail, problem=facts.problem)
    try:
        header = read_safetensors_header(path)
    except (HeaderError, OSError) as error:
        return Weights("other", size=length, problem=str(error))
    numbers = sum(size // BYTES.get(header.dtypes[name], 1) for name, (_, size) in header.places.items())
    if not is_network(header.shapes):
        return Weights(facts.kind, family, numbers=numbers, size=length, detail=facts.detail)
    return _network(header, numbers)


def said_now(path: str | os.PathLike[str]) -> dict[str, str]:
    """The beginnings of the notes on a file that people write (`modelspec.*`), by their names without that."""
    text = os.fspath(path)
    try:
        return dict(_notes(text, os.stat(text).st_mtime_ns))
    except OSError:
        return {}


@lru_cache(maxsize=32)
def _notes(path: str, changed: int) -> tuple[tuple[str, str], ...]:
    try:
        found = read_safetensors_header(path).metadata
    except (HeaderError, OSError):
        return ()
    begins = [(name, text) for name, text in found.items() if name.startswith("modelspec.") and text]
    return tuple(
        (name.removeprefix("modelspec."), text if len(text) <= 100 else text[:100] + " …") for name, text in begins
    )


def is_network(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the names of tensors are those of a network."""
    marks = tuple(mark for mark, _ in _KINDS[:-1]) + (".diff_b",)
    names = [name for name in shapes if not name.startswith(("model.", "first_stage_model."))]
    return any(mark in name for name in names for mark in marks) or any(name.endswith(".diff") for name in names)


def _network(header: Header, numbers: int) -> Weights:
    shapes = header.shapes
    kind = next((kind for mark, kind in _KINDS if any(mark in name for name in shapes)), "LoRA")
    family = network_family(shapes, header.metadata)
    rank, conv = _ranks(shapes)
    modules = len({_module(name) for name in shapes})
    return Weights("lora", family, kind, rank, conv, modules, numbers, header.size)


def _module(name: str) -> str:
    ending = next((ending for ending in _ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending) if ending else name.rpartition(".")[0]


def _ranks(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """The ranks that most linear layers and most convolutions with a larger kernel have; 0 for none."""
    found: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    for name, shape in shapes.items():
        if name.endswith(_INTO) and shape:
            found[len(shape) == 4 and shape[-1] > 1][shape[0]] += 1
    linear, spread = (counted.most_common(1)[0][0] if counted else 0 for counted in found.values())
    return linear or spread, spread if linear else 0


def network_family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """The kind of base model a network was made for: from its layers, else from its notes; "" if neither tells."""
    if any(name.startswith(_SDXL) for name in shapes):
        return "sdxl"
    for name, shape in shapes.items():
        if name.endswith(_INTO) and ("attn2_to_k." in name or "attn2.to_k." in name) and len(shape) >= 2:
            return _WIDTHS.get(shape[1], "")
    for name, shape in shapes.items():
        if name.endswith(_INTO) and "self_attn_q_proj" in name and len(shape) >= 2:
            return _WIDTHS.get(shape[1], "")
    said = metadata.get("ss_base_model_version", "") or lora_shapes.of_model_card(metadata).get(
        "ss_base_model_version", ""
    )
    return next((family for start, family in _VERSIONS.items() if said.startswith(start)), "")


def _folder_size(folder: Path) -> int:
    """Bytes of the weights in a diffusers folder."""
    total = 0
    for part in folder.iterdir():
        if part.is_dir():
            found = [file for file in part.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
            # a folder may hold the same weights twice
            kinds = {
                suffix: [f.stat().st_size for f in found if f.suffix == suffix] for suffix in (".safetensors", ".bin")
            }
            total += sum(kinds[".safetensors"] or kinds[".bin"])
    return total


@lru_cache(maxsize=32)
def _layers(path: str, changed: int) -> tuple[int, int]:
    """Of the layers that a LoRA of a single file would train: the sum of both sides of linear ones and convolutions of
    one pixel, and that of larger convolutions with the area of their kernels."""
    try:
        shapes = read_safetensors_header(path).shapes
    except (HeaderError, OSError):
        return 0, 0
    linear = spread = 0
    for name, shape in shapes.items():
        if not name.endswith((".weight", ".in_proj_weight")) or len(shape) not in (2, 4) or "embedding" in name:
            continue
        if len(shape) == 4 and shape[-1] > 1:
            spread += shape[0] + shape[1] * shape[2] * shape[3] if "diffusion_model" in name else 0
        elif any(mark in name for mark in _TRAINED):
            linear += sum(shape[:2])
    return linear, spread


_TRAINED = (".transformer_blocks.", ".proj_in.", ".proj_out.", ".resblocks.", ".self_attn.", ".mlp.", "skip_connection")


def lora_numbers(path: str, rank: int, conv_rank: int) -> int:
    """About how many numbers a LoRA of a model has; 0 where the header does not tell."""
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        return 0
    linear, spread = _layers(path, os.stat(path).st_mtime_ns)
    return linear * rank + spread * conv_rank
