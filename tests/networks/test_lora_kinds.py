"""DoRA, rsLoRA and PiSSA, layer by layer, beside the formulas of their papers in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sd_scripts.networks.changes import changed
from sd_scripts.networks.lora import LoRANetwork, create_network, create_network_from_weights
from sd_scripts.networks.lora_arguments import LoRAKind, LoRASizes
from sd_scripts.networks.lora_dora import DoRAModule
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_pissa import PrincipalStart, module_class, principal
from sd_scripts.schema.errors import UserError

KINDS = {"plain": {}, "dora": {"dora_wd": "True"}, "pissa": {"init_lora_weights": "pissa"}}
KINDS["both"] = KINDS["dora"] | KINDS["pissa"]
LAYERS = ("linear", "conv3x3", "conv1x1", "strided")


def layer(kind: str) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(1)
    made = {
        "linear": lambda: nn.Linear(12, 10),
        "conv3x3": lambda: nn.Conv2d(6, 10, 3, padding=1, bias=False),
        "conv1x1": lambda: nn.Conv2d(12, 10, 1),
        "strided": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    }[kind]()
    return made.requires_grad_(False)


def picture(kind: str, samples: int = 3) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(samples, 5, 12) if kind == "linear" else torch.randn(samples, 12 if "1x1" in kind else 6, 4, 4)


def wrapped(kind: str, base: nn.Linear | nn.Conv2d, alpha: float = 3.0, drops: tuple[Any, ...] = ()) -> LoRAModule:
    torch.manual_seed(3)
    lora = module_class(kind in ("dora", "both"), kind in ("pissa", "both"))("m", base, 1.0, 4, alpha, *drops)
    lora.prepare()
    lora.apply_to()
    return lora


def disturb(lora: LoRAModule, size: float = 0.1) -> None:
    torch.manual_seed(4)
    for parameter in lora.parameters():
        parameter.data += torch.randn_like(parameter) * size


def called(base: nn.Linear | nn.Conv2d, weight: Tensor, x: Tensor) -> Tensor:
    """The layer with another weight, in float64."""
    bias = None if base.bias is None else base.bias.double()
    if isinstance(base, nn.Linear):
        return F.linear(x.double(), weight.double(), bias)
    return F.conv2d(x.double(), weight.double(), bias, base.stride, base.padding)


def effective(lora: LoRAModule) -> Tensor:
    """The weight that the papers give, in float64, from the trained matrices."""
    weight = lora.org_module.weight.double()
    down, up = (part.weight.detach().double().flatten(1) for part in (lora.lora_down, lora.lora_up))
    change = (up @ down).view(weight.shape)
    if isinstance(lora, PrincipalStart):
        change = change - (lora.start_up.double().flatten(1) @ lora.start_down.double().flatten(1)).view(weight.shape)
    whole = weight + change * float(lora.alpha) / lora.lora_dim
    if isinstance(lora, DoRAModule):
        shape = (-1, *[1] * (weight.dim() - 1))
        whole = whole * lora.dora_scale.double().view(shape) / whole.flatten(1).norm(dim=1).view(shape)
    return whole


@pytest.mark.parametrize("layer_kind", LAYERS)
@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_the_start_is_the_base_and_the_rest_follows_the_paper(kind: str, layer_kind: str) -> None:
    base, x = layer(layer_kind), picture(layer_kind)
    plain = base(x)
    lora = wrapped(kind, base)
    assert torch.equal(base(x), plain)
    disturb(lora)
    wanted = called(base, effective(lora), x)
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(base(x).double(), wanted, rtol=1e-5, atol=1e-5)
    # Each sample at its own strength: straight from the base to the whole.
    lora.multiplier = torch.tensor([0.0, 1.0, -0.5])
    shape = (3, *[1] * (plain.dim() - 1))
    halfway = plain + (wanted - plain) * lora.multiplier.double().view(shape)
    torch.testing.assert_close(base(x).double(), halfway, rtol=1e-5, atol=1e-5)
    lora.detach_from()
    assert torch.equal(base(x), plain) and "forward" not in vars(base)


@pytest.mark.parametrize("layer_kind", LAYERS[:2])
@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_gradients_are_those_of_the_paper(kind: str, layer_kind: str) -> None:
    """DoRA: the norm counts as a constant; PiSSA: as if the base had been reduced."""
    base, x = layer(layer_kind), picture(layer_kind)
    lora = wrapped(kind, base)
    disturb(lora)
    wanted_parts = [part.detach().double().requires_grad_(True) for part in lora.parameters()]
    names = [name for name, _ in lora.named_parameters()]
    by_name = dict(zip(names, wanted_parts))
    weight = base.weight.double()
    product = by_name["lora_up.weight"].flatten(1) @ by_name["lora_down.weight"].flatten(1)
    if isinstance(lora, PrincipalStart):
        product = product - lora.start_up.double().flatten(1) @ lora.start_down.double().flatten(1)
    whole = weight + product.view(weight.shape) * lora.scale
    if "dora_scale" in by_name:
        norms = whole.detach().flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
        whole = whole * by_name["dora_scale"] / norms
    own_x, their_x = x.clone().requires_grad_(True), x.double().requires_grad_(True)
    wanted = torch.autograd.grad(called(base, whole, their_x).square().sum(), [their_x, *wanted_parts])
    got = torch.autograd.grad(base(own_x).square().sum(), [own_x, *lora.parameters()])
    for name, own, other in zip(["x", *names], got, wanted):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
@pytest.mark.parametrize("drops", [(0.4,), (None, 0.4), (0.3, 0.3)])
def test_dropouts_leave_out_what_was_learned(kind: str, drops: tuple[float | None, ...]) -> None:
    """At the start there is nothing to leave out; afterwards the mean over draws is the whole, without it elsewhere."""
    base, x = layer("linear"), picture("linear")
    plain = base(x)
    lora = wrapped(kind, base, drops=drops)
    assert torch.equal(base(x), plain)
    disturb(lora, 0.05)
    torch.manual_seed(0)
    draws = torch.stack([base(x) for _ in range(400)])
    lora.eval()
    whole, draws = base(x).detach(), draws.detach()
    assert draws.std(0).max() > 0.05
    torch.testing.assert_close(draws.mean(0), whole, rtol=0, atol=float(6 * draws.std(0).max() / math.sqrt(400)))
    lora.train()
    lora.module_dropout = 1.0
    torch.testing.assert_close(base(x), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Base in 16 bits under autocast: float32 weights learn, and what was learned is not lost in rounding."""
    base = layer("linear").to(dtype)
    lora = wrapped(kind, base)
    x = picture("linear")
    with torch.autocast("cpu", dtype):
        plain = base._parameters["weight"] is not None and F.linear(x, base.weight, base.bias)
        assert torch.equal(base(x), plain)
        disturb(lora, 0.02)
        output = base(x)
    assert output.dtype == dtype
    wanted = called(base, effective(lora), x) - called(base, base.weight, x)
    error = (output.double() - plain.double() - wanted).abs().max()
    assert error < (0.03 if dtype == torch.bfloat16 else 0.004)
    output.float().square().sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for part in lora.parameters())
    # Everything in 16 bits (full_fp16): the lengths of DoRA keep their precision.
    lora.to(dtype)
    assert {name: part.dtype for name, part in lora.named_parameters()} == {
        name: torch.float32 if name == "dora_scale" else dtype for name, _ in lora.named_parameters()
    }


