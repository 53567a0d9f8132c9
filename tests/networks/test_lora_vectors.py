"""LoRA mathematics against numbers computed by the program whose files and seeds ours must fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sd_scripts.networks.lora import LoRANetwork
from sd_scripts.networks.lora_arguments import read_arguments
from sd_scripts.networks.lora_blocks import block_index, lr_weights
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.lora_optimizer import limit_norms
from sd_scripts.schema.errors import UserError

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "lora_vectors.json").read_text(encoding="utf-8")
)


def cases(section: str) -> Any:
    return pytest.mark.parametrize("case", CASES[section], ids=lambda case: case["id"])


def draw(recipe: str) -> dict[str, torch.Tensor]:
    """Run a recipe of the form `torch.manual_seed(1); W=torch.randn(5,6); ...` without executing text."""
    made: dict[str, torch.Tensor] = {}
    for statement in recipe.split(";"):
        statement = statement.strip()
        if statement.startswith("torch.manual_seed("):
            torch.manual_seed(int(statement[18:-1]))
            continue
        name, call = statement.split("=")
        assert call.startswith("torch.randn(")
        made[name] = torch.randn(*[int(size) for size in call[12:-1].split(",")])
    return made


def assert_tensor(actual: torch.Tensor, expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().flatten()
    if "data" in expected:
        torch.testing.assert_close(flat, torch.tensor(expected["data"]), rtol=tolerance, atol=tolerance)
        return
    torch.testing.assert_close(flat[:8], torch.tensor(expected["first8"]), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(flat[-8:], torch.tensor(expected["last8"]), rtol=tolerance, atol=tolerance)
    assert float(flat.double().sum()) == pytest.approx(expected["sum"], rel=tolerance, abs=1e-3)
    assert float(flat.double().square().sum()) == pytest.approx(expected["sumsq"], rel=tolerance)


def layer_like(weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int = 0) -> nn.Linear | nn.Conv2d:
    layer: nn.Linear | nn.Conv2d
    if weight.dim() == 4:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer.requires_grad_(False)


def module_like(made: dict[str, torch.Tensor], rank: int, alpha: float | None, **options: Any) -> LoRAModule:
    padding = 1 if made["W"].dim() == 4 and made["W"].shape[-1] == 3 else 0
    lora = LoRAModule("m", layer_like(made["W"], made["b"], 1, padding), 1.0, rank, alpha, **options)
    lora.lora_down.weight.data = made["down"].clone()
    lora.lora_up.weight.data = made["up"].clone()
    return lora


@cases("forward")
def test_forward(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    made = draw(given["recipe"])
    lora = module_like(made, given["rank"], given["alpha"])
    base = lora.org_module(made["x"])
    lora.apply_to()
    lora.multiplier = given["multiplier"]
    assert_tensor(base, expected["base"])
    assert_tensor(lora.org_module(made["x"]), expected["y"])
    assert lora.scale == pytest.approx(expected["scale"])
    assert float(lora.alpha) == expected["alpha_buffer"]


@cases("init")
def test_initial_weights_and_draws(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    kernel = {"linear": 0, "conv1x1": 1, "conv3x3": 3}[given["kind"]]
    layer = nn.Conv2d(given["in"], given["out"], kernel) if kernel else nn.Linear(given["in"], given["out"])
    torch.manual_seed(int(given["recipe"].split("manual_seed(")[1].split(")")[0]))
    lora = LoRAModule("m", layer, 1.0, given["rank"], 1)
    assert float(torch.rand(1)) == pytest.approx(expected["next_torch_rand"], rel=1e-6)
    assert_tensor(lora.lora_down.weight, expected["down"])
    assert not lora.lora_up.weight.any()
    assert list(lora.state_dict()) == ["alpha", "lora_down.weight", "lora_up.weight"]


@cases("dropout")
def test_dropouts(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    made = draw(given["recipe"])
    options = {key: given[key] for key in ("dropout", "rank_dropout", "module_dropout") if key in given}
    lora = module_like(made, given["rank"], given["alpha"], **options)
    base = lora.org_module(made["x"])
    lora.apply_to()
    lora.train()
    torch.manual_seed(given["seed"])
    output = lora.org_module(made["x"])
    assert float(torch.rand(1)) == pytest.approx(expected["next_torch_rand"], rel=1e-6)
    assert_tensor(output - base, expected["delta_train"], 2e-5)
    lora.eval()
    change = (lora.org_module(made["x"]) - base).double().sum().item()
    assert change == pytest.approx(expected["delta_eval_sum"], abs=1e-3)


@cases("merge_to")
def test_merging(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    made = draw(given["recipe"])
    for dtype in (None, torch.float16):
        lora = module_like(made, given["rank"], given["alpha"])
        lora.multiplier = given["multiplier"]
        assert_tensor(lora.get_weight(given["multiplier"]), expected["get_weight"])
        # The case in half precision is a file that was saved in half precision.
        weights = {key: value.to(dtype or value.dtype) for key, value in lora.state_dict().items()}
        lora.merge_to(weights, dtype)
        merged = lora.org_module.weight
        if dtype is None:
            assert_tensor(merged, expected["merged"])
            assert_tensor(merged - made["W"], expected["delta"], 2e-5)
        else:
            assert merged.dtype == dtype
            assert float(merged.double().sum()) == pytest.approx(expected["merged_fp16_sum"], abs=1e-5)


@cases("max_norm")
def test_norm_limit(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    loras = []
    for module in given["modules"]:
        lora = module_like(draw(module["recipe"]), module["rank"], module["alpha"])
        factors = dict(part.strip().split("*=") for part in module["then"].split(";"))
        lora.lora_down.weight.data *= float(factors["down"])
        lora.lora_up.weight.data *= float(factors["up"])
        loras.append(lora)
    scaled, mean, greatest = limit_norms(loras, given["max_norm"])
    assert scaled == expected["keys_scaled"]
    assert mean == pytest.approx(expected["mean_norm"], rel=1e-5)
    assert greatest == pytest.approx(expected["max_norm_returned"], rel=1e-5)
    for lora, down, up in zip(loras, expected["down_norms"], expected["up_norms"]):
        assert lora.lora_down.weight.norm().item() == pytest.approx(down, rel=1e-5)
        assert lora.lora_up.weight.norm().item() == pytest.approx(up, rel=1e-5)
    assert_tensor(loras[0].lora_up.weight, expected["m0_up"])
    assert_tensor(loras[0].lora_down.weight, expected["m0_down"])
    assert_tensor(loras[3].lora_down.weight, expected["m3_down"])


# The case that counts modules per block needs the full-size model: test_lora_names has it.
@pytest.mark.parametrize(
    "case", [case for case in CASES["block_index"] if "name_to_index" in case["out"]], ids=lambda case: case["id"]
)
def test_block_of_a_module(case: dict[str, Any]) -> None:
    sdxl = case["in"].get("is_sdxl", False)
    names = case["out"]["name_to_index"]
    assert {name: block_index(name, sdxl) for name in names} == names


@cases("block_lr_weights")
def test_block_learning_rate_weights(case: dict[str, Any]) -> None:
    arguments, expected = case["in"]["network_args"], case["out"]
    sdxl = case["in"].get("is_sdxl", False)
    if "error" in expected:
        if case["version"] == "latest":
            # There the shortening of a long list fails; ours shortens it, as the older version does.
            weights = lr_weights(arguments, sdxl)
            assert weights is not None and len(weights) == (23 if sdxl else 25)
            return
        with pytest.raises(UserError, match="lr_weight"):
            lr_weights(arguments, sdxl)
        return
    weights = lr_weights(arguments, sdxl)
    if "weights" in expected:
        assert weights == pytest.approx(expected["weights"])
        return
    parts = {"down": slice(0, 12), "mid": slice(12, 13), "up": slice(13, 25)}
    for part, place in parts.items():
        wanted = expected[part]
        if wanted is None:
            assert weights is None or set(weights[place]) == {1.0}
        else:
            assert weights is not None
            assert weights[place] == pytest.approx(wanted if isinstance(wanted, list) else [wanted])


@cases("block_dims")
def test_block_ranks(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    arguments = dict(given["network_args"])
    for key in ("conv_dim", "conv_alpha"):
        if given[key] is not None:
            arguments[key] = str(given[key])
    blocks = read_arguments(arguments, given["network_dim"], given["network_alpha"]).sizes.blocks
    assert blocks is not None
    assert blocks.dims == expected["block_dims"]
    assert blocks.alphas == expected["block_alphas"]
    assert blocks.conv_dims == expected["conv_block_dims"]
    assert blocks.conv_alphas == expected["conv_block_alphas"]


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_gradients_equal_those_of_the_plain_formula(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 3, padding=1)
    layer.requires_grad_(False)
    x = torch.randn(3, 4, 6) if kind == "linear" else torch.randn(3, 6, 4, 4)
    lora = LoRAModule("m", layer, 0.7, 2, 3.0)
    lora.lora_up.weight.data.normal_()
    expected_x = x.clone().requires_grad_(True)
    detour = lora.lora_up(lora.lora_down(expected_x)) * (0.7 * 3.0 / 2)
    expected = layer(expected_x) + detour
    weights = [lora.lora_down.weight, lora.lora_up.weight]
    wanted = torch.autograd.grad(expected.square().sum(), [expected_x, *weights])
    lora.apply_to()
    own_x = x.clone().requires_grad_(True)
    output = layer(own_x)
    torch.testing.assert_close(output, expected)
    got = torch.autograd.grad(output.square().sum(), [own_x, *weights])
    for own, other in zip(got, wanted):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_a_multiplier_for_each_sample() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).requires_grad_(False)
    lora = LoRAModule("m", layer, 1.0, 2, 2)
    lora.lora_up.weight.data.normal_()
    x = torch.randn(4, 3, 6)
    base = layer(x)
    lora.apply_to()
    full = layer(x) - base
    lora.multiplier = torch.tensor([0.0, 1.0, 0.5, -1.0])
    torch.testing.assert_close(layer(x) - base, full * lora.multiplier[:, None, None], rtol=1e-5, atol=1e-5)
    # Two rows of captions for each of two samples: the first two rows belong to the first sample.
    lora.multiplier = torch.tensor([0.5, 2.0])
    rows = torch.tensor([0.5, 0.5, 2.0, 2.0])[:, None, None]
    torch.testing.assert_close(layer(x) - base, full * rows, rtol=1e-5, atol=1e-5)


def test_removing_a_network_gives_the_layers_their_own_forward_back() -> None:
    layer = nn.Linear(6, 5)
    lora = LoRAModule("m", layer, 1.0, 2, 2)
    lora.lora_up.weight.data.normal_()
    x = torch.randn(2, 6)
    base = layer(x)
    lora.apply_to()
    assert not torch.equal(layer(x), base)
    lora.detach_from()
    assert torch.equal(layer(x), base) and "forward" not in vars(layer)


def test_half_precision_layers_under_autocast_train_float32_weights() -> None:
    layer = nn.Linear(16, 8).requires_grad_(False).to(torch.bfloat16)
    lora = LoRAModule("m", layer, 1.0, 4, 4)
    lora.lora_up.weight.data.normal_()
    lora.apply_to()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(2, 3, 16))
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert lora.lora_down.weight.grad is not None and lora.lora_down.weight.grad.dtype == torch.float32
    assert lora.lora_down.weight.grad.abs().sum() > 0


def test_nothing_of_the_model_is_among_a_network_s_parameters() -> None:
    lora = LoRAModule("m", nn.Linear(6, 5), 1.0, 2, 2)
    assert [name for name, _ in lora.named_parameters()] == ["lora_down.weight", "lora_up.weight"]
    assert isinstance(LoRANetwork(None, None), nn.Module)
