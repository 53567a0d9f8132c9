"""sdxl_train_control_net_lllite from photos and their edges: losses, files, going on, samples, what is refused."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from control_kit import blank_like, draw_edges, one_picture
from effects import metadata, shows
from fixed_noise import fixed_draws
from PIL import Image
from runs import SCRIPTS, Finished, train_here
from safetensors.torch import load_file

COMMAND = "sdxl_train_control_net_lllite"
# The losses of the first six steps on the tiny model; they change when the draws or the mathematics do.
GOLDEN = [1.16077, 1.08123, 1.13979, 1.20919, 1.26938, 1.20381]
STEPS = 6
SIZES = {"network_dim": 16, "cond_emb_dim": 8, "bucket_reso_steps": 32}

METHOD = ("lllite",)
Train = Callable[..., Finished]


@pytest.fixture(scope="session")
def edges(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edges of the four small photographs."""
    return draw_edges(thumbs / "2_photo", tmp_path_factory.mktemp("edges"))


@pytest.fixture
def train(tiny_sdxl: Path, thumbs: Path, edges: Path, tmp_path: Path) -> Train:
    """Train on a tiny SDXL model; the keyword `name` tells runs of one test apart."""
    photos = thumbs / "2_photo"

    def run(name: str = "out", data: Path = photos, model: Path = tiny_sdxl, **options: Any) -> Finished:
        given = {"conditioning_data_dir": edges, "max_train_steps": STEPS, **SIZES, **options}
        return train_here(model, data, tmp_path / name, COMMAND, **given)

    return run


def weights(finished: Finished) -> dict[str, torch.Tensor]:
    return load_file(str(finished.out / "small.safetensors"))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@shows("network_dim", "cond_emb_dim", by=METHOD)
