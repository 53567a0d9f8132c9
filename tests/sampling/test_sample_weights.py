"""Prompt weights, chunks and weighted embeddings against sd-scripts' numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sample_vectors import assert_tensor, cases, encode_with, text_of, tiny_text_encoder

from sd_scripts.models.tokenizer import build_tokenizer
from sd_scripts.sampling.sampler import guided
from sd_scripts.sampling.weights import apply_weights, chunk_tensors, parse_weights, tokenise, weighted_embeddings
from sd_scripts.schema.errors import UserError


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    return {version: build_tokenizer(version) for version in ("sd1", "sd2")}


@pytest.fixture(scope="module")
def encoder():
    return partial(encode_with, tiny_text_encoder(12))


@pytest.mark.parametrize(("given", "expected"), cases("weights.json", "pieces"), ids=lambda v: str(v)[:40])
def test_pieces_of_a_prompt(given: dict, expected: list | dict) -> None:
    if isinstance(expected, dict):
        with pytest.raises(UserError, match="no number"):
            parse_weights(given["text"])
        return
    pieces = parse_weights(given["text"])
    assert [text for text, _ in pieces] == [text for text, _ in expected]
    assert [weight for _, weight in pieces] == pytest.approx([weight for _, weight in expected], rel=1e-6)


@pytest.mark.parametrize("text", [")", "a] b)", ":1.2)", "[a:1.2)", "a:b:c", "\\", "[", "("])
def test_stray_marks_neither_fail_nor_lose_words(text: str) -> None:
    pieces = parse_weights(text)
    assert "".join(piece for piece, _ in pieces).count("a") == text.count("a")


def _lengths(values: list) -> list[list]:
    runs: list[list] = []
    for value in values:
        if runs and abs(runs[-1][0] - value) < 1e-6:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


@pytest.mark.parametrize(("given", "expected"), cases("weights.json", "chunks"))
def test_chunks(given: dict, expected: dict, tokenizers: dict) -> None:
    tokens = tokenise(tokenizers["sd1"], text_of(given), given["max_multiple"])
    assert len(tokens.ids) == expected["token_count"]
    assert tokens.chunks == expected["used_multiple"]
    ids, weights = chunk_tensors(tokens, tokens.chunks, 49406, 49407)
    assert ids.shape == weights.shape == (tokens.chunks, 77)
    # The stored tokens are one long row with a single begin and end mark; every chunk of ours has both.
    row = [49406, *ids[:, 1:-1].flatten().tolist(), 49407]
    assert _lengths(row) == expected["tokens_run_length"]
    assert (ids[:, 0] == 49406).all()
    assert (ids[:, -1] == 49407).all()
    assert weights.numel() == expected["weights_length"]
    assert _lengths(weights.flatten().tolist()) == [
        [pytest.approx(w, rel=1e-6), n] for w, n in expected["weights_run_length"]
    ]


@pytest.mark.parametrize(("given", "expected"), cases("weights.json", "embeddings"))
def test_weighted_embeddings(given: dict, expected: dict, tokenizers: dict, encoder) -> None:
    assert given["layers"] == 12
    embedding, negative = weighted_embeddings(
        tokenizers[given["tokenizer"]], encoder, text_of(given), None, given["clip_skip"], given["max_multiple"]
    )
    assert negative is None
    assert_tensor(embedding, expected["embedding"])
    assert float(embedding.mean()) == pytest.approx(expected["mean"], rel=1e-5)


@pytest.mark.parametrize(("given", "expected"), cases("weights.json", "normalise"))
def test_ways_to_normalise(given: dict, expected: dict, tokenizers: dict, encoder) -> None:
    embedding, negative = weighted_embeddings(
        tokenizers["sd1"], encoder, given["prompt"], given["negative_prompt"], given["clip_skip"], 3, given["mode"]
    )
    assert_tensor(embedding, expected["embedding"])
    assert_tensor(negative, expected["uncond"])


def test_normalising_rule_on_plain_numbers() -> None:
    ((_given, expected),) = cases("weights.json", "rule")
    torch.manual_seed(0)
    values = torch.randn(1, 3, 4) + 0.5
    for mode, wanted in expected.items():
        assert_tensor(apply_weights(values, torch.tensor([[1, 1.5, 0.5]]), mode), wanted)


def test_all_weights_zero_stay_finite() -> None:
    assert (apply_weights(torch.ones(1, 2, 2), torch.zeros(1, 2)) == 0).all()


def test_both_prompts_get_the_length_of_the_longer(tokenizers: dict, encoder) -> None:
    long = " ".join(["dog"] * 100)
    for prompt, negative in ((long, "bad"), ("cat", long)):
        embedding, unwanted = weighted_embeddings(tokenizers["sd1"], encoder, prompt, negative)
        assert embedding.shape == unwanted.shape == (1, 154, 8)
    alone, _ = weighted_embeddings(tokenizers["sd1"], encoder, "cat")
    torch.testing.assert_close(embedding[:, :77], alone)


@pytest.mark.parametrize(
    ("given", "expected"), cases("weights.json", "guidance"), ids=lambda v: str(v.get("scale", ""))
)
def test_guidance(given: dict, expected: dict) -> None:
    torch.manual_seed(0)
    negative, positive = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert_tensor(guided(negative, positive, given["scale"]), expected)
