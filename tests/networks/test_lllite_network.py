"""ControlNet-LLLite's network: names and shapes of the published files, and what it computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_unet
from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.models.tiny import build_tiny
from sd_scripts.models.view import unet_view
from sd_scripts.networks.lllite import LLLiteNetwork, depth_of, read_lllite
from sd_scripts.schema.errors import UserError

# From files trained with cond_emb_dim 32 and network_dim 64.
MODULES = 136
TENSORS = 1600
FINE = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
COARSE = "lllite_unet_middle_block_1_transformer_blocks_0_attn2_to_q"
SHAPES = {
    FINE: {
        "conditioning1.0.bias": [16],
        "conditioning1.0.weight": [16, 3, 4, 4],
        "conditioning1.2.bias": [32],
        "conditioning1.2.weight": [32, 16, 4, 4],
        "down.0.bias": [64],
        "down.0.weight": [64, 640],
        "mid.0.bias": [64],
        "mid.0.weight": [64, 96],
        "up.0.bias": [640],
        "up.0.weight": [640, 64],
    },
    COARSE: {
        "conditioning1.0.bias": [16],
        "conditioning1.0.weight": [16, 3, 4, 4],
        "conditioning1.2.bias": [16],
        "conditioning1.2.weight": [16, 16, 4, 4],
        "conditioning1.4.bias": [32],
        "conditioning1.4.weight": [32, 16, 2, 2],
        "down.0.bias": [64],
        "down.0.weight": [64, 1280],
        "mid.0.bias": [64],
        "mid.0.weight": [64, 96],
        "up.0.bias": [1280],
        "up.0.weight": [1280, 64],
    },
}


def predicted(unet: nn.Module, size: tuple[int, int] = (8, 8), batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, *size, generator=generator).repeat(batch, 1, 1, 1)
    hidden = torch.randn(1, 77, 96, generator=generator).repeat(batch, 1, 1)
    added = {"text_embeds": torch.ones(batch, 64), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * batch)}
    with torch.no_grad():
        return unet(noisy, torch.tensor([500] * batch), hidden, added_cond_kwargs=added).sample


def stirred(unet: nn.Module, cond_emb_dim: int = 8, mlp_dim: int = 16, **options: float) -> LLLiteNetwork:
    """A network whose corrections are not zero, as after training."""
    torch.manual_seed(1)
    network = LLLiteNetwork(unet_view(unet), cond_emb_dim, mlp_dim, **options)
    with torch.no_grad():
        for module in network.corrections():
            module.up[0].weight.normal_(std=0.3)  # type: ignore[operator]
            module.up[0].bias.normal_(std=0.1)  # type: ignore[operator]
    return network.eval()


def picture(height: int = 64, width: int = 64, seed: int = 2) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_full_size_files_have_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        network = LLLiteNetwork(unet_view(make_unet(model_config("sdxl")["unet"])), 32, 64)
    weights = network.state_dict()
    assert len(weights) == TENSORS
    modules = {name.split(".")[0] for name in weights}
    assert len(modules) == MODULES
    for module, shapes in SHAPES.items():
        found = {
            name.removeprefix(f"{module}."): list(value.shape) for name, value in weights.items() if module in name
        }
        assert found == shapes
    pattern = re.compile(
        r"lllite_unet_(input_blocks_[4578]_1|middle_block_1)_transformer_blocks_\d_(attn1_to_[qkv]|attn2_to_q)"
    )
    assert [name for name in modules if not pattern.fullmatch(name)] == []


@pytest.mark.parametrize(
    ("path", "depth"),
    [
        ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 1),
        ("input_blocks.4.1.transformer_blocks.1.attn1.to_k", 2),
        ("input_blocks.5.1.transformer_blocks.0.attn2.to_q", 2),
        ("input_blocks.8.1.transformer_blocks.9.attn1.to_v", 3),
        ("middle_block.1.transformer_blocks.0.attn1.to_q", 3),
        ("middle_block.1.transformer_blocks.0.attn2.to_k", None),
        ("middle_block.1.transformer_blocks.0.attn1.to_out.0", None),
        ("output_blocks.0.1.transformer_blocks.0.attn1.to_q", None),
        ("input_blocks.4.1.proj_in", None),
    ],
)
def test_depth_follows_the_block(path: str, depth: int | None) -> None:
    assert depth_of(path) == depth


def by_hand(weights: dict[str, Tensor], name: str, x: Tensor, image: Tensor) -> Tensor:
    """What a layer's network adds, computed from the file's tensors and the published formula."""

    def layer(part: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]

    signs = F.conv2d(image, *layer("conditioning1.0"), stride=4)
    for number in (2, 4):
        if f"{name}.conditioning1.{number}.weight" in weights:
            weight, bias = layer(f"conditioning1.{number}")
            signs = F.conv2d(signs.relu(), weight, bias, stride=weight.shape[-1])
    batch, channels, height, width = signs.shape
    signs = signs.reshape(batch, channels, height * width).permute(0, 2, 1)
    down = F.linear(x, *layer("down.0")).relu()
    mixed = F.linear(torch.cat([signs, down], dim=2), *layer("mid.0")).relu()
    return F.linear(mixed, *layer("up.0"))


# Where the published names' blocks are in diffusers' U-Net.
PLACES = {"input_blocks_4_1": "down_blocks.1.attentions.0", "input_blocks_5_1": "down_blocks.1.attentions.1"}
PLACES |= {"input_blocks_7_1": "down_blocks.2.attentions.0", "input_blocks_8_1": "down_blocks.2.attentions.1"}
PLACES |= {"middle_block_1": "mid_block.attentions.0"}
NAME = re.compile(r"lllite_unet_(\w+?_1)_transformer_blocks_(\d)_(attn[12])_(to_[qkv])")


def test_another_reader_of_the_file_gets_the_same_prediction(tmp_path: Path) -> None:
    """A plain diffusers U-Net, steered by hooks that know nothing but the file and the formula."""
    unet = build_tiny("sdxl").unet
    network = stirred(unet)
    network.look(picture(), (8, 8))
    ours = predicted(unet)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    weights = load_file(str(tmp_path / "net.safetensors"))
    other = build_tiny("sdxl").unet
    names = sorted({key.split(".")[0] for key in weights})
    assert len(names) == MODULES
    for name in names:
        match = NAME.fullmatch(name)
        assert match is not None
        path = f"{PLACES[match[1]]}.transformer_blocks.{match[2]}.{match[3]}.{match[4]}"
        other.get_submodule(path).register_forward_pre_hook(
            lambda layer, given, name=name: (given[0] + by_hand(weights, name, given[0], picture()),)
        )
    assert torch.allclose(predicted(other), ours, atol=1e-5)
    assert not torch.allclose(predicted(build_tiny("sdxl").unet), ours, atol=1e-3)


def test_a_new_network_changes_nothing_and_without_a_picture_none_does() -> None:
    unet = build_tiny("sdxl").unet
    before = predicted(unet)
    network = LLLiteNetwork(unet_view(unet), 8, 16)
    network.look(picture(), (8, 8))
    assert torch.equal(predicted(unet), before)
    unet = build_tiny("sdxl").unet
    network = stirred(unet)
    assert torch.equal(predicted(unet), before)
    network.look(picture(), (8, 8))
    assert not torch.allclose(predicted(unet), before, atol=1e-3)
    network.forget()
    assert torch.equal(predicted(unet), before)


def test_each_layer_looks_once_at_a_picture_and_guidance_doubles_it() -> None:
    unet = build_tiny("sdxl").unet
    network = stirred(unet)
    looks: list[int] = []
    for module in network.corrections():
        module.conditioning1.register_forward_hook(lambda *unused: looks.append(1))
    network.look(picture(), (8, 8))
    one = predicted(unet)
    both = predicted(unet, batch=2)
    assert len(looks) == MODULES
    assert torch.allclose(both[:1], one, atol=1e-5)
    assert torch.allclose(both[1:], one, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(72, 104), (64, 96), (80, 64)])
def test_sizes_that_do_not_halve_evenly_work(height: int, width: int) -> None:
    unet = build_tiny("sdxl").unet
    network = stirred(unet)
    network.look(picture(height, width), (height // 8, width // 8))
    assert predicted(unet, (height // 8, width // 8)).shape == (1, 4, height // 8, width // 8)


def test_strength_and_dropout() -> None:
    unet = build_tiny("sdxl").unet
    before = predicted(unet)
    network = stirred(unet, dropout=0.5)
    network.look(picture(), (8, 8))
    assert torch.equal(predicted(unet), predicted(unet))
    network.train()
    assert not torch.equal(predicted(unet), predicted(unet))
    network.eval()
    network.multiplier = 0.0
    assert torch.allclose(predicted(unet), before, atol=1e-6)


def test_it_works_on_a_model_kept_in_8_bits() -> None:
    unet = build_tiny("sdxl").unet
    store_in_fp8(unet)
    before = predicted(unet)
    network = stirred(unet)
    assert torch.equal(predicted(unet), before)
    network.look(picture(), (8, 8))
    assert not torch.allclose(predicted(unet), before, atol=1e-3)


def test_files_tell_their_sizes_and_others_are_refused(tmp_path: Path) -> None:
    network = stirred(build_tiny("sdxl").unet, 12, 20)
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    weights, cond_emb_dim, mlp_dim = read_lllite(path)
    assert (cond_emb_dim, mlp_dim) == (12, 20)
    again = LLLiteNetwork(unet_view(build_tiny("sdxl").unet), 12, 20)
    again.load(weights, str(path))
    loaded = again.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    name = next(iter(weights))
    with pytest.raises(UserError, match="lacks 1 of 1600"):
        again.load({key: value for key, value in weights.items() if key != name}, "x")
    with pytest.raises(UserError, match="has unknown 1 of 1600"):
        again.load({**weights, "odd": weights[name]}, "x")
    with pytest.raises(UserError, match="differs in 1 of 1600"):
        again.load({**weights, name: torch.zeros(1)}, "x")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="is no ControlNet-LLLite"):
        read_lllite(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_an_odd_signal_size_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="cond_emb_dim") as found:
        LLLiteNetwork(nn.Module(), size, 8)
    assert found.value.key == "cond_emb_dim"


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="Stable Diffusion XL only"):
        LLLiteNetwork(nn.Module(), 8, 8)
