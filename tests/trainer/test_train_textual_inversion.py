"""train_textual_inversion: a new word for Stable Diffusion 1 and 2, from options to a file that diffusers loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
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

from sd_scripts.families.sd import StableDiffusion
from sd_scripts.methods.embedding import EmbeddingMethod
from sd_scripts.schema.embedding import EmbeddingOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions

COMMAND = "train_textual_inversion"
METHOD = ("embedding",)
GOLDEN = [1.303216, 1.096928, 1.24271, 1.323449]


@pytest.fixture(scope="module")
def trainer(tiny_sd1: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(COMMAND, tiny_sd1, tmp_path_factory.mktemp("ti"), thumbs)


@shows("num_vectors_per_token", by=METHOD)
def test_losses_and_file(trainer: Trainer) -> None:
    run = trainer.base()
    assert run.losses == pytest.approx(GOLDEN, rel=1e-3)
    assert run.of("warn") == []
    assert run.of("start")[0]["trains"] == {"embedding": RATE}
    assert {name: list(value.shape) for name, value in tensors(run).items()} == {"emb_params": [2, 64]}
    written = notes(run)
    assert written["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert written["modelspec.title"] == "small"
    assert all(name.startswith("modelspec.") for name in written)


@pytest.mark.slow
def test_one_picture_is_learned(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    check_learning(trainer, monkeypatch, 0.985)


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
    check_default_name(trainer, {"emb_params"})


def test_the_model_on_the_disk_is_not_touched(trainer: Trainer) -> None:
    before = {path: path.stat().st_mtime_ns for path in trainer.model.rglob("*")}
    trainer.trained("untouched", max_train_steps=1)
    assert {path: path.stat().st_mtime_ns for path in trainer.model.rglob("*")} == before


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_trained_file(trainer: Trainer, vectors: int) -> None:
    run = trainer.trained(f"vectors {vectors}", num_vectors_per_token=vectors, learning_rate=RATE)
    path = run.out / "small.safetensors"
    pipe: Any = StableDiffusionPipeline.from_pretrained(str(trainer.model), safety_checker=None)
    pipe.load_textual_inversion(str(run.out), weight_name=path.name, token="mytoken")
    theirs, _ = pipe.encode_prompt("a mytoken on a hill", "cpu", 1, do_classifier_free_guidance=False)
    family, options = StableDiffusion(), ModelOptions(pretrained_model_name_or_path=str(trainer.model))
    model = family.load(options, torch.float32)
    given = EmbeddingOptions(token_string="mytoken", num_vectors_per_token=vectors, weights=str(path))
    method = EmbeddingMethod(given, OptimizerOptions())
    method.attach(model, family, gradient_checkpointing=False, weight_dtype=torch.float32)
    ours = family.encode_captions(model, [method.rewrite_prompt("a mytoken on a hill")], options=options).hidden
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_sd2_trains_too(tiny_sd2: Path, trainer: Trainer) -> None:
    other = Trainer(COMMAND, tiny_sd2, trainer.root / "sd2", trainer.thumbs)
    run = other.trained("run", v2=True, num_vectors_per_token=2, max_train_steps=2)
    assert list(tensors(run)["emb_params"].shape) == [2, 96]
    assert notes(run)["modelspec.architecture"] == "stable-diffusion-v2-512/textual-inversion"


def test_long_captions_and_clip_skip(trainer: Trainer) -> None:
    options = {"num_vectors_per_token": 2, "learning_rate": RATE, "max_token_length": 225, "clip_skip": 2}
    run = trainer.trained("long", **options)
    assert run.losses != trainer.base().losses
    assert all(bool((row != 0).any()) for row in tensors(run)["emb_params"])


def test_captions_without_the_word_are_said(trainer: Trainer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trainer.data(), data)
    (data / "2_photo" / "rocket.txt").write_text("a rocket", encoding="utf-8")
    run = trainer.trained("some without", data, max_train_steps=1)
    (warning,) = run.of("warn")
    assert "1 of 4 captions" in warning["message"] and "'a rocket'" in warning["message"]
    helped = trainer.trained("prefix", trainer.thumbs, max_train_steps=1, caption_prefix="mytoken")
    assert helped.of("warn") == []


def test_captions_are_shown_as_the_trainer_reads_them(trainer: Trainer, tmp_path: Path) -> None:
    log = tmp_path / "look.log"
    options = {"debug_dataset": True, "console_log_file": log, "cache_latents": None, "num_vectors_per_token": 2}
    assert trainer("look", **options).code == 0
    assert "mytoken mytoken1, a cup of coffee" in log.read_text(encoding="utf-8")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no word": ({"token_string": None}, "Give token_string"),
    "a known word": ({"token_string": "cat"}, "'cat' is a token of this model already"),
    "no vectors": ({"num_vectors_per_token": 0}, "num_vectors_per_token"),
    "no such file": ({"weights": "nowhere.pt"}, "nowhere.pt' does not exist"),
    "a word that no caption has": ({"token_string": "otherword"}, "None of the 4 captions has the word 'otherword'"),
    "a format that is none": ({"save_model_as": "diffusers"}, "save_model_as"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(trainer: Trainer, capfd: pytest.CaptureFixture[str], name: str) -> None:
    options, text = BAD[name]
    assert text in sentence(trainer(f"bad {name}", **options), capfd)


def test_a_file_of_another_length_is_a_sentence(trainer: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    path = trainer.base().out / "small.safetensors"
    said = sentence(trainer("bad count", weights=path, num_vectors_per_token=3), capfd)
    assert "has 2 vectors, but num_vectors_per_token is 3" in said and "Set num_vectors_per_token to 2" in said


def test_a_file_that_is_no_embedding_is_a_sentence(
    trainer: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    assert "damaged" in sentence(trainer("bad file", weights=tmp_path / "broken.pt"), capfd)
