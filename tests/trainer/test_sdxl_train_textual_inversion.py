"""sdxl_train_textual_inversion: a new word for both text encoders of Stable Diffusion XL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from effects import shows
from embeddings import (
    RATE,
    Trainer,
    check_default_name,
    check_learning,
    check_precision,
    check_reload,
    check_resume,
    check_samples,
    check_start,
    check_templates,
    notes,
    sentence,
    tensors,
)

from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.methods.embedding import EmbeddingMethod
from sd_scripts.schema.embedding import EmbeddingOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions

METHOD = ("embedding",)
GOLDEN = [1.168272, 1.080745, 1.119839, 1.217161]


@pytest.fixture(scope="module")
def trainer(tiny_sdxl: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer("sdxl_train_textual_inversion", tiny_sdxl, tmp_path_factory.mktemp("xl"), thumbs)


@shows("num_vectors_per_token", by=METHOD)
def test_losses_and_file(deep_sdxl: Path, thumbs: Path, tmp_path: Path) -> None:
    run = Trainer("sdxl_train_textual_inversion", deep_sdxl, tmp_path, thumbs).base()
    assert run.losses == pytest.approx(GOLDEN, rel=1e-3)
    assert run.of("start")[0]["trains"] == {"embedding": RATE}
    shapes = {name: list(value.shape) for name, value in tensors(run).items()}
    assert shapes == {"clip_l": [2, 32], "clip_g": [2, 64]}
    assert notes(run)["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"


def test_both_encoders_learn(trainer: Trainer) -> None:
    learned, start = tensors(trainer.base()), tensors(trainer.trained("start", learning_rate=1e-12, max_train_steps=1))
    for name, rows in learned.items():
        assert bool((rows - start[name]).abs().amax(dim=1).gt(0.01).all()), name


@pytest.mark.slow
def test_one_picture_is_learned(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    check_learning(trainer, monkeypatch, 0.975)


def test_resumed_equals_uninterrupted(trainer: Trainer) -> None:
    check_resume(trainer)


@shows("weights", by=METHOD)
def test_training_goes_on_from_a_file(trainer: Trainer) -> None:
    check_reload(trainer, 1e-5)


@shows("init_word", "learning_rate", by=METHOD)
def test_the_start_and_the_rate(trainer: Trainer) -> None:
    check_start(trainer)


@shows("sample_prompts", by=METHOD)
def test_samples(trainer: Trainer) -> None:
    check_samples(trainer)


@shows("use_object_template", "use_style_template", by=METHOD)
def test_templates(trainer: Trainer) -> None:
    check_templates(trainer)


@shows("save_precision", by=METHOD)
def test_precision(trainer: Trainer) -> None:
    check_precision(trainer, 0.02)


@shows("save_model_as", "output_name", "token_string", by=METHOD)
def test_name_and_format_by_default(trainer: Trainer) -> None:
    check_default_name(trainer, {"clip_l", "clip_g"})


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_trained_file(trainer: Trainer, vectors: int) -> None:
    run = trainer.trained(f"vectors {vectors}", num_vectors_per_token=vectors, learning_rate=RATE)
    found = tensors(run)
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(str(trainer.model))
    for name, tokenizer, encoder in (
        ("clip_l", pipe.tokenizer, pipe.text_encoder),
        ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2),
    ):
        pipe.load_textual_inversion(found[name], token="mytoken", tokenizer=tokenizer, text_encoder=encoder)
    theirs = pipe.encode_prompt("a mytoken on a hill", device="cpu", do_classifier_free_guidance=False)[0]
    family, options = StableDiffusionXL(), ModelOptions(pretrained_model_name_or_path=str(trainer.model))
    model = family.load(options, torch.float32)
    path = str(run.out / "small.safetensors")
    given = EmbeddingOptions(token_string="mytoken", num_vectors_per_token=vectors, weights=path)
    method = EmbeddingMethod(given, OptimizerOptions())
    method.attach(model, family, gradient_checkpointing=False, weight_dtype=torch.float32)
    ours = family.encode_captions(model, [method.rewrite_prompt("a mytoken on a hill")], options=options)
    assert torch.allclose(ours.hidden, theirs, atol=1e-6)


def test_the_pooled_output_is_that_of_the_end_mark(trainer: Trainer) -> None:
    """Ids of new words are greater than the end mark's, which is what some libraries look for."""
    family, options = StableDiffusionXL(), ModelOptions(pretrained_model_name_or_path=str(trainer.model))
    pooled = []
    for caption in ("a mytoken on a hill", "a cat on a hill"):
        model = family.load(options, torch.float32)
        given = EmbeddingOptions(token_string="mytoken", init_word="cat")
        method = EmbeddingMethod(given, OptimizerOptions())
        method.attach(model, family, gradient_checkpointing=False, weight_dtype=torch.float32)
        pooled.append(family.encode_captions(model, [caption], options=options).pooled)
    assert pooled[0] is not None and torch.allclose(*pooled, atol=1e-6)


def test_an_embedding_for_sd_is_no_start(trainer: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"emb_params": torch.zeros(1, 32)}, tmp_path / "old.pt")
    said = sentence(trainer("bad", weights=tmp_path / "old.pt"), capfd)
    assert "is for Stable Diffusion 1 or 2, but this trains one for SDXL" in said


def test_a_known_word_is_a_sentence(trainer: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    assert "'cat' is a token of this model already" in sentence(trainer("known", token_string="cat"), capfd)
