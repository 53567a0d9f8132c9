"""Ways to compute attention, checkpointing, and 8-bit storage: the same numbers, the same gradients."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from sd_scripts.models.attention import ChunkedAttnProcessor, use_attention, use_gradient_checkpointing
from sd_scripts.models.fp8 import FP8, store_in_fp8
from sd_scripts.models.text import encode
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.errors import UserError


def unet_run(unet: nn.Module, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of the text for fixed inputs."""
    text = text.clone().requires_grad_(True)
    out = unet(latents, torch.tensor([7, 800]), text).sample
    out.square().sum().backward()
    assert text.grad is not None
    return out.detach(), text.grad


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 64, generator=generator)


def test_the_memory_saving_attention_equals_pytorchs(inputs: tuple[Tensor, Tensor]) -> None:
    model = build_tiny("sd1")
    assert use_attention(model.unet) == "sdpa"
    out, grad = unet_run(model.unet, *inputs)
    weight = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    weight_grad = weight.grad.clone()
    model.unet.zero_grad()
    assert use_attention(model.unet, mem_eff_attn=True) == "mem_eff_attn"
    model.unet.set_attn_processor(ChunkedAttnProcessor(chunk=100))  # 256 queries: three slices, the last one short
    saved, saved_grad = unet_run(model.unet, *inputs)
    torch.testing.assert_close(saved, out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(saved_grad, grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weight.grad, weight_grad, rtol=1e-3, atol=1e-4)


def test_the_memory_saving_attention_works_in_the_vae() -> None:
    vae = build_tiny("sd1").vae
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        want = vae.encode(pixels).latent_dist.mean
        vae.set_attn_processor(ChunkedAttnProcessor(chunk=16))
        got = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def _largest_kept(unet: nn.Module, latents: Tensor, text: Tensor) -> int:
    """Values of the largest tensor that the forward pass keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(latents, torch.tensor([7, 800]), text.clone().requires_grad_(True))
    return max(sizes)


def test_the_memory_saving_attention_never_keeps_the_table_of_weights() -> None:
    unet = build_tiny("sd1").unet
    latents, text = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 64)
    table = 2 * 8 * 1024 * 1024
    use_attention(unet, mem_eff_attn=True)
    assert _largest_kept(unet, latents, text) < table / 10


def test_xformers_missing_is_one_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed") as caught:
        use_attention(build_tiny("sd1").unet, xformers=True)
    assert caught.value.key == "xformers"
    assert "pip install" in caught.value.hint


def test_checkpointing_keeps_less_and_changes_no_gradient(inputs: tuple[Tensor, Tensor]) -> None:
    model = build_tiny("sd1")
    plain = copy.deepcopy(model.unet)
    out, grad = unet_run(plain, *inputs)
    use_gradient_checkpointing(model.unet, [model.text_encoder])
    assert model.unet.training and model.text_encoder.training
    saved, saved_grad = unet_run(model.unet, *inputs)
    torch.testing.assert_close(saved, out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved_grad, grad, rtol=1e-4, atol=1e-5)
    assert _count_kept(model.unet, *inputs) < _count_kept(plain, *inputs) / 3


def _count_kept(unet: nn.Module, latents: Tensor, text: Tensor) -> int:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        unet(latents, torch.tensor([7, 800]), text.clone().requires_grad_(True))
    return sum(kept)


@pytest.mark.parametrize("clip_skip", [None, 2])
def test_checkpointing_the_text_encoder(clip_skip: int | None) -> None:
    model = build_tiny("sd1")
    ids = model.tokenizer(["a cat", "red"], padding="max_length", return_tensors="pt").input_ids
    weight = model.text_encoder.encoder.layers[4].mlp.fc1.weight
    encode(model.text_encoder, ids, clip_skip).square().sum().backward()
    want = weight.grad.clone()
    model.text_encoder.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a library's word to developers is nothing for people who train
        use_gradient_checkpointing(model.unet, [model.text_encoder])
    encode(model.text_encoder, ids, clip_skip).square().sum().backward()
    torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-4)


def test_fp8_storage_is_a_quarter_and_computes_with_the_rounded_weights(inputs: tuple[Tensor, Tensor]) -> None:
    model = build_tiny("sd1")
    before = sum(p.numel() * p.element_size() for p in model.unet.parameters())
    rounded = copy.deepcopy(model.unet)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = layer.weight.data.to(FP8).float()
    want, want_grad = unet_run(rounded, *inputs)
    assert store_in_fp8(model.unet) > 200
    after = sum(p.numel() * p.element_size() for p in model.unet.parameters())
    assert after < before * 0.27
    assert store_in_fp8(model.unet) == 0
    got, grad = unet_run(model.unet, *inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_fp8_gradients_are_those_of_the_rounded_weights(kind: str) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(8, 6) if kind == "linear" else nn.Conv2d(4, 6, 3, 2, 1)
    x = torch.randn(3, 8) if kind == "linear" else torch.randn(2, 4, 9, 9)
    plain = copy.deepcopy(layer)
    plain.weight.data = plain.weight.data.to(FP8).float()
    store_in_fp8(layer)
    results = []
    for module in (layer, plain):
        y = x.clone().requires_grad_(True)
        out = module(y)
        out.square().sum().backward()
        results.append((out.detach(), y.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_network_trains_on_fp8_weights_under_autocast(inputs: tuple[Tensor, Tensor]) -> None:
    """An adapter that replaced `forward` sees the widened product, and its own weights get gradients."""
    model = build_tiny("sd1")
    model.unet.requires_grad_(False)
    store_in_fp8(model.unet)
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    down, up = nn.Linear(96, 4, bias=False), nn.Linear(4, 96, bias=False)
    plain = layer.forward
    layer.forward = functools.partial(lambda x, call: call(x) + up(down(x)), call=plain)
    losses = []
    optimizer = torch.optim.AdamW([*down.parameters(), *up.parameters()], 0.05)
    latents, text = inputs
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model.unet(latents, torch.tensor([7, 800]), text).sample - latents).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(RuntimeError, match="before a network"):
        fresh = build_tiny("sd1").unet
        fresh.conv_in.forward = lambda x: x
        store_in_fp8(fresh)