@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_base_stored_in_8_bits(kind: str) -> None:
    from sd_scripts.models.fp8 import store_in_fp8

    model = nn.Sequential(layer("linear"))
    store_in_fp8(model)
    base, x = model[0], picture("linear")
    assert base.weight.dtype == torch.float8_e4m3fn
    plain = base(x)
    lora = wrapped(kind, base)
    torch.testing.assert_close(base(x), plain)
    disturb(lora)
    torch.testing.assert_close(base(x).double(), called(base, effective(lora), x), rtol=1e-2, atol=1e-2)
    base(x).square().sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in lora.parameters())


class CLIPAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.q_proj, self.k_proj = nn.Linear(12, 10), nn.Linear(12, 6)


def network(kind: str = "plain", dim: int = 4, alpha: float = 2.0, **arguments: str) -> LoRANetwork:
    made = create_network(1.0, dim, alpha, None, nn.Sequential(CLIPAttention()), None, **KINDS[kind], **arguments)
    made.apply_to(None, None)
    return made


def trained(kind: str, **arguments: str) -> LoRANetwork:
    made = network(kind, **arguments)
    for lora in made.loras:
        disturb(lora)
    return made


def weights_now(made: LoRANetwork) -> list[Tensor]:
    return [lora.org_module.weight.detach() + lora.delta(1.0) for lora in made.loras]


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "dora", "pissa", "both"])
def test_a_file_does_what_was_trained(kind: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Read again to go on, read by its own ranks, merged, restored, and applied by the tools to the unchanged base."""
    made, path = trained(kind), tmp_path / "x.safetensors"
    made.save_weights(path, dtype, {"ss_network_module": "networks.lora"})
    wanted, base = weights_now(made), [lora.org_module.weight.detach().clone() for lora in made.loras]
    close = {"rtol": 0, "atol": {None: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]}
    in_file = load_file(path)
    name = made.loras[0].lora_name
    assert in_file[f"{name}.lora_down.weight"].shape[0] == (8 if kind in ("pissa", "both") else 4)
    assert in_file[f"{name}.lora_down.weight"].dtype == dtype or torch.float32
    if kind in ("dora", "both"):
        assert in_file[f"{name}.dora_scale"].shape == (10, 1) and in_file[f"{name}.dora_scale"].dtype == torch.float32

    again = network(kind)
    again.load_weights(path)
    other, weights = create_network_from_weights(1.0, path, None, nn.Sequential(CLIPAttention()), None)
    other.backup_weights()
    other.merge_to(None, None, weights)
    halves = [weight + lora.delta(0.5) for weight, lora in zip(base, made.loras)]
    for lora, weight, own, half, here, merged in zip(
        made.loras, base, wanted, halves, weights_now(again), other.loras, strict=True
    ):
        torch.testing.assert_close(here, own, **close)
        torch.testing.assert_close(merged.org_module.weight.detach(), own, **close)
        tensors = {key.split(".", 1)[1]: value for key, value in in_file.items() if key.startswith(lora.lora_name)}
        torch.testing.assert_close(here, changed(tensors, weight, None, 1.0)[0], rtol=0, atol=2e-6)
        for multiplier, by_tools in ((0.0, weight), (0.5, half), (1.0, own)):
            torch.testing.assert_close(changed(tensors, weight, None, multiplier)[0], by_tools, **close)
    other.restore_weights()
    for weight, lora in zip(base, other.loras):
        assert torch.equal(lora.org_module.weight, weight)
    made.pre_calculation()
    for own, lora in zip(wanted, made.loras):
        torch.testing.assert_close(lora.org_module.weight.detach(), own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_a_training_state_comes_back_exactly(kind: str) -> None:
    made = trained(kind)
    again = network(kind)
    again.load_state_dict({key: value.clone() for key, value in made.state_dict().items()})
    for key, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert [lora.scale for lora in again.loras] == [lora.scale for lora in made.loras]


def test_stabilised_rank_is_told_by_alpha(tmp_path: Path) -> None:
    made, path = trained("plain", rs_lora="True"), tmp_path / "x.safetensors"
    assert [lora.scale for lora in made.loras] == [pytest.approx(2.0 / math.sqrt(4))] * 2
    made.save_weights(path, torch.bfloat16, None)
    alpha = load_file(path)[f"{made.loras[0].lora_name}.alpha"]
    assert float(alpha) / 4 == pytest.approx(2.0 / math.sqrt(4), rel=1e-6) and alpha.dtype == torch.float32
    again = network("plain", rs_lora="True")
    again.load_weights(path)
    plain, _ = create_network_from_weights(1.0, path, None, nn.Sequential(CLIPAttention()), None, rs_lora="True")
    for other in (again, plain):
        assert [lora.scale for lora in other.loras] == [lora.scale for lora in made.loras]
    # Alpha 0 is the rank, here, too; and each block has its own rank.
    assert LoRASizes(dim=16, alpha=0, by_root=True).of("m", nn.Linear(2, 2), False) == (16, 64.0)


def test_a_plain_file_goes_on_as_dora_and_not_the_other_way(tmp_path: Path) -> None:
    plain, path = trained("plain"), tmp_path / "x.safetensors"
    plain.save_weights(path, None, None)
    decomposed = network("dora")
    decomposed.load_weights(path)
    for own, other in zip(weights_now(plain), weights_now(decomposed)):
        torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-6)
    decomposed.save_weights(path, None, None)
    with pytest.raises(UserError, match="DoRA file.*dora_wd=True"):
        network("plain").load_weights(path)


def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    trained("plain").save_weights(path, None, None)
    with pytest.raises(UserError, match="has rank 4 at .* this network has 8 .PiSSA: twice the rank"):
        network("pissa").load_weights(path)
    trained("pissa").save_weights(path, None, None)
    with pytest.raises(UserError, match="PiSSA cannot take its ranks from a file"):
        create_network_from_weights(1.0, path, None, None, None, init_lora_weights="pissa")
    assert not network("pissa").can_limit_norms and network("dora").can_limit_norms
    with pytest.raises(UserError, match="must be default or pissa, not 'gaussian'"):
        network(init_lora_weights="gaussian")
    with pytest.raises(UserError, match="dora_wd must be True or False, not 'maybe'"):
        network(dora_wd="maybe")
    columns = {"dora_scale": torch.ones(1, 12), "lora_down.weight": torch.zeros(4, 12)}
    made = network("dora")
    with pytest.raises(UserError, match="one length for each of 10 outputs"):
        made.load_state_dict(
            {f"{made.loras[0].lora_name}.{key}": value for key, value in columns.items()}, strict=False
        )
    broken = layer("linear")
    broken.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        PrincipalStart("m", broken, 1.0, 4, 4).prepare()


@pytest.mark.parametrize("kind", ["dora", "pissa", "both"])
def test_groups_of_lora_plus(kind: str) -> None:
    made = network(kind, loraplus_lr_ratio="16")
    groups, names = made.prepare_optimizer_params(1e-4, None, None)
    assert names == ["textencoder", "textencoder plus"]
    assert [group["lr"] for group in groups] == [1e-4, 1e-4 * 16]
    assert len(groups[1]["params"]) == 2
    assert len(groups[0]["params"]) == (4 if kind in ("dora", "both") else 2)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_principal_parts_and_ranks_beyond_the_layer() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(60, 90) @ torch.diag(0.9 ** torch.arange(90.0)) @ torch.randn(90, 90)
    before = torch.random.get_rng_state()
    u, values, v = principal(matrix, 6)
    assert torch.equal(torch.random.get_rng_state(), before)
    exact = torch.linalg.svd(matrix.double())
    best = (matrix.double() - exact.U[:, :6] * exact.S[:6] @ exact.Vh[:6]).norm()
    ours = (matrix.double() - (u * values @ v).double()).norm()
    assert ours <= best * 1.001
    base = layer("linear")
    lora = PrincipalStart("m", base, 1.0, 14, 14)
    lora.prepare()
    product = lora.lora_up.weight @ lora.lora_down.weight
    torch.testing.assert_close(product, base.weight, rtol=1e-4, atol=1e-5)
    # Those that the layer cannot fill can still learn.
    assert lora.lora_down.weight[10:].any() and not lora.lora_up.weight[:, 10:].any()


def test_names_of_a_file_decide_which_modules_have_lengths() -> None:
    kind = LoRAKind(decomposed_names=frozenset({"lora_te_0_q_proj"}))
    made = LoRANetwork(nn.Sequential(CLIPAttention()), None, 1.0, LoRASizes(), None, None, kind)
    assert [type(lora) for lora in made.loras] == [DoRAModule, LoRAModule]
