"""LoRA-FA, DyLoRA, OFT, LoHa and LoKr on small real models: trained, saved, read back, merged, and read by others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from kinds_kit import ARGUMENTS, FEW, KINDS, PAIRS, Bases, filled, options, seen, with_file
from network_kit import XL_FAMILY, attached, family_of, model, output, train
from safetensors.torch import load_file
from torch import nn

from sd_scripts.families.base import Model
from sd_scripts.models.fp8 import store_in_fp8
from sd_scripts.networks.oft import OFTModule
from sd_scripts.networks.plugin import Plugin, load_plugin


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases()


@pytest.mark.parametrize(("kind", "version"), PAIRS)
def test_it_learns_and_comes_back(bases: Bases, kind: str, version: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, plain = bases.get(version), bases.plain(version)
    frozen = {name: value.clone() for name, value in base.unet.state_dict().items()}
    path = tmp_path / "x.safetensors"
    with bases.network(version, rate=5e-3, **options(kind)) as made:
        torch.testing.assert_close(seen(base), plain, rtol=1e-6, atol=1e-6)
        before = {name: value.clone() for name, value in made.module.state_dict().items()}
        losses = train(base, made, steps=2)
        made.module.eval()
        wanted = seen(base)
        moved = {key.split(".")[1] for key, value in made.module.state_dict().items() if (value != before[key]).any()}
        made.save(path, None, {"ss_v2": "False"})
    assert (wanted - plain).abs().max() > 1e-3
    assert kind == "dylora" or losses[-1] < losses[0]
    assert "alpha" not in moved
    assert kind != "lora_fa" or moved == {"lora_up"}
    assert all(torch.equal(value, frozen[name]) for name, value in base.unet.state_dict().items())
    again = with_file(bases, version, **options(kind, network_weights=str(path)))
    torch.testing.assert_close(again, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "version"), PAIRS)
def test_ranks_from_a_file_and_merging_do_what_the_network_does(
    bases: Bases, kind: str, version: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    wanted = filled(bases, version, kind, path)
    name = f"networks.{kind}"
    by_file = with_file(bases, version, network_module=name, network_weights=str(path), dim_from_weights=True)
    torch.testing.assert_close(by_file, wanted, rtol=1e-5, atol=1e-5)
    encoders, unet = bases.views(version)
    encoders = encoders if isinstance(encoders, list) else [encoders]
    plugin, weights = Plugin.from_weights(load_plugin(name), name, encoders, unet, path, for_inference=True)
    plugin.module.backup_weights()
    plugin.merge_into(weights, 1.0, None, None)
    merged = seen(bases.get(version))
    plugin.module.restore_weights()
    torch.testing.assert_close(merged, wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(seen(bases.get(version)), bases.plain(version))
    assert (bases.plain(version) - wanted).abs().max() > 1e-2


def names_in(path: Path) -> set[str]:
    return {key.partition(".")[0] for key in load_file(path)}


def pipeline(base: Model) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    common = {"vae": base.vae, "unet": base.unet, "scheduler": DDIMScheduler()}
    encoder, tokenizer = base.text_encoders[0], base.tokenizers[0]
    if base.version == "sdxl":
        second = {"text_encoder_2": base.text_encoders[1], "tokenizer_2": base.tokenizers[1]}
        return StableDiffusionXLPipeline(
            text_encoder=encoder, tokenizer=tokenizer, **common, **second, add_watermarker=False
        )
    return StableDiffusionPipeline(
        text_encoder=encoder,
        tokenizer=tokenizer,
        **common,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize(
    ("kind", "version"), [pytest.param("lora_fa", "sd1", marks=pytest.mark.slow), ("dylora", "sdxl")]
)
def test_diffusers_does_with_a_file_what_the_network_did(bases: Bases, kind: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    wanted = filled(bases, version, kind, path)
    foreign = model(version)
    pipeline(foreign).load_lora_weights(str(path))
    torch.testing.assert_close(seen(foreign), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "version"), PAIRS[6:])
@pytest.mark.parametrize("more", [[], pytest.param(["use_tucker=True"], marks=pytest.mark.slow)])
def test_lycoris_does_with_a_file_what_the_network_did(
    bases: Bases, kind: str, version: str, more: list[str], tmp_path: Path
) -> None:
    lycoris = pytest.importorskip("lycoris.kohya")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    if kind == "lokr" and more:
        # LyCORIS mistakes the rank of such a file for another size, whoever wrote it.
        more = ["decompose_both=True", "network_reg_dims=.*ff.*=1"]
    path = tmp_path / "x.safetensors"
    wanted = filled(bases, version, kind, path, network_args=["conv_dim=2", "conv_alpha=3", FEW, *more])
    base = model(version)
    views = family_of(base).views(base)
    encoders: Any = views.text_encoders if version == "sdxl" else views.text_encoders[0]
    network, _ = lycoris.create_network_from_weights(1.0, str(path), base.vae, encoders, views.unet)
    assert len(network.unet_loras) + len(network.text_encoder_loras) == len(names_in(path))
    network.apply_to(encoders, views.unet, True, True)
    network.eval()
    torch.testing.assert_close(seen(base), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.01])
@pytest.mark.parametrize("layer", [nn.Linear(12, 32), nn.Conv2d(6, 32, 3, padding=1)])
def test_lycoris_turns_a_layer_as_oft_does(layer: nn.Linear | nn.Conv2d, alpha: float) -> None:
    """Its Diag-OFT reads the same tensors, where there are at least as many blocks as rows in each."""
    kind = pytest.importorskip("lycoris.modules.diag_oft").DiagOFTModule
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(3, 12)
    module = OFTModule("x", layer, 8, alpha)
    nn.init.normal_(module.oft_blocks, std=0.5)
    module.apply_to()
    turned = layer(x)
    module.detach_from()
    with torch.no_grad():
        theirs = kind.make_module_from_state_dict("x", layer, module.oft_blocks, None, module.alpha)
    theirs.apply_to()
    theirs.eval()
    torch.testing.assert_close(layer(x), turned, rtol=1e-5, atol=1e-5)
    theirs.restore()
    assert (layer(x) - turned).abs().max() > 0.01


@pytest.mark.slow
def test_files_of_lycoris_go_on_here(bases: Bases, tmp_path: Path) -> None:
    pytest.importorskip("lycoris.kohya")
    for algo in ("loha", "lokr"):
        base = model()
        arguments = [f"algo={algo}", "preset=attn-only", "factor=4"]
        made = attached(base, network_module="lycoris.kohya", network_dim=2, network_alpha=1, network_args=arguments)
        for parameter in made.module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        path = tmp_path / f"{algo}.safetensors"
        made.save(path, None, None)
        made.module.eval()
        wanted = seen(base)
        name = {"network_module": f"networks.{algo}"}
        found = with_file(bases, "sd1", **name, network_weights=str(path), dim_from_weights=True)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def small_weights() -> Model:
    """A model whose U-Net is kept in 8 bits and recomputes its activations."""
    base = model("sdxl")
    store_in_fp8(base.unet)
    XL_FAMILY.use_gradient_checkpointing(base, text=False)
    return base


@pytest.mark.parametrize("kind", [pytest.param("lora_fa", marks=pytest.mark.slow), *KINDS[1:]])
def test_an_8_bit_base_under_half_precision_and_checkpointing(kind: str, small_weights: Model) -> None:
    base = small_weights
    made = attached(base, rate=1e-2, checkpointing=True, network_train_unet_only=True, **options(kind))
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(base, made, steps=1)
    made.module.remove()
    assert all(torch.tensor(losses).isfinite())
    state = made.module.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in state.items())
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert {parameter.dtype for parameter in made.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["dylora", "loha", "lokr"])
def test_checkpointing_gives_the_same_gradients(bases: Bases, kind: str) -> None:
    drops = {"loha": ["rank_dropout=0.3", "module_dropout=0.3"], "lokr": ["rank_dropout=0.3"]}
    base = bases.get("sdxl")
    more = {"network_args": [*ARGUMENTS[kind], *drops.get(kind, ())], "network_train_unet_only": True}
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            base.unet.enable_gradient_checkpointing()
        torch.manual_seed(0)
        with bases.network("sdxl", checkpointing=checkpointing, **options(kind, **more)) as made:
            made.parameter_groups()
            for parameter in made.module.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            made.on_epoch_start()
            torch.manual_seed(1)
            made.on_step_start(None, 0)
            output(base).square().mean().backward()
            found.append({name: parameter.grad for name, parameter in made.module.named_parameters()})
    base.unet.disable_gradient_checkpointing()
    base.unet.eval()
    assert any(gradient is not None for gradient in found[0].values())
    for name, gradient in found[0].items():
        if gradient is None:
            assert found[1][name] is None
        else:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_has_its_own_strength(bases: Bases, kind: str) -> None:
    base, plain = bases.get("sdxl"), bases.plain("sdxl")
    with bases.network("sdxl", **options(kind, network_train_unet_only=True)) as made:
        for parameter in made.module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        made.module.eval()
        full = seen(base)
        made.on_step_start(torch.tensor([0.0, 1.0]), 0)
        both = seen(base)
    torch.testing.assert_close(both[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], full[1], rtol=1e-4, atol=1e-5)
    assert (full - plain).abs().max() > 1e-3


def test_weights_are_put_in_for_drawing_and_taken_out_again(bases: Bases) -> None:
    base, plain = bases.get("sdxl"), bases.plain("sdxl")
    for kind in KINDS:
        with bases.network("sdxl", **options(kind, network_train_unet_only=True)) as made:
            for parameter in made.module.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
            made.module.eval()
            wanted = seen(base)
        made.module.backup_weights()
        made.module.pre_calculation()
        torch.testing.assert_close(seen(base), wanted, rtol=1e-3, atol=1e-4)
        made.module.restore_weights()
        assert torch.equal(seen(base), plain)
