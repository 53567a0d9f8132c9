"""Pictures and models that have headers and nothing else: enough for a plan, and quick to make."""

import json
import struct
from pathlib import Path


def png(path: Path, width: int = 64, height: int = 64) -> None:
    """The start of a PNG file: enough for its size, much faster than a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5sI", 13, b"IHDR", width, height, b"\x08\x02\0\0\0", 0)
                     + struct.pack(">I4s", 0, b"IDAT") + bytes(8))  # fmt: skip


def safetensors(path: Path, **shapes: list[int]) -> Path:
    """A safetensors file that has these tensors' names and shapes and no weights."""
    table = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


SD1 = {
    "model.diffusion_model.x": [1],
    "cond_stage_model.transformer.x": [1],
    "model.diffusion_model.attn2.to_k.weight": [320, 768],
}

SDXL = {
    "model.diffusion_model.label_emb.0.0.weight": [1280, 2816],
    "model.diffusion_model.attn2.to_k.weight": [640, 2048],
    "conditioner.embedders.0.transformer.x": [1],
    "conditioner.embedders.1.model.x": [1],
    "first_stage_model.x": [1],
}
