"""What a LyCORIS file makes of a layer, against LyCORIS' own forward pass in float64."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sd_scripts.networks.changes import changed

modules = pytest.importorskip("lycoris.modules")

MULTIPLIERS = (1.0, 0.5, -0.7)
# kind -> options of LyCORIS' module that change what stands in the file.
CASES: dict[str, list[dict[str, Any]]] = {
    "loha": [
        {},
        {"use_tucker": True},
        {"use_scalar": True},
        {"weight_decompose": True},
        {"rs_lora": True, "lora_dim": 4},
    ],
    "lokr": [
        {"factor": 2},
        {"factor": 2, "use_tucker": True, "lora_dim": 1},
        {"factor": 4, "decompose_both": True, "lora_dim": 1},
        {"full_matrix": True},
        {"use_scalar": True, "weight_decompose": True, "factor": 2},
        {"weight_decompose": True, "wd_on_out": False, "factor": 2},
        {"unbalanced_factorization": True, "factor": 2, "lora_dim": 1},
    ],
    "ia3": [{"train_on_input": True}, {"train_on_input": False}],
    "glora": [{}, {"use_scalar": True}],
    "diag-oft": [{}, {"constraint": 0.01}, {"rescaled": True}],
    "boft": [{}, {"constraint": 0.01}, {"rescaled": True}],
    "full": [{}],
    "norm": [{}],
}
CLASSES = {
    "loha": "LohaModule",
    "lokr": "LokrModule",
    "ia3": "IA3Module",
    "glora": "GLoRAModule",
    "diag-oft": "DiagOFTModule",
    "boft": "ButterflyOFTModule",
    "full": "FullModule",
    "norm": "NormModule",
}
# LyCORIS inverts the matrices of these in float32 whatever it is given.
SINGLE = {"diag-oft", "boft"}


def layers(kind: str) -> list[tuple[nn.Module, Tensor]]:
    """Layers of the sorts that this kind takes, with something to run through them."""
    if kind == "norm":
        norms = (nn.LayerNorm(8), torch.randn(2, 3, 8)), (nn.GroupNorm(2, 8), torch.randn(2, 8, 3, 3))
        for layer, _ in norms:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        return list(norms)
    return [
        (nn.Linear(12, 8), torch.randn(3, 12)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), torch.randn(2, 6, 5, 5)),
        (nn.Conv2d(6, 16, 1, bias=False), torch.randn(2, 6, 4, 4)),
    ]


def filled(kind: str, layer: nn.Module, options: dict[str, Any]) -> Any:
    """LyCORIS' module for the layer, with random numbers for everything that is trained."""
    made = getattr(modules, CLASSES[kind])("x", layer, **{"lora_dim": 2, "alpha": 3.0, **options})
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if name in ("rescale", "dora_scale", "scalar"):
            parameter.data.abs_().add_(0.5)
    return made.eval()


def with_multiplier(made: Any, layer: nn.Module, x: Tensor, multiplier: float) -> Tensor:
    """LyCORIS' own output."""
    made.multiplier = multiplier
    made.org_forward = type(layer).forward.__get__(layer)
    return made(x)


@pytest.mark.parametrize(("kind", "options"), [(kind, options) for kind in CASES for options in CASES[kind]])
def test_the_change_is_what_lycoris_computes(kind: str, options: dict[str, Any]) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    torch.manual_seed(3)
    dtype, tolerance = (torch.float32, 2e-5) if kind in SINGLE else (torch.float64, 1e-10)
    for layer, x in layers(kind):
        layer, x = layer.to(dtype).requires_grad_(False), x.to(dtype)
        made = filled(kind, layer, options).to(dtype)
        state = {"diff": made.weight, "diff_b": made.bias} if kind == "full" else made.state_dict()
        tensors = {name: value.detach().clone() for name, value in state.items() if value is not None}
        plain = layer(x)
        for multiplier in MULTIPLIERS:
            if options.get("weight_decompose"):
                # on the straight line to the whole; LyCORIS applies the multiplier to the stretching alone
                wanted = plain + multiplier * (with_multiplier(made, layer, x, 1.0) - plain)
            else:
                wanted = with_multiplier(made, layer, x, multiplier)
            weight, bias = changed(tensors, layer.weight, layer.bias, multiplier, kind)
            assert weight.dtype == dtype and weight.shape == layer.weight.shape
            values = {"weight": weight} | ({} if bias is None else {"bias": bias})
            torch.testing.assert_close(
                torch.func.functional_call(layer, values, (x,)), wanted, rtol=tolerance, atol=tolerance
            )
            assert (wanted - plain).abs().max() > 1e-3
