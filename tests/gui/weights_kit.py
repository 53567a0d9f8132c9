"""Small files of weights for tests of the page, made without PyTorch: names and shapes are real, numbers are small."""

import json
import random
import struct
from array import array
from collections.abc import Mapping
from math import prod
from pathlib import Path

SIZES = {"F32": 4, "F16": 2}
CROSS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None, kind: str = "F32"
) -> Path:
    """A safetensors file with numbers around 0 (F32), or zeros (F16)."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start, draw = 0, random.Random(path.name)
    body = bytearray()
    for name, shape in shapes.items():
        count = prod(shape)
        part = (
            array("f", (draw.uniform(-0.1, 0.1) for _ in range(count))).tobytes() if kind == "F32" else bytes(2 * count)
        )
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, start + len(part)]}
        start += len(part)
        body += part
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(body))
    return path


def lora(path: Path, family: str = "sd1", rank: int = 4, metadata: Mapping[str, str] | None = None) -> Path:
    """A LoRA of two layers of the U-Net, as its trainer writes it."""
    block = "input_blocks_4_1" if family == "sdxl" else "down_blocks_1_attentions_0"
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, width in (("attn1_to_q", 640), ("attn2_to_k", CROSS[family])):
        name = f"lora_unet_{block}_transformer_blocks_0_{layer}"
        shapes |= {
            f"{name}.lora_down.weight": (rank, width),
            f"{name}.lora_up.weight": (640, rank),
            f"{name}.alpha": (),
        }
    return write(path, shapes, metadata)


def model(path: Path, family: str = "sd1") -> Path:
    """What the header of a whole model has of names, with tiny tensors."""
    text = "conditioner.embedders.0.transformer.x" if family == "sdxl" else "cond_stage_model.x"
    unet = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    shapes = {unet: (2, CROSS[family]), f"{text}.weight": (2, 2), "first_stage_model.decoder.conv_in.weight": (2, 2)}
    return write(path, shapes, kind="F16")
