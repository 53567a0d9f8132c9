"""New words: their tokens, where they start, what is trained, and what happens to captions."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from embedding_kit import (
    SD,
    VECTORS,
    attach,
    conditioning,
    everything,
    method,
    model,
    number_rows,
    options,
    tables,
    train,
)
from safetensors.torch import save_file

from sd_scripts.methods.embedding import EmbeddingMethod
from sd_scripts.schema.captions import CaptionRules, compose
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.templates import OBJECT, STYLE


def case_id(case: dict[str, Any]) -> str:
    return " ".join(str(value) for value in case["in"].values())


@pytest.mark.parametrize("case", VECTORS["tokens"], ids=case_id)
def test_words_tokens_and_first_rows_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    base = model()
    number_rows(base)
    if "error" in expected:
        with pytest.raises(UserError, match=f"'{given['token_string']}' is a token of this model already"):
            method(base, **given)
        return
    made = method(base, **given)
    tokenizer = base.tokenizers[0]
    assert made.words == expected["token_strings"]
    assert tokenizer.convert_tokens_to_ids(made.words) == expected["token_ids"]
    assert len(tokenizer) == expected["tokenizer_length"]
    token = given["token_string"]
    assert tokenizer(" ".join(made.words)).input_ids == expected["ids_of_joined"]
    assert tokenizer(f"a photo of {token}, sky").input_ids == expected["ids_in_caption"]
    if "ids_of_glued" in expected:
        assert tokenizer(f"x{token}1y").input_ids == expected["ids_of_glued"]
    if expected["init_ids"] is not None:
        assert tokenizer(given["init_word"], add_special_tokens=False).input_ids == expected["init_ids"]
        (rows,) = made.module.parameters()
        assert [int(row[0]) for row in rows] == expected["embedding_rows"]
        assert bool((rows == rows[:, :1]).all())


@pytest.mark.parametrize("case", VECTORS["tokens_sdxl"], ids=case_id)
def test_both_encoders_of_sdxl_get_the_words(case: dict[str, Any]) -> None:
    base = model("sdxl")
    number_rows(base)
    made = method(base, **case["in"])
    ids = [tokenizer.convert_tokens_to_ids(made.words) for tokenizer in base.tokenizers]
    assert ids == case["out"]["token_ids"]
    assert list(made.module.rows) == ["clip_l", "clip_g"]
    assert [[int(row[0]) for row in rows] for rows in made.module.rows.values()] == case["out"]["embedding_rows"]
    assert [rows.shape[1] for rows in made.module.rows.values()] == [table.shape[1] for table in tables(base)]


def test_a_later_name_may_not_be_a_token_either() -> None:
    base = model()
    base.tokenizers[0].add_tokens(["mytoken2"])
    with pytest.raises(UserError, match="'mytoken2' is a token"):
        method(base, num_vectors_per_token=3)


def test_without_an_init_word_rows_start_near_the_mean_of_the_table() -> None:
    base = model()
    torch.manual_seed(5)
    made = method(base, num_vectors_per_token=2)
    (rows,) = made.module.parameters()
    (table,) = tables(base)
    away = (rows - table.mean(dim=0)).detach().abs().max()
    assert 0 < float(away) < 1e-3 * float(table.detach().std())
    assert not torch.equal(rows[0], rows[1])
    torch.manual_seed(5)
    assert torch.equal(next(iter(method(model(), num_vectors_per_token=2).module.parameters())), rows)


@pytest.mark.parametrize(
    ("vectors", "word", "text"),
    [(3, "red cat", "2 tokens for 3 vectors: they are repeated"), (1, "red cat", "the rest is left out")],
)
def test_another_number_of_init_tokens_warns(
    caplog: pytest.LogCaptureFixture, vectors: int, word: str, text: str
) -> None:
    with caplog.at_level(logging.WARNING):
        method(model(), num_vectors_per_token=vectors, init_word=word)
    assert text in caplog.text


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_only_the_new_rows_are_trained(version: str) -> None:
    base = model(version)
    made = method(base, num_vectors_per_token=2, init_word="cat")
    before, start = everything(base), [rows.detach().clone() for rows in made.module.parameters()]
    losses, optimizer = train(base, made, ["a photo of mytoken mytoken1, sky", "a dog"])
    after = everything(base)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert losses[-1] < losses[0]
    for rows, first in zip(made.module.parameters(), start):
        assert bool((rows != first).any(dim=1).all()), "every row moves"
        held = [value for value in optimizer.state[rows].values() if value.dim()]
        assert all(value.shape == rows.shape for value in held)
    trained = sum(parameter.numel() for group in made.parameter_groups() for parameter in group.params)
    assert trained == 2 * sum(table.shape[1] for table in tables(base))
    parts = (base.unet, base.vae, *base.text_encoders)
    assert not any(weight.requires_grad or weight.grad is not None for part in parts for weight in part.parameters())


def test_a_caption_without_the_word_gives_a_gradient_of_zero() -> None:
    base = model()
    made = method(base)
    conditioning(base, ["a dog"]).hidden.square().sum().backward()
    (rows,) = made.module.parameters()
    assert rows.grad is not None and not rows.grad.any()


def test_the_gradient_reaches_the_rows_of_the_words_that_are_there() -> None:
    base = model()
    made = method(base, num_vectors_per_token=3)
    conditioning(base, ["a mytoken2 dog"]).hidden.square().sum().backward()
    (rows,) = made.module.parameters()
    assert rows.grad is not None
    assert [bool(row.any()) for row in rows.grad] == [False, False, True]


def test_the_text_encoder_reads_the_rows_as_if_the_table_had_them() -> None:
    base, other = model(), model()
    made = method(base, num_vectors_per_token=2, init_word="red cat")
    attached = conditioning(base, ["a photo of mytoken mytoken1, sky"]).hidden
    plain = conditioning(other, ["a photo of red cat, sky"]).hidden
    assert torch.equal(attached, plain)
    unknown = conditioning(base, ["a dog"]).hidden
    assert torch.equal(unknown, conditioning(other, ["a dog"]).hidden)
    assert made.trains_text_encoder and not made.trains_unet


@pytest.mark.parametrize("version", ["sd1", "sdxl"])
def test_gradient_checkpointing_changes_no_gradient(version: str) -> None:
    grads = []
    for checkpointing in (False, True):
        base = model(version)
        made = EmbeddingMethod(options(init_word="cat"), OptimizerOptions(learning_rate=1e-2))
        if checkpointing:
            base_family = SD
            base_family.use_gradient_checkpointing(base, text=True)
        attach(base, made, gradient_checkpointing=checkpointing)
        assert base.unet.training is checkpointing
        assert base.text_encoders[0].training is checkpointing
        assert not base.vae.training
        train(base, made, ["a mytoken dog"], steps=2)
        grads.append([rows.detach().clone() for rows in made.module.parameters()])
    for plain, recomputed in zip(*grads):
        assert torch.allclose(plain, recomputed, atol=1e-6)


def test_rows_are_kept_in_full_precision_beside_a_bf16_model() -> None:
    base = model()
    base.text_encoders[0].to(torch.bfloat16)
    made = method(base, init_word="cat")
    (rows,) = made.module.parameters()
    assert rows.dtype == torch.float32
    hidden = conditioning(base, ["a mytoken dog"]).hidden
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().sum().backward()
    assert rows.grad is not None and rows.grad.dtype == torch.float32 and bool(rows.grad.any())
    half = attach(model(), EmbeddingMethod(options(), OptimizerOptions()), network_dtype=torch.bfloat16)
    assert next(half.module.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("case", VECTORS["caption_replacement"], ids=case_id)
def test_captions_are_rewritten_as_sd_scripts_does(case: dict[str, Any]) -> None:
    given, expected = dict(case["in"]), case["out"]
    captions = given.pop("captions")
    made = EmbeddingMethod(options(**given), OptimizerOptions())
    joined = " ".join(made.words)
    replacements = made.caption_replacements()
    wanted = expected["replacements"]
    assert [old for old, _ in replacements] == [old for old, _ in wanted]
    for (_, new), (_, facts) in zip(replacements, wanted):
        if isinstance(facts, str):
            assert new == facts
        else:
            assert len(new) == facts["list_length"]
            assert all(joined in text and "{" not in text for text in new)
    rng = random.Random(0)
    if "template_indices_random_seed_0_for_4_calls" in expected:
        composed = [compose(captions[0], CaptionRules(), rng, replacements=replacements) for _ in range(4)]
        ((_, sentences),) = replacements
        assert composed == [sentences[index] for index in expected["template_indices_random_seed_0_for_4_calls"]]
    else:
        composed = [compose(caption, CaptionRules(), rng, replacements=replacements) for caption in captions]
        assert composed == expected["captions"]
    rewriting = expected["sample_prompt_replacement"]
    old, new = rewriting or ("tok", "tok")
    assert made.rewrite_prompt(f"{old} on a hill, {old}") == f"{new} on a hill, {new}"


def test_templates_are_those_of_the_format() -> None:
    (case,) = VECTORS["templates"]
    assert (len(OBJECT), len(STYLE)) == (case["out"]["object_count"], case["out"]["style_count"])
    assert all(text.count("{}") == 1 for text in OBJECT + STYLE)
    assert len(set(OBJECT)) == 27
    assert (OBJECT[0], OBJECT[12], OBJECT[26]) == ("a photo of a {}", "a photo of the {}", "a photo of a small {}")
    assert (STYLE[0], STYLE[18]) == ("a painting in the style of {}", "a large painting in the style of {}")


def test_captions_without_the_word_are_counted() -> None:
    made = EmbeddingMethod(options(), OptimizerOptions())
    assert made.check_captions(["a MyToken dog", "mytoken"]) == []
    (warning,) = made.check_captions(["a mytoken dog", "a cat", "two cats"])
    assert "2 of 3 captions" in warning and "'a cat'" in warning
    with pytest.raises(UserError, match="None of the 2 captions has the word 'mytoken'") as error:
        made.check_captions(["a cat", "two cats"])
    assert error.value.key == "token_string" and "caption_prefix" in error.value.hint
    styled = EmbeddingMethod(options(use_style_template=True), OptimizerOptions())
    assert styled.check_captions(["a cat"]) == []


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"token_string": None}, "token_string"),
        ({"token_string": ""}, "token_string"),
        ({"num_vectors_per_token": 0}, "num_vectors_per_token"),
        ({"use_object_template": True, "use_style_template": True}, "use_style_template"),
    ],
)
def test_options_that_cannot_work(given: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        EmbeddingMethod(options(**given), OptimizerOptions())
    assert error.value.key == key


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing would be trained"):
        method(model(), rate=0.0).parameter_groups()


def test_names_and_formats() -> None:
    made = EmbeddingMethod(options(), OptimizerOptions())
    assert (made.default_name, made.file_format, made.adapter, made.notes) == (
        "mytoken",
        "pt",
        "textual_inversion",
        "modelspec",
    )
    assert EmbeddingMethod(options(), OptimizerOptions(), "safetensors").file_format == "safetensors"


def test_training_goes_on_from_a_file(tmp_path: Any) -> None:
    width = tables(model())[0].shape[1]
    rows = torch.randn(2, width)
    save_file({"emb_params": rows}, str(tmp_path / "start.safetensors"))
    made = method(model(), num_vectors_per_token=2, weights=str(tmp_path / "start.safetensors"))
    assert torch.equal(next(iter(made.module.parameters())), rows)
    assert made.required_files() == [("weights", str(tmp_path / "start.safetensors"))]
    with pytest.raises(UserError, match="has 2 vectors, but num_vectors_per_token is 3") as error:
        method(model(), num_vectors_per_token=3, weights=str(tmp_path / "start.safetensors"))
    assert error.value.hint.startswith("Set num_vectors_per_token to 2")
    with pytest.raises(UserError, match=f"vectors of {width} numbers, but this model's have 96"):
        method(model("sd2"), num_vectors_per_token=2, weights=str(tmp_path / "start.safetensors"))
    with pytest.raises(UserError, match="is for Stable Diffusion 1 or 2, but this trains one for SDXL"):
        method(model("sdxl"), num_vectors_per_token=2, weights=str(tmp_path / "start.safetensors"))
