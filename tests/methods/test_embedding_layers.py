"""Extended Textual Inversion: a vector of its own for each of the U-Net's cross-attention blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_kit import SD, VECTORS, conditioning, everything, model, number_rows, train, xti
from safetensors.torch import load_file
from torch import Tensor

from sd_scripts.networks.embedding_file import LAYERS
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions


class Batch:
    def __init__(self, *captions: str) -> None:
        self.captions = list(captions)


def layers_of(base: Any, made: Any, *captions: str) -> tuple[Tensor, ...]:
    noisy, timesteps = torch.zeros(len(captions), 4, 8, 8), torch.zeros(len(captions), dtype=torch.int64)
    steered = made.before_predict(conditioning(base, list(captions)), Batch(*captions), noisy, timesteps)
    assert steered.layers is not None
    return tuple(steered.layers)


@pytest.mark.parametrize("case", VECTORS["xti_tokens"], ids=lambda case: " ".join(map(str, case["in"].values())))
def test_words_and_rows_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    base = model()
    number_rows(base)
    made = xti(base, **case["in"])
    expected, words = case["out"], made.added_words
    to_ids = base.tokenizers[0].convert_tokens_to_ids
    assert to_ids(made.words) == expected["base_token_ids"]
    extra = words[len(made.words) :]
    assert len(extra) == expected["xti_count"]
    vectors = case["in"]["num_vectors_per_token"]
    assert [extra[0], extra[vectors - 1], extra[vectors], extra[-1]] == [
        expected["xti_first_last"][0],
        expected["xti_first_last"][1],
        expected["xti_first_last"][2],
        expected["xti_first_last"][3],
    ]
    assert [to_ids(extra)[0], to_ids(extra)[-1]] == expected["xti_ids_first_last"]
    assert list(LAYERS) == expected["layers"]
    (rows,) = made.module.parameters()
    assert len(rows) == expected["xti_count"]
    if expected["embedding_rows"] is not None:
        assert [int(row[0]) for row in rows] == expected["embedding_rows"]


def test_each_layer_reads_the_captions_with_its_own_rows() -> None:
    base = model()
    made = xti(base, num_vectors_per_token=2)
    (rows,) = made.module.parameters()
    rows.data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    captions = ["a mytoken mytoken1 dog", "a cat"]
    layers = layers_of(base, made, *captions)
    assert len(layers) == 16
    for number, name in enumerate(LAYERS):
        named = f"a mytoken_{name} mytoken1_{name} dog"
        # The words with a layer's name stand for one row each, whatever the layer.
        alone = conditioning(base, [named, "a cat"]).hidden
        assert torch.allclose(layers[number], alone, atol=1e-6), name
    assert torch.allclose(layers[0][1], layers[7][1], atol=1e-6), "other captions are the same for all layers"
    assert not torch.allclose(layers[0][0], layers[7][0], atol=1e-3)


def test_every_row_learns_through_its_own_block() -> None:
    base = model()
    made = xti(base, init_word="cat", num_vectors_per_token=2)
    before = everything(base)
    (rows,) = made.module.parameters()
    start = rows.detach().clone()
    losses, optimizer = train(base, made, ["a mytoken mytoken1 dog"])
    assert losses[-1] < losses[0]
    assert bool((rows != start).any(dim=1).all())
    after = everything(base)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_block_hears_of_its_own_rows_only() -> None:
    base = model()
    made = xti(base, init_word="cat")
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([500])
    seen: dict[int, Tensor] = {}
    blocks = [
        block
        for stage in (*base.unet.down_blocks, base.unet.mid_block, *base.unet.up_blocks)
        for block in getattr(stage, "attentions", None) or ()
    ]
    steered = made.before_predict(conditioning(base, ["mytoken"]), Batch("mytoken"), noisy, timesteps)
    SD.predict(base, noisy, timesteps, steered)  # the first prediction sets the blocks up
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(
            lambda module, args, kwargs, number=number: seen.__setitem__(number, kwargs["encoder_hidden_states"]),
            with_kwargs=True,
        )
    (rows,) = made.module.parameters()
    rows.data[7] = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(4))  # OUT03
    steered = made.before_predict(conditioning(base, ["mytoken"]), Batch("mytoken"), noisy, timesteps)
    SD.predict(base, noisy, timesteps, steered)
    assert len(seen) == 16
    changed = [number for number in seen if not torch.allclose(seen[number], seen[0], atol=1e-5)]
    assert changed == [7]


def test_files_go_round(tmp_path: Path) -> None:
    made = xti(model(), num_vectors_per_token=2)
    made.save(tmp_path / "word.safetensors", None, {})
    assert list(load_file(str(tmp_path / "word.safetensors"))) == sorted(LAYERS)
    again = xti(model(), num_vectors_per_token=2, weights=str(tmp_path / "word.safetensors"))
    assert torch.equal(*made.module.parameters(), *again.module.parameters())
    with pytest.raises(UserError, match="has 2 vectors, but num_vectors_per_token is 1"):
        xti(model(), weights=str(tmp_path / "word.safetensors"))


def test_not_for_sdxl() -> None:
    with pytest.raises(UserError, match="Stable Diffusion 1 and 2"):
        xti(model("sdxl"))


def picture(base: Any, made: Any, text: str, **more: Any) -> Any:
    given = {"prompt": text, "negative": None, "width": 64, "height": 64, "steps": 2, "seed": 1, **more}
    prompt = SamplePrompt(**given)
    device = torch.device("cpu")
    with made.guide(prompt, device, torch.float32) as guide:
        return SD.sample(
            base,
            prompt,
            sampler="ddim",
            options=ModelOptions(),
            device=device,
            dtype=torch.float32,
            guide=guide,
        )


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_samples_show_every_layer(scale: float) -> None:
    base = model()
    made = xti(base, init_word="cat")
    first = picture(base, made, "a mytoken", scale=scale, negative="blue")
    same = picture(base, made, "a cat", scale=scale, negative="blue")
    assert first.tobytes() == same.tobytes(), "all layers start from the same word"
    (rows,) = made.module.parameters()
    rows.data[15] = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(4))  # OUT11
    assert picture(base, made, "a mytoken", scale=scale, negative="blue").tobytes() != first.tobytes()
    assert picture(base, made, "a cat", scale=scale, negative="blue").tobytes() == first.tobytes()
    negative = picture(base, made, "a cat", scale=scale, negative="mytoken").tobytes()
    assert (negative == first.tobytes()) is (scale == 1.0)
