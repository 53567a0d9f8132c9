"""train_textual_inversion_XTI: a word with vectors of its own for each cross-attention block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from effects import shows
from embeddings import (
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

from sd_scripts.networks.embedding_file import LAYERS

METHOD = ("xti",)
GOLDEN = [1.303216, 1.09495, 1.238464, 1.336847]


@pytest.fixture(scope="module")
def trainer(tiny_sd1: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer("train_textual_inversion_XTI", tiny_sd1, tmp_path_factory.mktemp("xti"), thumbs)


@pytest.fixture(scope="module")
def plain(tiny_sd1: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer("train_textual_inversion", tiny_sd1, tmp_path_factory.mktemp("ti"), thumbs)


@shows("num_vectors_per_token", by=METHOD)
def test_losses_and_file(trainer: Trainer, plain: Trainer) -> None:
    run = trainer.base()
    assert run.losses == pytest.approx(GOLDEN, rel=1e-3)
    assert run.losses[0] == pytest.approx(plain.base().losses[0], rel=1e-5), "all layers start from the same word"
    assert run.losses[1:] != pytest.approx(plain.base().losses[1:], rel=1e-5)
    found = tensors(run)
    assert {name: list(value.shape) for name, value in found.items()} == {name: [2, 64] for name in LAYERS}
    assert not any(torch.equal(found["IN01"], found[name]) for name in LAYERS[1:]), "each layer learned for itself"
    assert notes(run) == {}


@pytest.mark.slow
def test_one_picture_is_learned(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    check_learning(trainer, monkeypatch, 0.93)


def test_resumed_equals_uninterrupted(trainer: Trainer) -> None:
    check_resume(trainer)


@shows("weights", by=METHOD)
def test_training_goes_on_from_a_file(trainer: Trainer) -> None:
    check_reload(trainer)


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
    check_default_name(trainer, set(LAYERS))


def test_long_captions(trainer: Trainer) -> None:
    run = trainer.trained("long", max_token_length=150, clip_skip=2, max_train_steps=2)
    assert run.losses[0] != pytest.approx(trainer.base().losses[0], rel=1e-6)


def test_a_plain_embedding_is_no_start(trainer: Trainer, plain: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    path = plain.base().out / "small.safetensors"
    capfd.readouterr()
    said = sentence(trainer("bad", weights=path, num_vectors_per_token=2), capfd)
    assert "is for Stable Diffusion 1 or 2, but this trains one for Extended Textual Inversion" in said


def test_a_known_word_is_a_sentence(trainer: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    assert "'cat' is a token of this model already" in sentence(trainer("known", token_string="cat"), capfd)
