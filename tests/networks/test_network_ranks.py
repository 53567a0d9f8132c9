"""DyLoRA and LoRA-FA on single layers: what learns, with what strength, and what a plain LoRA makes of the file."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.changes import changed
from sd_scripts.networks.dylora import DyLoRAModule, DyLoRANetwork
from sd_scripts.networks.lora_arguments import LoRADrops, LoRARates, LoRASizes
from sd_scripts.networks.lora_dora import DoRAModule
from sd_scripts.networks.lora_fa import LoRAFAModule
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_pissa import PrincipalStart
from sd_scripts.networks.norms import limit_norms

Layer = nn.Linear | nn.Conv2d


def layers() -> list[Layer]:
    torch.manual_seed(3)
    return [nn.Linear(10, 12), nn.Conv2d(4, 6, 3, stride=2, padding=1)]


def given(layer: Layer) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 4, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5, 10)


def by_hand(layer: Layer, state: dict[str, Tensor], ranks: int, alpha: float) -> Tensor:
    """The layer with the first ranks of a LoRA, in float64."""
    up = state["lora_up.weight"].double().flatten(1)[:, :ranks]
    down = state["lora_down.weight"].double().flatten(1)[:ranks]
    weight = layer.weight.double() + (alpha / ranks * up @ down).view(layer.weight.shape)
    x, bias = given(layer).double(), layer.bias.double()
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)
    return F.linear(x, weight, bias)


def dylora(layer: Layer, unit: int = 2) -> DyLoRAModule:
    module = DyLoRAModule("x", layer.requires_grad_(False), 8, 2.0, unit)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    module.apply_to()
    return module


@pytest.mark.parametrize("place", [0, 1])
def test_a_step_of_dylora_uses_the_ranks_up_to_the_drawn_one_and_trains_only_its_block(place: int) -> None:
    layer = layers()[place]
    module = dylora(layer)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert set(state) == {"alpha", "lora_down.weight", "lora_up.weight"}
    for position, block in ((0.0, 0), (0.49, 1), (0.51, 2), (0.999, 3)):
        module.train()
        module.draw(position)
        y = layer(given(layer))
        wanted = by_hand(layer, state, 2 * (block + 1), 2.0).float()
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
        module.zero_grad()
        y.square().sum().backward()
        for ranks in (module.lora_down_ranks, module.lora_up_ranks):
            learning = [number for number, part in enumerate(ranks.blocks) if part.grad is not None]
            assert learning == [block]
            assert float(ranks.blocks[block].grad.abs().max()) > 0
        module.eval()
        torch.testing.assert_close(layer(given(layer)), by_hand(layer, state, 8, 2.0).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [LoRAModule, LoRAFAModule, DyLoRAModule, PrincipalStart, DoRAModule])
@pytest.mark.parametrize("alpha", [0.0, None])
def test_without_an_alpha_a_file_means_its_rank(make: type[LoRAModule], alpha: float | None) -> None:
    layer = layers()[0].requires_grad_(False)
    module = DyLoRAModule("x", layer, 8, 2.0, 2) if make is DyLoRAModule else make("x", layer, 1.0, 8, 2.0)
    torch.manual_seed(6)
    ranks = module.file_rank
    file = {"lora_down.weight": torch.randn(ranks, 10), "lora_up.weight": torch.randn(12, ranks)}
    file |= {} if alpha is None else {"alpha": torch.tensor(alpha)}
    if isinstance(module, DoRAModule):
        file["dora_scale"] = torch.ones(12, 1)
    wanted = changed(file, layer.weight, None, 1.0)[0]
    module.load_state_dict(dict(file), strict=False)
    torch.testing.assert_close(layer.weight + module.delta(), wanted, rtol=1e-4, atol=1e-5)
    # What is saved again says it in words that every program reads alike.
    assert float(module.file_tensors()["alpha"]) == ranks
    module.merge_to(file)
    torch.testing.assert_close(layer.weight, wanted, rtol=1e-4, atol=1e-5)


def test_momentum_leaves_the_other_ranks_of_dylora_alone() -> None:
    layer = layers()[0]
    module = dylora(layer)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for position in (0.0, 0.3):
        module.draw(position)
        before = module.state_dict()["lora_down.weight"].clone()
        layer(given(layer)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = (module.state_dict()["lora_down.weight"] != before).any(dim=1)
        assert moved.nonzero().flatten().tolist() == ([0, 1] if position == 0.0 else [2, 3])


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_of_dylora_is_a_plain_lora_and_the_reverse(place: int) -> None:
    layer, twin = layers()[place], layers()[place]
    module = dylora(layer).eval()
    plain = LoRAModule("x", twin, 1.0, 8, 1.0)
    plain.apply_to()
    assert not plain.load_state_dict(module.state_dict()).missing_keys
    torch.testing.assert_close(twin(given(twin)), layer(given(layer)), rtol=1e-5, atol=1e-6)
    back = DyLoRAModule("x", layers()[place], 8, 1.0, 4)
    back.train()  # which ranks a step uses has nothing to do with loading
    back.load_state_dict(plain.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    torch.testing.assert_close(back.delta(1.0), plain.delta(1.0))


def test_one_block_is_drawn_for_all_modules_of_dylora() -> None:
    class Transformer2DModel(nn.ModuleDict):
        pass

    unet = nn.ModuleDict({"t": Transformer2DModel({"a": nn.Linear(6, 6), "b": nn.Linear(6, 9)})})
    sizes = LoRASizes(by_name={"lora_unet_t_a": (8, 1.0), "lora_unet_t_b": (4, 1.0)})
    network = DyLoRANetwork(None, unet, 1.0, sizes, LoRADrops(), LoRARates(), 2)
    network.apply_to(None, unet)
    torch.manual_seed(0)
    drawn = set()
    for _ in range(40):
        network.on_step_start()
        drawn.add(tuple(lora._block for lora in network.loras))
    assert drawn == {(0, 0), (1, 0), (2, 1), (3, 1)}


@pytest.mark.parametrize("place", [0, 1])
def test_lora_fa_starts_at_random_and_learns_upwards_only(place: int) -> None:
    layer = layers()[place].requires_grad_(False)
    torch.manual_seed(1)
    wide = LoRAFAModule("x", nn.Linear(1000, 8), 1.0, 24)
    spread = wide.lora_down.weight.std().item()
    assert spread == pytest.approx((2 / (1000 + 24)) ** 0.5, rel=0.02)
    module = LoRAFAModule("x", layer, 1.0, 4, 2.0)
    module.lora_down.weight.requires_grad_(False)
    nn.init.normal_(module.lora_up.weight)
    module.apply_to()
    x = given(layer).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, by_hand(layer, module.state_dict(), 4, 2.0).float(), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    whole = LoRAModule("x", layers()[place].requires_grad_(False), 1.0, 4, 2.0)
    whole.load_state_dict(module.state_dict())
    whole.apply_to()
    other = given(layer).requires_grad_()
    whole.org_module(other).square().sum().backward()
    torch.testing.assert_close(module.lora_up.weight.grad, whole.lora_up.weight.grad)
    torch.testing.assert_close(x.grad, other.grad)
    assert module.lora_down.weight.grad is None


def test_lora_fa_does_not_keep_the_input_of_a_layer() -> None:
    """Its whole point: a step keeps the inner activations only."""
    layer = nn.Linear(64, 64).requires_grad_(False)
    kept: dict[bool, int] = {}
    for fixed in (False, True):
        module = LoRAModule("x", layer, 1.0, 2, 1.0)
        module.lora_down.weight.requires_grad_(not fixed)
        module.apply_to()
        sizes: list[int] = []

        def keep(tensor: Tensor, into: list[int] = sizes) -> Tensor:
            if tensor.shape[0] == 100:
                into.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(torch.randn(100, 64, requires_grad=True))
        module.detach_from()
        kept[fixed] = sum(sizes)
    assert kept == {False: 100 * 66, True: 100 * 2}


def test_norms_are_limited_without_touching_what_is_fixed() -> None:
    layer = layers()[0]
    module = LoRAFAModule("x", layer, 1.0, 4, 2.0)
    nn.init.normal_(module.lora_up.weight)
    down, before = module.lora_down.weight.clone(), module.delta(1.0)
    assert limit_norms([module], 0.1) == (1, pytest.approx(0.1), pytest.approx(0.1))
    assert torch.equal(module.lora_down.weight, down)
    torch.testing.assert_close(module.delta(1.0), before * (0.1 / before.norm()))
    many = dylora(layer)
    before = many.delta(1.0)
    assert limit_norms([many], 0.1)[0] == 1
    torch.testing.assert_close(many.delta(1.0), before * (0.1 / before.norm()), rtol=1e-4, atol=1e-7)
