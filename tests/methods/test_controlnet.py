"""ControlNets: made from a U-Net, trained beside it, and saved in the layout that every program reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from network_kit import CAPTIONS, FAMILY, model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.methods.controlnet import ControlNetMethod
from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_unet
from sd_scripts.models.controlnet import control_to_original, load_controlnet, make_controlnet
from sd_scripts.models.convert import fit_projections
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.controlnet import ControlNetOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions

# From published files for Stable Diffusion 1.5.
TENSORS = 340
TOP_LEVEL = {"input_blocks", "input_hint_block", "middle_block", "middle_block_out", "time_embed", "zero_convs"}
SHAPES = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.0.in_layers.0.weight": (320,),
    "input_hint_block.0.weight": (16, 3, 3, 3),
    "middle_block_out.0.weight": (1280, 1280, 1, 1),
    "time_embed.0.weight": (1280, 320),
    "zero_convs.0.0.weight": (320, 320, 1, 1),
}
NAMES = {
    "time_embedding.linear_1.weight": "time_embed.0.weight",
    "time_embedding.linear_1.bias": "time_embed.0.bias",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "conv_in.weight": "input_blocks.0.0.weight",
    "controlnet_mid_block.weight": "middle_block_out.0.weight",
    "controlnet_mid_block.bias": "middle_block_out.0.bias",
    "controlnet_cond_embedding.blocks.3.bias": "input_hint_block.8.bias",
    "controlnet_cond_embedding.conv_out.weight": "input_hint_block.14.weight",
    "down_blocks.1.resnets.0.norm1.weight": "input_blocks.4.0.in_layers.0.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
}


def method(source: str | Path | None = None, rate: float = 1e-3, file_format: str | None = None) -> ControlNetMethod:
    options = ControlNetOptions(controlnet_model_name_or_path=None if source is None else str(source))
    return ControlNetMethod(options, OptimizerOptions(learning_rate=rate), file_format)


def attached(base: Model, source: str | Path | None = None, checkpointing: bool = False, **options: Any) -> Any:
    made = method(source)
    made.attach(base, FAMILY, gradient_checkpointing=checkpointing, weight_dtype=torch.float32, **options)
    return made


def stirred(base: Model, seed: int = 5) -> ControlNetMethod:
    """A ControlNet whose zeros are gone, as after training."""
    made = attached(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    return made


def noisy_batch(pictures: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    if pictures is None:
        pictures = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    return noisy, torch.tensor([500, 100]), SimpleNamespace(conditioning_images=pictures)


def captions(base: Model) -> Conditioning:
    with torch.no_grad():
        return FAMILY.encode_captions(base, CAPTIONS, options=ModelOptions())


def prediction(base: Model, made: ControlNetMethod, pictures: Tensor | None = None) -> Tensor:
    noisy, timesteps, batch = noisy_batch(pictures)
    return FAMILY.predict(base, noisy, timesteps, made.before_predict(captions(base), batch, noisy, timesteps))


def residuals(net: Any, base: Model) -> list[Tensor]:
    noisy, timesteps, batch = noisy_batch()
    pictures = (batch.conditioning_images + 1) / 2
    with torch.no_grad():
        down, middle = net(noisy, timesteps, captions(base).hidden, controlnet_cond=pictures, return_dict=False)
    return [*down, middle]


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_full_size_files_have_the_published_names_and_shapes(version: str) -> None:
    with torch.device("meta"):
        net = make_controlnet(make_unet(model_config(version)["unet"]))
    weights = control_to_original(net.state_dict(), linear=version == "sd2")
    assert len(weights) == TENSORS
    assert {name.split(".")[0] for name in weights} == TOP_LEVEL
    assert {name: tuple(weights[name].shape) for name in SHAPES} == SHAPES
    known = set(net.state_dict())
    for ours, theirs in NAMES.items():
        assert ours in known
        assert list(control_to_original({ours: torch.zeros(1)})) == [theirs]
    projection = weights["middle_block.1.proj_in.weight"]
    assert projection.ndim == (2 if version == "sd2" else 4)


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_new_controlnet_changes_nothing_and_is_a_copy_of_the_first_half(version: str) -> None:
    base = model(version)
    noisy, timesteps, _ = noisy_batch()
    before = FAMILY.predict(base, noisy, timesteps, captions(base))
    made = attached(base)
    assert torch.equal(prediction(base, made), before)
    own, theirs = made.module.state_dict(), base.unet.state_dict()
    shared = [name for name in own if not name.startswith("controlnet_")]
    assert len(shared) > 250
    assert all(torch.equal(own[name], theirs[name]) for name in shared)
    assert all(own[name].data_ptr() != theirs[name].data_ptr() for name in shared)
    hint = [value for name, value in own.items() if name.startswith("controlnet_cond_embedding.blocks")]
    assert all(value.std() > 0 for value in hint)


def test_a_seed_gives_the_same_start(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(3)
        attached(model()).save(tmp_path / f"{name}.safetensors", None, None)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_control_pictures_go_in_between_zero_and_one() -> None:
    base = model()
    made = stirred(base)
    noisy, timesteps, batch = noisy_batch()
    found = made.before_predict(captions(base), batch, noisy, timesteps).residuals
    assert found is not None
    assert len(found[0]) == 12
    wanted = residuals(made.module, base)
    assert all(torch.equal(one, two) for one, two in zip([*found[0], found[1]], wanted, strict=True))
    black, white = (prediction(base, made, torch.full((2, 3, 64, 64), value)) for value in (-1.0, 1.0))
    assert (black - white).abs().max() > 1e-3
    white.square().mean().backward()
    first = made.module.get_submodule("controlnet_cond_embedding.conv_in")
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in first.parameters())


def test_only_the_controlnet_learns_and_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        base = model()
        if checkpointing:
            FAMILY.use_gradient_checkpointing(base, text=False)
        made = attached(base, checkpointing=checkpointing)
        prediction(base, made).square().mean().backward()
        assert all(
            parameter.grad is None for part in (base.unet, base.text_encoders[0]) for parameter in part.parameters()
        )
        assert sorted(group.name for group in made.parameter_groups()) == ["controlnet"]
        # Behind zeroed convolutions only these see a gradient in the first step.
        assert made.module.controlnet_mid_block.weight.grad.abs().max() > 0
        gradients.append({name: value.grad for name, value in made.module.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
    assert all(value is not None for value in gradients[0].values())


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_the_file_gives_the_same_residuals_in_diffusers(version: str, tmp_path: Path) -> None:
    base = model(version)
    made = stirred(base)
    made.save(tmp_path / "net.safetensors", None, {"ss_steps": "1"})
    with safe_open(str(tmp_path / "net.safetensors"), framework="pt") as file:
        assert file.metadata() is None
        assert len(file.keys()) == TENSORS
    made.module.save_config(tmp_path / "config")
    opened = ControlNetModel.from_single_file(
        str(tmp_path / "net.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    made.module.eval()
    for one, two in zip(residuals(opened.eval(), base), residuals(made.module, base), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt"])
@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_round_trip_keeps_every_bit(version: str, suffix: str, tmp_path: Path) -> None:
    base = model(version)
    made = stirred(base)
    made.save(tmp_path / f"one{suffix}", None, None)
    again = attached(base, tmp_path / f"one{suffix}")
    first, second = made.module.state_dict(), again.module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again.save(tmp_path / f"two{suffix}", None, None)
    if suffix == ".safetensors":
        assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_other_shapes_of_the_same_net_are_read_too(tmp_path: Path) -> None:
    base = model()
    made = stirred(base)
    made.module.save_pretrained(tmp_path / "folder")
    made.save(tmp_path / "plain.safetensors", None, None)
    plain = load_file(str(tmp_path / "plain.safetensors"))
    beside = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    save_file({f"control_model.{key}": value for key, value in plain.items()} | beside, tmp_path / "first.safetensors")
    pipeline = tmp_path / "pipeline" / "controlnet"
    made.module.save_pretrained(pipeline)
    wanted = made.module.state_dict()
    for source in (
        tmp_path / "folder",
        tmp_path / "folder" / "diffusion_pytorch_model.safetensors",
        tmp_path / "first.safetensors",
        tmp_path / "pipeline",
    ):
        found = load_controlnet(str(source), base.unet).state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), source


def test_a_net_for_sd2_fits_both_kinds_of_projections(tmp_path: Path) -> None:
    """SD2's projections run as matrices from a folder and as convolutions from a single file."""
    base = model("sd2")
    made = stirred(base)
    made.save(tmp_path / "net.safetensors", None, None)
    config = dict(base.unet.config) | {"use_linear_projection": False}  # type: ignore[arg-type]
    as_convolutions = make_unet(config)
    as_convolutions.load_state_dict(fit_projections(base.unet.state_dict(), linear=False))
    other = load_controlnet(str(tmp_path / "net.safetensors"), as_convolutions)
    assert other.mid_block.attentions[0].proj_in.weight.ndim == 4
    made.module.eval()
    for one, two in zip(residuals(other.eval(), base), residuals(made.module, base), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_what_is_no_controlnet_for_this_model_is_refused(tmp_path: Path) -> None:
    base = model()
    for name, version in (("own", "sd1"), ("other", "sd2")):
        attached(model(version)).save(tmp_path / f"{name}.safetensors", None, None)
    save_file({"lora_unet.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    torn = load_file(str(tmp_path / "own.safetensors"))
    torn.pop("zero_convs.3.0.weight")
    save_file(torn, tmp_path / "torn.safetensors")
    save_file(
        torn | {"zero_convs.3.0.weight": torch.zeros(1), "odd.weight": torch.zeros(1)}, tmp_path / "odd.safetensors"
    )
    attached(model("sd2")).module.save_pretrained(tmp_path / "folder")
    for source, words in (
        ("other.safetensors", "does not fit the base model"),
        ("folder", "its cross_attention_dim is 96, the model's is 64"),
        ("lora.safetensors", "is not a ControlNet"),
        ("torn.safetensors", "lacks 1 of 340 weights"),
        ("odd.safetensors", "1 weights of an unknown kind"),
        ("nothing.safetensors", "There is no ControlNet at"),
        ("nobody/nothing", "cannot be fetched: the hub is not reachable"),
    ):
        with pytest.raises(UserError, match=words) as found:
            attached(base, source if source == "nobody/nothing" else tmp_path / source)
        assert found.value.key == "controlnet_model_name_or_path"


def test_sixteen_bits_and_a_rate_of_zero(tmp_path: Path) -> None:
    made = attached(model(), network_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in made.module.parameters()} == {torch.bfloat16}
    made.save(tmp_path / "half.safetensors", torch.float16, None)
    assert {value.dtype for value in load_file(str(tmp_path / "half.safetensors")).values()} == {torch.float16}
    idle = method(rate=0.0)
    idle.attach(model(), FAMILY, gradient_checkpointing=False, weight_dtype=torch.float32)
    with pytest.raises(UserError, match="learning rate is 0"):
        idle.parameter_groups()


def test_the_net_attends_as_the_model_does() -> None:
    base = model()
    base.extras["attention"] = "mem_eff_attn"
    made = attached(base)
    assert {type(processor).__name__ for processor in made.module.attn_processors.values()} == {"ChunkedAttnProcessor"}


def test_a_sample_prompt_brings_its_control_picture(photos: Path, tmp_path: Path) -> None:
    base = model()
    made = stirred(base)
    made.module.train()
    device = torch.device("cpu")
    picture = photos / "2_photo" / "coffee.png"
    noisy, timesteps, _ = noisy_batch()
    prompt = SamplePrompt("a cat", width=64, height=64, controlnet_image=str(picture))
    with made.guide(prompt, device, torch.float32) as guide:
        assert guide is not None
        assert not made.module.training
        with torch.no_grad():
            steered = guide(captions(base), noisy, timesteps)
    assert made.module.training
    assert steered.residuals is not None
    assert steered.residuals[1].shape[0] == 2
    with made.guide(SamplePrompt("a cat"), device, torch.float32) as guide:
        assert guide is None
    with pytest.raises(UserError, match="There is no control picture"):
        made.guide(SamplePrompt("a", controlnet_image=str(tmp_path / "no.png")), device, torch.float32).__enter__()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="bad.png"):
        made.guide(SamplePrompt("a", controlnet_image=str(tmp_path / "bad.png")), device, torch.float32).__enter__()


def test_samples_follow_the_control_picture(photos: Path) -> None:
    base = model()
    made = stirred(base)
    device = torch.device("cpu")
    pictures = []
    for name in (None, "coffee", "rocket"):
        path = None if name is None else str(photos / "2_photo" / f"{name}.png")
        prompt = SamplePrompt("a", width=64, height=64, steps=2, seed=1, controlnet_image=path)
        with made.guide(prompt, device, torch.float32) as guide:
            image = FAMILY.sample(
                base, prompt, sampler="ddim", options=ModelOptions(), device=device, dtype=torch.float32, guide=guide
            )
        pictures.append(image.tobytes())
    assert len(set(pictures)) == 3
