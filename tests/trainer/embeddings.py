"""What the tests of the three trainers of Textual Inversion share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from effects import metadata
from PIL import Image
from runs import Finished, train_here
from safetensors.torch import load_file
from test_learning import fixed_draws
from torch import Tensor

RATE = 5e-3
# Everything that draws random numbers at once, so that a forgotten stream shows.
RANDOM = {
    "cache_latents": False,
    "flip_aug": True,
    "shuffle_caption": True,
    "noise_offset": 0.05,
    "multires_noise_iterations": 3,
    "ip_noise_gamma": 0.05,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "train_batch_size": 1,
}


def with_word(thumbs: Path, folder: Path, count: int = 4) -> Path:
    """The photographs with the word `mytoken` before every caption, in `2_photo/`; the first `count` of them."""
    (folder / "2_photo").mkdir(parents=True)
    for picture in sorted((thumbs / "2_photo").glob("*.png"))[:count]:
        shutil.copy(picture, folder / "2_photo")
        caption = picture.with_suffix(".txt").read_text(encoding="utf-8")
        (folder / "2_photo" / f"{picture.stem}.txt").write_text(f"mytoken, {caption}", encoding="utf-8")
    return folder


def tensors(finished: Finished, name: str = "small.safetensors") -> dict[str, Tensor]:
    path = finished.out / name
    assert path.is_file(), sorted(item.name for item in finished.out.iterdir())
    return load_file(str(path)) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@dataclass
class Trainer:
    """One of the trainers, with a model, pictures whose captions have the word, and pictures without it."""

    command: str
    model: Path
    root: Path
    thumbs: Path
    _known: dict[str, Finished] = field(default_factory=dict)

    def data(self, count: int = 4) -> Path:
        folder = self.root / f"data {count}"
        return folder if folder.exists() else with_word(self.thumbs, folder, count)

    def __call__(self, out: str, data: Path | None = None, **options: Any) -> Finished:
        given = {"token_string": "mytoken", "init_word": "cat", "save_model_as": "safetensors", **options}
        return train_here(self.model, data or self.data(), self.root / out, self.command, **given)

    def trained(self, out: str, data: Path | None = None, **options: Any) -> Finished:
        """A run that must succeed; the same one is made once only."""
        if out not in self._known:
            self._known[out] = self(out, data, **options)
            assert self._known[out].code == 0, self._known[out].of("error")
        return self._known[out]

    def base(self) -> Finished:
        """Two vectors, four steps."""
        return self.trained("base", num_vectors_per_token=2, learning_rate=RATE)


def check_resume(trainer: Trainer) -> None:
    """A run resumed from the middle of an epoch equals one that was never interrupted, bit for bit."""
    options = {**RANDOM, "num_vectors_per_token": 2, "max_train_steps": 6, "learning_rate": RATE}
    whole = trainer.trained("whole", **options, save_every_n_steps=3, save_state=True)
    state = whole.out / "small-step00000003-state"
    assert state.is_dir()
    rest = trainer.trained("rest", **options, resume=state)
    assert [event["step"] for event in rest.of("step")] == [4, 5, 6]
    assert rest.losses == whole.losses[3:]
    assert same(tensors(rest), tensors(whole))
    assert not same(tensors(whole), tensors(whole, "small-step00000003.safetensors"))


def check_learning(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """The loss on one picture with fixed noise falls below `left`, and without a rate stays what it was."""
    options = {"num_vectors_per_token": 8, "max_train_steps": 40, "lr_scheduler": "constant"}
    with fixed_draws(monkeypatch):
        learned = trainer.trained("learned", trainer.data(1), **options, learning_rate=0.1).losses
        control = trainer.trained("control", trainer.data(1), **options, learning_rate=1e-12).losses
    print(f"{trainer.command}: {learned[-1] / learned[0]:.3f} of the loss is left")
    assert learned[-1] < left * learned[0]
    assert control[-1] == pytest.approx(control[0], rel=1e-5)


def check_reload(trainer: Trainer, least: float = 1e-4) -> None:
    """A run that starts from the file of another has its vectors, and its loss shows them."""
    first = trainer.base()
    path = first.out / "small.safetensors"
    options = {"num_vectors_per_token": 2, "max_train_steps": 1, "init_word": None, "learning_rate": 1e-12}
    again = trainer.trained("again", **options, weights=path)
    fresh = trainer.trained("fresh", **{**options, "init_word": "cat"})
    for name, value in tensors(again).items():
        assert torch.allclose(value, tensors(first)[name], atol=1e-9), name
    assert abs(again.losses[0] / fresh.losses[0] - 1) > least


def _rows(found: dict[str, Tensor]) -> set[tuple[float, ...]]:
    """The different vectors in a file."""
    return {tuple(row.tolist()) for value in found.values() for row in value.round(decimals=6)}


def check_start(trainer: Trainer) -> None:
    """The vectors start as those of the init words, and the rate says how far a step moves them."""
    options = {"num_vectors_per_token": 2, "max_train_steps": 1, "learning_rate": 1e-12}
    cat = tensors(trainer.trained("fresh", **{**options, "init_word": "cat"}))
    other = tensors(trainer.trained("other start", **{**options, "init_word": "dog house"}))
    moved = tensors(trainer.trained("other rate", **{**options, "init_word": "cat", "learning_rate": 0.5}))
    # Which of several vectors starts from which word is compared with sd-scripts' numbers beside the methods.
    assert len(_rows(other)) == 2 * len(_rows(cat)), "two words instead of one"
    assert not _rows(other) & _rows(cat)
    steps = {name: float((moved[name] - start).abs().max()) for name, start in cat.items()}
    assert list(steps.values()) == pytest.approx([0.5] * len(steps), rel=0.1), "AdamW's first step is the rate"


def check_samples(trainer: Trainer) -> None:
    """Pictures are made with the word as it is at that step, whatever the format it is saved in."""
    prompts = trainer.root / "prompts.txt"
    lines = ["mytoken on a hill --n mytoken --w 64 --h 64 --s 2 --d 1", "a hill --w 64 --h 64 --s 2 --d 1 --l 1"]
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"num_vectors_per_token": 2, "learning_rate": 0.5, "max_train_steps": 2, "sample_prompts": prompts}
    run = trainer.trained("samples", **options, sample_every_n_steps=1, sample_at_first=True)
    assert [event for event in run.of("warn") if event["key"] != "learning_rate"] == []
    found = {(event["step"], event["index"]): Path(event["path"]) for event in run.of("sample")}
    assert sorted(found) == [(step, index) for step in (0, 1, 2) for index in (0, 1)]
    pictures = {key: Image.open(path).tobytes() for key, path in found.items()}
    assert len({pictures[step, 0] for step in (0, 1, 2)}) == 3, "what the word shows changes with training"
    assert len({pictures[step, 1] for step in (0, 1, 2)}) == 1, "what has no new word stays as it was"
    plain = trainer.trained("no samples", **{**options, "sample_prompts": None})
    assert plain.losses == run.losses and same(tensors(plain), tensors(run))


def check_templates(trainer: Trainer) -> None:
    """Sentences take the place of the captions, which need no word then."""
    runs = {
        name: trainer.trained(f"template {name}", trainer.thumbs, max_train_steps=3, learning_rate=RATE, **options)
        for name, options in {
            "object": {"use_object_template": True},
            "style": {"use_style_template": True},
            "object again": {"use_object_template": True, "caption_extension": ".none"},
        }.items()
    }
    assert runs["object"].of("warn") == []
    assert runs["object"].losses == runs["object again"].losses, "captions do not count"
    assert not same(tensors(runs["object"]), tensors(runs["style"]))


def check_precision(trainer: Trainer, rel: float) -> None:
    """bf16 and gradient checkpointing train the same, to their precision; the file is in the type asked for."""
    exact = trainer.base()
    options = {"num_vectors_per_token": 2, "learning_rate": RATE}
    half = trainer.trained("bf16", **options, mixed_precision="bf16", save_precision="fp16")
    assert half.losses == pytest.approx(exact.losses, rel=rel)
    assert {value.dtype for value in tensors(half).values()} == {torch.float16}
    recomputed = trainer.trained("recomputed", **options, gradient_checkpointing=True)
    assert recomputed.losses == pytest.approx(exact.losses, rel=1e-5)
    assert {value.dtype for value in tensors(recomputed).values()} == {torch.float32}


def check_default_name(trainer: Trainer, names: set[str]) -> None:
    """Without a name and a format the file is called after the word and is a .pt of the named tensors."""
    run = trainer("unnamed", output_name=None, save_model_as=None, max_train_steps=1, save_every_n_steps=1)
    assert run.code == 0
    assert set(tensors(run, "mytoken.pt")) == names
    assert sorted(path.name for path in run.out.glob("*.pt")) == ["mytoken-step00000001.pt", "mytoken.pt"]


def notes(finished: Finished) -> dict[str, str]:
    return metadata(finished.out / "small.safetensors")


def sentence(finished: Finished, capfd: pytest.CaptureFixture[str]) -> str:
    """What a run that could not start says: one sentence, exit code 2, no traceback."""
    console = capfd.readouterr().err
    assert finished.code == 2, console
    assert "Traceback" not in console
    if not finished.of("error"):
        return console.strip().splitlines()[-1]
    return f"{finished.error['message']} {finished.error['hint']}"
