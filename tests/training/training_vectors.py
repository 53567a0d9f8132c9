"""Reading the numbers that the tests of this folder compare with."""

import json
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent / "data"


def load(name: str) -> dict[str, Any]:
    """The content of data/<name>.json."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def check_tensor(found: torch.Tensor, wanted: dict[str, Any], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compare with a recorded tensor: all its numbers, or its sums and both ends."""
    assert list(found.shape) == wanted["shape"]
    flat = found.detach().to(torch.float64).flatten()
    if "data" in wanted:
        torch.testing.assert_close(
            flat, torch.tensor(wanted["data"], dtype=torch.float64).flatten(), rtol=rtol, atol=atol
        )
        return
    for part, key in ((flat[:8], "first8"), (flat[-8:], "last8")):
        torch.testing.assert_close(part, torch.tensor(wanted[key], dtype=torch.float64), rtol=rtol, atol=atol)
    torch.testing.assert_close(flat.sum().item(), wanted["sum"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close((flat**2).sum().item(), wanted["sumsq"], rtol=1e-4, atol=1e-3)
