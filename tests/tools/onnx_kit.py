"""A small ONNX network written by hand, as the package `onnx` is not needed for anything else.

It takes float pictures [n, side, side, 3] and gives for every tag the sigmoid of a weighted mean colour.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def _varint(number: int) -> bytes:
    found = bytearray()
    while True:
        found.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(found)


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _ints(name: str, *values: int) -> bytes:
    return _field(5, _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7))


def _int(name: str, value: int) -> bytes:
    return _field(5, _field(1, name) + _field(3, value) + _field(20, 2))


def _node(kind: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    parts = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind)
    return _field(1, parts + b"".join(attributes))


def _tensor(name: str, values: np.ndarray) -> bytes:
    shape = b"".join(_field(1, size) for size in values.shape)
    content = struct.pack(f"<{values.size}f", *values.ravel())
    return _field(5, shape + _field(2, 1) + _field(8, name) + _field(9, content))


def _value(number: int, name: str, *sizes: int | str) -> bytes:
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size)) for size in sizes)
    kind = _field(1, _field(1, 1) + _field(2, dims))
    return _field(number, _field(1, name) + _field(2, kind))


def write_tagger(path: Path, weights: np.ndarray, bias: np.ndarray, side: int, batch: int | str = "n") -> None:
    """Write sigmoid(mean over the picture's pixels @ weights + bias); weights [3, tags] are for blue, green, red."""
    graph = (
        _node("ReduceMean", ["pictures"], "colour", _ints("axes", 1, 2), _int("keepdims", 0))
        + _node("MatMul", ["colour", "weights"], "sums")
        + _node("Add", ["sums", "bias"], "shifted")
        + _node("Sigmoid", ["shifted"], "certainties")
        + _field(2, "tagger")
        + _tensor("weights", weights)
        + _tensor("bias", bias)
        + _value(11, "pictures", batch, side, side, 3)
        + _value(12, "certainties", batch, weights.shape[1])
    )
    path.write_bytes(_field(1, 8) + _field(8, _field(1, "") + _field(2, 13)) + _field(7, graph))
