"""The sdxl family on small models and against numbers of sd-scripts: text states, sizes, prediction, memory options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL, pool
from sd_scripts.models.build import make_projected_text_encoder, make_text_encoder
from sd_scripts.models.fp8 import FP8
from sd_scripts.models.text import tokenise
from sd_scripts.models.tokenizer import build_tokenizers
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.training import TrainingOptions

FAMILY = StableDiffusionXL()
CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "sdxl.json").read_text(encoding="utf-8")
)
TOKENIZERS = build_tokenizers("sdxl")
SIZES = torch.tensor([[832.0, 1216, 0, 16, 512, 768], [64, 64, 0, 0, 64, 64]])


def cases(section: str) -> Any:
    return pytest.mark.parametrize("case", CASES[section])


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    return FAMILY.load(ModelOptions(pretrained_model_name_or_path=str(path), **options), dtype, "cpu")


@pytest.fixture(scope="module")
def model(tiny_sdxl: Path) -> Model:
    """The small model; tests that change it load their own."""
    return load(tiny_sdxl)


def assert_same(got: Tensor, want: dict[str, Any], relative: float = 1e-5) -> None:
    assert list(got.shape) == want["shape"]
    flat = got.detach().double().flatten()
    if "data" in want:
        torch.testing.assert_close(flat, torch.tensor(want["data"]).double(), rtol=relative, atol=relative)
        return
    for part, numbers in ((flat[:8], want["first8"]), (flat[-8:], want["last8"])):
        torch.testing.assert_close(part, torch.tensor(numbers).double(), rtol=relative, atol=relative)
    assert flat.sum().item() == pytest.approx(want["sum"], rel=relative, abs=1e-3)
    assert flat.square().sum().item() == pytest.approx(want["sumsq"], rel=relative)


def _filled(encoder: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(encoder.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
    return encoder.eval()


@pytest.fixture(scope="module")
def recipe_model() -> Model:
    """Text encoders of width 8 and full depth, with the weights that the stored numbers were made with."""
    config = {"vocab_size": 49408, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 77, "layer_norm_eps": 1e-5, "eos_token_id": 49407, "bos_token_id": 49406}
    first = make_text_encoder(config | {"num_hidden_layers": 12, "hidden_act": "quick_gelu"})
    second = make_projected_text_encoder(config | {"num_hidden_layers": 32, "hidden_act": "gelu", "projection_dim": 8})
    nothing = nn.Identity()
    return Model(nothing, [_filled(first), _filled(second)], TOKENIZERS, nothing, "sdxl", "epsilon")


@cases("hidden_states")
def test_text_states_are_those_of_sd_scripts(case: dict[str, Any], recipe_model: Model) -> None:
    given, want = case["in"], case["out"]
    caption = given["caption"] if given["caption_recipe"] is None else " ".join(["x"] * 224)
    # clip_skip must make no difference.
    options = ModelOptions(max_token_length=given["max_token_length"], clip_skip=2)
    (outputs,) = FAMILY.text_outputs(recipe_model, [caption], options=options)
    # 32 layers of large random weights let rounding grow.
    assert_same(outputs["hidden_state1"][None], want["hidden1"], 1e-4)
    assert_same(outputs["hidden_state2"][None], want["hidden2"], 1e-4)
    assert_same(outputs["pool2"][None], want["pool2"], 1e-4)


@cases("second_tokenizer")
def test_the_second_tokenizer_fills_with_id_0_and_still_reads_exclamation_marks(case: dict[str, Any]) -> None:
    for length, rows in case["rows"].items():
        ids = tokenise(TOKENIZERS[1], [case["text"]], None if length == "None" else int(length))
        assert ids[0].tolist() == [[number for number, count in row for _ in range(count)] for row in rows]


@cases("pooled_output")
def test_pooling_takes_the_first_end_mark(case: dict[str, Any]) -> None:
    ids = torch.tensor(case["in"]["input_ids"])
    torch.manual_seed(case["in"]["seed"])
    # In this order; the layer draws first values of its own, too.
    last, projection = torch.randn(*ids.shape, 4), nn.Linear(4, 4, bias=False)
    projection.weight.data = torch.randn(4, 4)
    assert_same(pool(last, ids, case["in"]["eos"], projection), case["out"]["pooled"])


@cases("size_embeddings")
def test_sizes_reach_the_unet_as_the_waves_of_sd_scripts(case: dict[str, Any], model: Model) -> None:
    given, want = case["in"], case["out"]
    sizes = torch.tensor([given["original_hw"], given["crop_top_left"], given["target_hw"]], dtype=torch.float32)
    rows = sizes.reshape(3, -1, 2).transpose(0, 1).flatten(1)
    seen: list[Tensor] = []
    handle = model.unet.add_embedding.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    batch = len(rows)
    pooled = torch.full((batch, 64), 7.0)
    with torch.no_grad():
        conditioning = Conditioning(torch.zeros(batch, 77, 96), pooled, rows)
        FAMILY.predict(model, torch.zeros(batch, 4, 8, 8), torch.tensor([1] * batch), conditioning)
    handle.remove()
    (vector,) = seen
    assert torch.equal(vector[:, :64], pooled)
    assert_same(vector[:, 64:], want["embedding"], 1e-4)
    for place, value in want.get("at", {}).items():
        assert vector[0, 64 + int(place)].item() == pytest.approx(value, abs=2e-4)


@cases("timestep_embedding")
def test_waves_of_numbers(case: dict[str, Any]) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    # As the U-Net of this family is configured: cosines first, no shift.
    values = torch.tensor(case["timesteps"], dtype=torch.float32)
    got = get_timestep_embedding(values, case["dim"], flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_same(got, case["out"], 1e-4)


@cases("unet_time_embedding")
def test_the_time_embedding_is_that_of_the_reference(case: dict[str, Any], model: Model) -> None:
    assert (model.unet.time_proj.flip_sin_to_cos, model.unet.time_proj.downscale_freq_shift) == (True, 0)
    time_proj = type(model.unet.time_proj)(case["in"]["dim"], flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_same(time_proj(torch.tensor(case["in"]["timesteps"])), case["out"], 1e-4)


def test_sizes_keep_their_precision_in_16_bits() -> None:
    moved = Conditioning(torch.zeros(1, 77, 8), torch.zeros(1, 4), torch.tensor([[1025.0] * 6])).to(
        "cpu", torch.bfloat16
    )
    assert moved.pooled is not None and moved.pooled.dtype == torch.bfloat16
    assert moved.sizes is not None and moved.sizes.unique().tolist() == [1025.0]


def test_load_gives_two_of_everything(model: Model, tiny_sdxl: Path) -> None:
    assert (model.version, model.prediction_type, model.source) == ("sdxl", "epsilon", str(tiny_sdxl))
    assert len(model.text_encoders) == len(model.tokenizers) == 2
    assert FAMILY.kind(model) == {"v2": False, "v_param": False, "is_sdxl": True}
    assert (FAMILY.latent_scale, FAMILY.caches_text) == (0.13025, True)
    assert (StableDiffusion.latent_scale, StableDiffusion.caches_text) == (0.18215, False)


def test_a_single_file_gives_the_same_predictions(model: Model, tiny_sdxl_file: Path) -> None:
    other = load(tiny_sdxl_file)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def predicted(source: Model) -> Tensor:
        conditioning = FAMILY.encode_captions(source, ["a cat on a mat"], options=ModelOptions())
        return FAMILY.predict(source, noisy, torch.tensor([500]), replace(conditioning, sizes=SIZES[:1]))

    assert torch.equal(predicted(model), predicted(other))


def test_no_half_vae_keeps_the_vae_in_32_bits(tiny_sdxl: Path) -> None:
    half = load(tiny_sdxl, torch.bfloat16)
    whole = load(tiny_sdxl, torch.bfloat16, no_half_vae=True)
    assert (half.vae.dtype, whole.vae.dtype, whole.unet.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_a_vae_that_overflows_is_reported_with_the_way_out(tiny_sdxl: Path, photos: Path) -> None:
    picture = np.array(Image.open(photos / "2_photo/astronaut.png").resize((64, 64)))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    for options in ({}, {"no_half_vae": True}):
        model = load(tiny_sdxl, torch.float16, **options)
        with torch.no_grad():
            model.vae.encoder.conv_in.weight.mul_(60000)
        if options:
            assert torch.isfinite(FAMILY.encode_images(model, pixels)).all()
            continue
        with pytest.raises(UserError, match="NaN or infinite") as caught:
            FAMILY.encode_images(model, pixels)
        assert caught.value.key == "no_half_vae"


@pytest.mark.parametrize("length", [None, 150, 225])
def test_kept_outputs_give_the_conditioning_of_the_captions(model: Model, length: int | None) -> None:
    options = ModelOptions(max_token_length=length)
    captions = ["a cat", "red, " * 100 + "dog"]
    with torch.no_grad():
        fresh = FAMILY.encode_captions(model, captions, options=options)
    tokens = {None: 77, 150: 152, 225: 227}[length]
    assert fresh.hidden.shape == (2, tokens, 96)
    assert fresh.pooled is not None and fresh.pooled.shape == (2, 64)
    kept = FAMILY.text_outputs(model, captions, options=options)
    assert [value.shape for value in kept[0].values()] == [(tokens, 32), (tokens, 64), (64,)]
    assert {value.dtype for output in kept for value in output.values()} == {torch.float32}
    batch = {name: torch.stack([output[name] for output in kept]) for name in kept[0]}
    again = FAMILY.from_text_outputs(batch, "cpu", torch.float32)
    assert torch.equal(again.hidden, fresh.hidden)
    assert again.pooled is not None and torch.equal(again.pooled, fresh.pooled)
    assert FAMILY.from_text_outputs(batch, "cpu", torch.bfloat16).hidden.dtype == torch.bfloat16


def test_what_sd_cannot_and_sdxl_must_have(model: Model, tiny_sd1: Path) -> None:
    sd = StableDiffusion()
    options = ModelOptions(pretrained_model_name_or_path=str(tiny_sd1))
    with pytest.raises(UserError, match="cannot be cached") as caught:
        sd.text_outputs(sd.load(options, torch.float32), ["a"], options=options)
    assert caught.value.key == "cache_text_encoder_outputs"
    with pytest.raises(UserError, match="weighted_captions"):
        FAMILY.encode_captions(model, ["a (cat:1.3)"], options=ModelOptions(weighted_captions=True))
    with pytest.raises(ValueError, match="sizes"):
        FAMILY.predict(model, torch.zeros(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.zeros(1, 77, 96)))


def _gradients(model: Model) -> list[Tensor]:
    conditioning = FAMILY.encode_captions(model, ["a cat", "a dog"], options=ModelOptions(max_token_length=150))
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    out = FAMILY.predict(model, noisy, torch.tensor([10, 900]), replace(conditioning, sizes=SIZES))
    assert out.shape == (2, 4, 8, 8)
    out.square().sum().backward()
    first, second = model.text_encoders
    watched = [
        first.encoder.layers[0].self_attn.q_proj.weight,
        second.text_model.encoder.layers[0].mlp.fc1.weight,
        second.text_model.final_layer_norm.weight,
        second.text_projection.weight,
        model.unet.add_embedding.linear_1.weight,
        model.unet.mid_block.attentions[0].transformer_blocks[9].attn2.to_k.weight,
    ]
    grads = []
    for weight in watched:
        assert weight.grad is not None and weight.grad.abs().sum() > 0
        grads.append(weight.grad.clone())
    # The U-Net sees the states before the last layer, and only the second encoder's pooled output what comes after.
    assert first.encoder.layers[11].self_attn.q_proj.weight.grad is None
    assert second.text_model.encoder.layers[31].self_attn.q_proj.weight.grad is not None
    return grads


def test_predict_carries_gradients_to_both_encoders_with_and_without_checkpointing(tiny_sdxl: Path) -> None:
    plain = _gradients(load(tiny_sdxl))
    model = load(tiny_sdxl)
    FAMILY.use_gradient_checkpointing(model, text=True)
    assert all(encoder.training and encoder.is_gradient_checkpointing for encoder in model.text_encoders)
    for got, want in zip(_gradients(model), plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_memory_options(tiny_sdxl: Path) -> None:
    model = load(tiny_sdxl)
    FAMILY.apply_memory_options(model, TrainingOptions(fp8_base=True, mem_eff_attn=True))
    assert model.unet.conv_in.weight.dtype == FP8
    assert model.text_encoders[1].text_model.encoder.layers[0].mlp.fc1.weight.dtype == FP8
    assert model.vae.encoder.conv_in.weight.dtype == torch.float32
    with torch.no_grad():
        conditioning = FAMILY.encode_captions(model, ["a cat"], options=ModelOptions())
        out = FAMILY.predict(model, torch.randn(1, 4, 8, 8), torch.tensor([5]), replace(conditioning, sizes=SIZES[:1]))
    assert torch.isfinite(out).all()


def test_the_views_carry_kohyas_names(model: Model) -> None:
    views = FAMILY.views(model)
    assert len(views.text_encoders) == 2
    for encoder in views.text_encoders:
        names = dict(encoder.named_modules())
        assert type(names["text_model.encoder.layers.0.self_attn"]).__name__ == "CLIPAttention"
    unet = dict(views.unet.named_modules())
    assert type(unet["input_blocks.4.1"]).__name__ == "Transformer2DModel"
    assert unet["middle_block.1.transformer_blocks.9.attn2.to_k"] is (
        model.unet.mid_block.attentions[0].transformer_blocks[9].attn2.to_k
    )
