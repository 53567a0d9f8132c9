"""OFT, LoHa and LoKr on single layers: what a module computes is what its file says, and so are its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.change_module import ChangeModule
from sd_scripts.networks.changes import changed
from sd_scripts.networks.loha import LoHaModule
from sd_scripts.networks.lokr import EVEN, LoKrModule, Plan, split
from sd_scripts.networks.norms import limit_norms
from sd_scripts.networks.oft import OFTModule
from sd_scripts.schema.errors import UserError

Layer = nn.Linear | nn.Conv2d
Make = Callable[[Layer], ChangeModule]


def lokr(rank: int = 2, **plan: Any) -> Make:
    return lambda layer: LoKrModule("x", layer, rank, 1.0, Plan(**plan).form("x", layer, rank))


def loha(rank: int = 2, decomposed: bool = False) -> Make:
    return lambda layer: LoHaModule("x", layer, rank, 1.0, decomposed)


def linear() -> Layer:
    return nn.Linear(12, 24)


def narrow() -> Layer:
    return nn.Linear(6, 4, bias=False)


def conv() -> Layer:
    return nn.Conv2d(6, 12, 3, stride=2, padding=1)


def pointwise() -> Layer:
    return nn.Conv2d(6, 12, 1)


CASES: dict[str, tuple[Callable[[], Layer], Make]] = {
    "loha as a lora": (linear, loha()),
    "loha": (linear, loha(4)),
    "loha conv as a lora": (conv, loha()),
    "loha conv": (conv, loha(4)),
    "loha tucker": (conv, loha(decomposed=True)),
    "loha pointwise": (pointwise, loha(decomposed=True)),
    "lokr": (linear, lokr(1)),
    "lokr whole": (linear, lokr(8)),
    "lokr both": (linear, lokr(1, decompose_both=True)),
    "lokr factor": (linear, lokr(1, factor=2)),
    "lokr product": (narrow, lokr(1, factor=1)),
    "lokr conv": (conv, lokr(1, factor=2)),
    "lokr tucker": (conv, lokr(1, factor=2, use_tucker=True)),
    "lokr pointwise": (pointwise, lokr(1, use_tucker=True)),
    "lokr whole conv": (conv, lokr(8)),
    "oft": (linear, lambda layer: OFTModule("x", layer, 3, 1.0)),
    "oft limited": (linear, lambda layer: OFTModule("x", layer, 3, 0.01)),
    "oft conv": (conv, lambda layer: OFTModule("x", layer, 4, 1.0)),
    "oft without bias": (narrow, lambda layer: OFTModule("x", layer, 2, 1.0)),
}


def made(case: str) -> tuple[ChangeModule, Layer, Tensor]:
    """A module with random parameters on a layer, both in float64, and an input for it."""
    torch.manual_seed(len(case))
    layer, make = CASES[case][0]().double().requires_grad_(False), CASES[case][1]
    module = make(layer).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    module.apply_to()
    inputs = layer.weight.shape[1]
    shape = (2, inputs, 5, 5) if isinstance(layer, nn.Conv2d) else (2, 7, inputs)
    return module, layer, torch.randn(shape, dtype=torch.float64, requires_grad=True)


def through(layer: Layer, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return F.linear(x, weight, layer.bias)


def by_the_file(module: ChangeModule, layer: Layer, x: Tensor, multiplier: float = 1.0) -> Tensor:
    weight, _ = changed(dict(module.state_dict()), layer.weight, None, multiplier, module.kind)
    return through(layer, weight, x)


@pytest.mark.parametrize("case", CASES)
def test_a_module_computes_what_its_file_says(case: str) -> None:
    module, layer, x = made(case)
    plain = through(layer, layer.weight, x)
    for multiplier in (1.0, 0.4, 0.0):
        module.multiplier = multiplier
        # The turn of OFT and the change that is merged are worked out in float32.
        torch.testing.assert_close(layer(x), by_the_file(module, layer, x, multiplier), rtol=1e-5, atol=1e-5)
    module.multiplier = torch.tensor([0.4, 1.0])
    for place, multiplier in enumerate((0.4, 1.0)):
        wanted = by_the_file(module, layer, x, multiplier)[place]
        torch.testing.assert_close(layer(x)[place], wanted, rtol=1e-5, atol=1e-5)
    assert (layer(x) - plain).abs().max() > 0.01
    module.multiplier = 1.0
    whole = through(layer, layer.weight + module.delta().double(), x)
    torch.testing.assert_close(layer(x), whole, rtol=1e-5, atol=1e-5)
    assert float(module.squared_norm()) == pytest.approx(float(module.delta(1.0).square().sum()), rel=1e-4)
    module.detach_from()
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("oft")])
def test_gradients_are_those_of_the_changed_weight(case: str) -> None:
    module, layer, x = made(case)
    parameters = list(module.parameters())
    found = torch.autograd.grad(layer(x).square().sum(), [x, *parameters])
    # The weight again, this time with nothing but torch's own arithmetic between it and the parameters.
    named = dict(module.named_parameters()) | {"alpha": module.alpha}
    weight, _ = changed(named, layer.weight, None, 1.0, module.kind)
    wanted = torch.autograd.grad(through(layer, weight, x).square().sum(), [x, *parameters])
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("case", "limit"), [("oft", None), ("oft limited", 0.24), ("oft conv", None)])
def test_oft_turns_the_rows_of_the_weight_and_leaves_the_bias(case: str, limit: float | None) -> None:
    module, layer, x = made(case)
    skew = module.oft_blocks.detach() - module.oft_blocks.detach().transpose(1, 2)
    norm = skew.square().sum().sqrt()
    if limit is not None:
        assert norm > limit
        skew = skew * limit / norm
    unit = torch.eye(skew.shape[-1], dtype=torch.float64)
    turns = [((unit + part) @ torch.linalg.inv(unit - part)).T for part in skew]
    turn = torch.block_diag(*turns)
    torch.testing.assert_close(turn @ turn.T, torch.eye(len(turn), dtype=torch.float64))
    weight = (turn @ layer.weight.flatten(1)).view(layer.weight.shape)
    torch.testing.assert_close(layer(x), through(layer, weight, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.flatten(1).norm(), layer.weight.flatten(1).norm())
    assert not torch.allclose(weight, layer.weight, atol=1e-2)


def test_oft_gradients_and_the_limit() -> None:
    module, layer, x = made("oft limited")
    layer(x).square().sum().backward()
    grad = module.oft_blocks.grad
    torch.testing.assert_close(grad, -grad.mT, rtol=1e-5, atol=1e-8)
    # Where the norm is at its limit, growing all of Q changes nothing.
    skew = (module.oft_blocks - module.oft_blocks.mT).detach()
    assert abs(float((grad * skew).sum())) < 1e-4 * float(grad.norm())
    fresh = OFTModule("x", linear(), 3, 1.0)
    fresh.apply_to()
    fresh.org_module(torch.randn(2, 12)).square().sum().backward()
    assert fresh.oft_blocks.grad.abs().max() > 0 and bool(fresh.oft_blocks.grad.isfinite().all())


@pytest.mark.parametrize("case", ["loha", "lokr", "lokr conv", "oft", "loha conv"])
def test_half_precision_input_keeps_parameters_and_their_gradients_in_float32(case: str) -> None:
    module, layer, x = made(case)
    module.float()
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.float())
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {parameter.grad.dtype for parameter in module.parameters()} == {torch.float32}
    wanted = by_the_file(module, layer, x.float())
    assert ((y - wanted).norm() / wanted.norm()).item() < 0.02


@pytest.mark.parametrize("case", ["loha", "lokr", "lokr conv"])
def test_dropouts(case: str) -> None:
    module, layer, x = made(case)
    plain, whole = through(layer, layer.weight, x), layer(x)
    module.rank_dropout = 0.5
    module.train()
    added = layer(x) - plain
    axis = 1 if added.dim() == 4 else 2
    rows = added.transpose(1, axis).flatten(2).abs().amax(2)
    assert bool((rows == 0).any()) and bool((rows > 0).any()), "outputs are left out as a whole"
    kept = rows > 0
    doubled = (2 * (whole - plain)).transpose(1, axis).flatten(2)
    torch.testing.assert_close(added.transpose(1, axis).flatten(2)[kept], doubled[kept])
    assert not torch.equal(kept[0], kept[1]), "each sample has its own"
    module.rank_dropout, module.module_dropout = None, 1.0
    torch.testing.assert_close(layer(x), plain)
    module.module_dropout, module.dropout = None, 0.5
    assert not torch.equal(layer(x), layer(x))
    module.eval()
    torch.testing.assert_close(layer(x), whole)


def test_loha_keeps_no_weight_for_the_backward_pass() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    module = LoHaModule("x", layer, 7, 1.0)
    nn.init.normal_(module.hada_w2_a)
    module.apply_to()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(100, 64, requires_grad=True))
    large = [tensor for tensor in kept if tensor.shape == (64, 64)]
    assert all(tensor.data_ptr() == layer.weight.data_ptr() for tensor in large)
    assert len(kept) > 4


@pytest.mark.parametrize(
    ("size", "factor", "wanted"),
    [
        (512, EVEN, (16, 32)),
        (512, 4, (4, 128)),
        (128, 16, (8, 16)),
        (250, 4, (2, 125)),
        (360, 16, (15, 24)),
        (360, 7, (6, 60)),
        (127, EVEN, (1, 127)),
        (320, 1, (1, 320)),
    ],
)
def test_sizes_are_split_as_lycoris_splits_them(size: int, factor: int, wanted: tuple[int, int]) -> None:
    assert split(size, factor) == wanted


@pytest.mark.parametrize(("case", "scale"), [("lokr whole", 1.0), ("lokr", 5.0), ("loha", 1.25)])
def test_the_alpha_of_a_file_counts_where_there_is_a_rank(case: str, scale: float) -> None:
    module, layer, x = made(case)
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(5.0)})
    assert module.scale == scale
    torch.testing.assert_close(layer(x), by_the_file(module, layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["loha", "lokr", "lokr both", "loha tucker"])
def test_a_module_grows_no_further_than_its_limit(case: str) -> None:
    module, _, _ = made(case)
    before = module.delta(1.0)
    small, _, _ = made(case)
    figures = limit_norms([module], 0.5)
    assert figures == (1, pytest.approx(0.5), pytest.approx(0.5))
    torch.testing.assert_close(module.delta(1.0), before * (0.5 / before.norm()), rtol=1e-4, atol=1e-6)
    assert limit_norms([small], 1e6)[0] == 0
    assert torch.equal(small.delta(1.0), before)


def test_oft_needs_blocks_that_divide_the_outputs() -> None:
    with pytest.raises(UserError, match="number of blocks and does not divide the 24 outputs"):
        OFTModule("lora_unet_x", linear(), 5, 1.0)