def test_losses_and_file(train: Train, deep_sdxl: Path) -> None:
    run = train(model=deep_sdxl)
    print(run.losses)
    assert run.losses == pytest.approx(GOLDEN, rel=1e-3)
    notes = metadata(run.out / "small.safetensors")
    assert notes["modelspec.architecture"] == "stable-diffusion-xl-v1-base/control-net-lllite"
    assert [name for name in notes if name.startswith("ss_")] == []
    found = weights(run)
    assert len(found) == 1600
    assert {value.shape[0] for name, value in found.items() if name.endswith(".down.0.weight")} == {16}
    assert {value.shape[0] for name, value in found.items() if name.endswith("conditioning1.0.weight")} == {8 // 2}
    ups = [value for name, value in found.items() if name.endswith(".up.0.weight")]
    assert len(ups) == 136
    assert all(value.abs().max() > 0 for value in ups)


@shows("conditioning_data_dir", "network_weights", "learning_rate", by=METHOD)
def test_one_picture_is_learned_with_its_edges(
    train: Train, deep_sdxl: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = one_picture(thumbs / "2_photo", tmp_path / "one")
    control = draw_edges(data, tmp_path / "edges")
    options = {"data": data, "conditioning_data_dir": control, "max_train_steps": 24, "learning_rate": 2e-2}
    options |= {"model": deep_sdxl}  # with few layers there are too few modules to learn it in so many steps
    still = {"learning_rate": 1e-12, "max_train_steps": 3}
    with fixed_draws(monkeypatch):
        run = train(**options)
        idle = train("idle", **{**options, **still})
        learned = {**options, **still, "network_weights": run.out / "small.safetensors"}
        further = train("further", **learned)
        blank = train("blank", **{**learned, "conditioning_data_dir": blank_like(data, tmp_path / "blank")})
    print(run.losses, blank.losses)
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert idle.losses == pytest.approx([idle.losses[0]] * 3, rel=1e-5)
    assert further.losses[0] < run.losses[-1]
    assert blank.losses[0] > further.losses[0], "it is the edges that it follows"


def test_a_stopped_run_goes_on_exactly(train: Train) -> None:
    options = {"lr_scheduler": "cosine", "cache_latents": False, "flip_aug": True, "network_dropout": 0.1}
    whole = train("whole", **options)
    first = train("first", **options, save_every_n_steps=3, save_state=True)
    rest = train("rest", **options, resume=first.out / "small-step00000003-state")
    assert [event["step"] for event in rest.of("step")] == [4, 5, 6]
    assert rest.losses == whole.losses[3:]
    assert same(weights(rest), weights(whole))


def test_the_old_script_is_the_same_trainer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = SCRIPTS / f"{COMMAND}_old.py"
    monkeypatch.setattr("sys.argv", [str(script), "--cond_emb_dim", "none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    assert f"{COMMAND}: cond_emb_dim" in capsys.readouterr().err


@shows("network_dropout", by=METHOD)
def test_dropout_disturbs_training(train: Train) -> None:
    options = {"max_train_steps": 2, "learning_rate": 1e-2}
    plain, disturbed = train("plain", **options), train("disturbed", **options, network_dropout=0.5)
    assert disturbed.losses[0] == plain.losses[0], "a new network changes nothing"
    assert disturbed.losses[1] != plain.losses[1]


@shows("save_model_as", "save_precision", by=METHOD)
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"mixed_precision": "bf16", "full_bf16": True, "save_precision": "fp16", "save_model_as": "pt"},
        {"mixed_precision": "bf16", "fp8_base": True},
        {"cache_text_encoder_outputs": True, "train_batch_size": 2},
    ],
    ids=lambda options: "+".join(options),
)
def test_ways_to_compute(train: Train, options: dict[str, Any]) -> None:
    run = train(**options, max_train_steps=2)
    assert run.code == 0
    assert all(0.2 < loss < 3 for loss in run.losses)
    if options.get("gradient_checkpointing"):
        assert run.losses == pytest.approx(train("plain", max_train_steps=2).losses, rel=1e-5)
    if "save_precision" in options:
        found = torch.load(run.out / "small.pt", weights_only=True)
        assert {value.dtype for value in found.values()} == {torch.float16}


@shows("sample_prompts", by=METHOD)
def test_samples_with_and_without_a_control_picture(train: Train, edges: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    size = "--w 64 --h 64 --s 2 --d 1"
    lines = [f"a cup {size}", f"a cup {size} --cn {edges / 'coffee.png'}", f"a cup {size} --cn {edges / 'none.png'}"]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    options = {"learning_rate": 1e-2, "max_train_steps": 3}
    run = train(**options, sample_prompts=prompts, sample_every_n_steps=2)
    assert run.code == 0
    free, steered = (Path(event["path"]) for event in run.of("sample"))
    assert not np.array_equal(np.asarray(Image.open(free)), np.asarray(Image.open(steered)))
    warnings = [event["message"] for event in run.of("warn")]
    assert any("There is no control picture" in message and "none.png" in message for message in warnings)
    assert run.losses == train("plain", **options).losses


@pytest.mark.parametrize("kind", ["missing", "extra", "other shape"])
def test_control_folders_that_do_not_fit(train: Train, edges: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(edges, folder)
    coffee = folder / "coffee.png"
    if kind == "missing":
        coffee.unlink()
    elif kind == "extra":
        shutil.copy(coffee, folder / "odd.png")
    else:
        Image.open(coffee).resize((50, 80)).save(coffee)
    run = train(conditioning_data_dir=folder)
    assert run.code == 2
    assert run.error["key"] == "conditioning_data_dir"
    assert ("odd.png" if kind == "extra" else "coffee.png") in run.error["message"]


def test_sizes_that_contradict_the_file_are_refused(train: Train) -> None:
    first = train(max_train_steps=1)
    run = train("second", network_weights=first.out / "small.safetensors", network_dim=32)
    assert run.code == 2
    assert run.error["key"] == "network_dim"
    missing = train("third", network_weights=first.out / "none.safetensors")
    assert (missing.code, missing.error["key"]) == (2, "network_weights")
