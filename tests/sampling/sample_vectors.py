"""Numbers that sd-scripts gave for the same inputs, and the tiny text encoder they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

FOLDER = Path(__file__).parent / "data"


def cases(file: str, section: str) -> list[tuple[dict[str, Any], Any]]:
    """(input, output) pairs of one section."""
    return [(case["in"], case["out"]) for case in json.loads((FOLDER / file).read_text("utf-8"))[section]]


def text_of(given: dict[str, Any]) -> str:
    """The text of a case; long ones are stored as the number of repeats of a word and a tail."""
    repeats = given.get("repeat")
    return given["text"] if repeats is None else " ".join(["dog"] * repeats) + given["tail"]


def assert_tensor(actual: Tensor, expected: dict[str, Any], relative: float = 1e-5) -> None:
    """Compare with a tensor stored whole or by sums and both ends."""
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().double().flatten()
    if "data" in expected:
        torch.testing.assert_close(flat, torch.tensor(expected["data"]).double(), rtol=relative, atol=relative)
        return
    for part, wanted in ((flat[:8], expected["first8"]), (flat[-8:], expected["last8"])):
        torch.testing.assert_close(part, torch.tensor(wanted).double(), rtol=relative, atol=relative)
    sums = torch.stack([flat.sum(), (flat * flat).sum()])
    torch.testing.assert_close(sums, torch.tensor([expected["sum"], expected["sumsq"]]).double(), rtol=relative, atol=0)


def tiny_text_encoder(layers: int = 12) -> CLIPTextModel:
    """A text encoder of width 8 whose weights come from a fixed seed, in the order of their names."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=layers,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        eos_token_id=49407,
    )
    model = CLIPTextModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


@torch.no_grad()
def encode_with(model: CLIPTextModel, ids: Tensor, clip_skip: int | None) -> Tensor:
    """Hidden states [N, 77, 8], `clip_skip` layers before the end as kohya counts them."""
    output = model(ids, output_hidden_states=True)
    if clip_skip is None or clip_skip <= 1:
        return output.last_hidden_state
    body = getattr(model, "text_model", model)
    return body.final_layer_norm(output.hidden_states[-clip_skip])
