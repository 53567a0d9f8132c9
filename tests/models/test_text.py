"""Token ids and hidden states against numbers that sd-scripts computed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_scripts.models.build import make_text_encoder
from sd_scripts.models.text import encode_captions, tokenise
from sd_scripts.models.tokenizer import CACHE_NAMES, build_tokenizer, load_tokenizer
from sd_scripts.schema.errors import UserError

CASES = json.loads((Path(__file__).parent / "data" / "tokens.json").read_text(encoding="utf-8"))
_tokenizer = cache(build_tokenizer)


@cache
def _encoder(layers: int) -> torch.nn.Module:
    """The text tower of the vectors' recipe: width 8, weights drawn in the order of the old names."""
    config = {"vocab_size": 49408, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config |= {"num_hidden_layers": layers, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    config |= {"layer_norm_eps": 1e-5, "eos_token_id": 49407, "bos_token_id": 49406}
    encoder = make_text_encoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(encoder.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
    return encoder.eval()


def _assert_same(got: torch.Tensor, want: dict[str, Any]) -> None:
    flat = got.detach().double().flatten()
    torch.testing.assert_close(flat[:8], torch.tensor(want["first8"]).double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat[-8:], torch.tensor(want["last8"]).double(), rtol=1e-4, atol=1e-5)
    assert flat.sum().item() == pytest.approx(want["sum"], rel=1e-4, abs=1e-3)
    assert (flat**2).sum().item() == pytest.approx(want["sumsq"], rel=1e-4)


@pytest.mark.parametrize("case", CASES["input_ids"], ids=lambda case: f"{case['version']} {case['text'][:20]}")
def test_token_ids_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    tokenizer = _tokenizer(case["version"])
    for length, rows in case["rows"].items():
        got = tokenise(tokenizer, [case["text"]], None if length == "None" else int(length))[0].tolist()
        want = [row["head"] + [row["fill_to_end"]] * (77 - len(row["head"])) for row in rows]
        assert got == want


@pytest.mark.parametrize("case", CASES["hidden_states"], ids=lambda case: f"{case['version']} {case['text'][:12]}")
def test_hidden_states_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    with torch.no_grad():
        got = encode_captions(
            _encoder(case["layers"]),
            _tokenizer(case["version"]),
            [case["text"]],
            case["max_token_length"],
            case["clip_skip"],
        )
    assert list(got.shape) == case["hidden"]["shape"]
    _assert_same(got, case["hidden"])


def test_a_batch_is_encoded_as_its_captions_alone() -> None:
    captions = ["a cat", "", "red, " * 60]
    encoder, tokenizer = _encoder(12), _tokenizer("sd1")
    with torch.no_grad():
        together = encode_captions(encoder, tokenizer, captions, 225, 2)
        alone = torch.cat([encode_captions(encoder, tokenizer, [caption], 225, 2) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_layers_below_the_skipped_ones() -> None:
    encoder = _encoder(12)
    encoder.zero_grad()
    encode_captions(encoder, _tokenizer("sd1"), ["a cat"], None, 2).sum().backward()
    layers = encoder.encoder.layers
    assert layers[10].mlp.fc1.weight.grad is not None
    assert layers[11].mlp.fc1.weight.grad is None or not layers[11].mlp.fc1.weight.grad.any()
    encoder.zero_grad()


def test_the_tokenizer_cache_folder_is_written_once_and_read_again(tmp_path: Path) -> None:
    first = load_tokenizer("sd2", str(tmp_path))
    folder = tmp_path / CACHE_NAMES["sd2"]
    assert folder.is_dir()
    again = load_tokenizer("sd2", str(tmp_path))
    text = "a photo of a cat, 2024!"
    assert again(text, padding="max_length").input_ids == first(text, padding="max_length").input_ids
    assert again.pad_token_id == 0


def test_a_broken_tokenizer_cache_is_named(tmp_path: Path) -> None:
    folder = tmp_path / CACHE_NAMES["sd1"]
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer kept in") as caught:
        load_tokenizer("sd1", str(tmp_path))
    assert caught.value.key == "tokenizer_cache_dir"
