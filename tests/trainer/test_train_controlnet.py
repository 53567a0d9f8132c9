"""train_controlnet from photos and their edges: losses, files, going on, samples, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from control_kit import blank_like, draw_edges, one_picture
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from effects import shows
from fixed_noise import fixed_draws
from PIL import Image
from runs import Finished, train_here
from safetensors import safe_open
from safetensors.torch import load_file

COMMAND = "train_controlnet"
# The losses of the first six steps on the tiny models; they change when the draws or the mathematics do.
GOLDEN = {
    "sd1": [1.30384, 1.10339, 1.24087, 1.31422, 1.28944, 1.13369],
    "sd2": [1.16669, 1.09677, 1.23841, 1.24692, 1.31195, 1.13440],
}
STEPS = 6

METHOD = ("controlnet",)
Train = Callable[..., Finished]


@pytest.fixture(scope="session")
def edges(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edges of the four small photographs."""
    return draw_edges(thumbs / "2_photo", tmp_path_factory.mktemp("edges"))


@pytest.fixture
def train(tiny_sd1: Path, thumbs: Path, edges: Path, tmp_path: Path) -> Train:
    """Train on the tiny SD1 model; the keyword `name` tells runs of one test apart."""
    photos = thumbs / "2_photo"  # pictures and control pictures lie in two plain folders

    def run(name: str = "out", model: Path = tiny_sd1, data: Path | None = photos, **options: Any) -> Finished:
        given = {"conditioning_data_dir": edges, "max_train_steps": STEPS, **options}
        return train_here(model, data, tmp_path / name, COMMAND, **given)

    return run


def weights(finished: Finished, name: str = "small.safetensors") -> dict[str, torch.Tensor]:
    return load_file(str(finished.out / name))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("version", GOLDEN)
def test_losses_and_file(train: Train, request: pytest.FixtureRequest, version: str) -> None:
    run = train(model=request.getfixturevalue(f"tiny_{version}"))
    print(version, run.losses)
    assert run.losses == pytest.approx(GOLDEN[version], rel=1e-3)
    with safe_open(str(run.out / "small.safetensors"), framework="pt") as file:
        assert file.metadata() is None
        assert len(file.keys()) == 340
    found = weights(run)
    assert found["middle_block.1.proj_in.weight"].ndim == (2 if version == "sd2" else 4)
    zeroed = [name for name in found if name.startswith(("zero_convs", "middle_block_out"))]
    assert len(zeroed) == 26
    assert all(found[name].abs().max() > 0 for name in zeroed)


@shows("conditioning_data_dir", "controlnet_model_name_or_path", "learning_rate", by=METHOD)
def test_one_picture_is_learned_with_its_edges(
    train: Train, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = one_picture(thumbs / "2_photo", tmp_path / "one")
    control = draw_edges(data, tmp_path / "edges")
    options = {"data": data, "conditioning_data_dir": control, "max_train_steps": 24, "learning_rate": 1e-3}
    still = {"learning_rate": 1e-12, "max_train_steps": 3}
    with fixed_draws(monkeypatch):
        run = train(**options)
        idle = train("idle", **{**options, **still})
        learned = {**options, **still, "controlnet_model_name_or_path": run.out / "small.safetensors"}
        further = train("further", **learned)
        blank = train("blank", **{**learned, "conditioning_data_dir": blank_like(data, tmp_path / "blank")})
    print(run.losses, blank.losses)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert idle.losses == pytest.approx([idle.losses[0]] * 3, rel=1e-5)
    assert further.losses[0] < run.losses[-1]
    assert blank.losses[0] > (1 + 1e-5) * further.losses[0], "it is the edges that it follows"


def test_a_stopped_run_goes_on_exactly(train: Train) -> None:
    options = {"lr_scheduler": "cosine", "cache_latents": False, "flip_aug": True, "noise_offset": 0.05}
    whole = train("whole", **options)
    first = train("first", **options, save_every_n_steps=3, save_state=True)
    rest = train("rest", **options, resume=first.out / "small-step00000003-state")
    assert [event["step"] for event in rest.of("step")] == [4, 5, 6]
    assert rest.losses == whole.losses[3:]
    assert same(weights(rest), weights(whole))


def test_the_file_works_in_a_diffusers_pipeline(train: Train, tiny_sd1: Path, edges: Path, tmp_path: Path) -> None:
    run = train()
    from sd_scripts.models.controlnet import load_controlnet
    from sd_scripts.models.tiny import build_tiny

    own = load_controlnet(str(run.out / "small.safetensors"), build_tiny("sd1").unet)
    own.save_config(tmp_path / "config")
    opened = ControlNetModel.from_single_file(
        str(run.out / "small.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        str(tiny_sd1), controlnet=opened, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)

    def picture(strength: float) -> np.ndarray:
        edge = Image.open(edges / "coffee.png").resize((64, 64))
        seeded = torch.Generator().manual_seed(0)
        return pipeline(
            "a cup", edge, num_inference_steps=2, generator=seeded, output_type="np",
            controlnet_conditioning_scale=strength,
        ).images[0]  # fmt: skip

    assert np.isfinite(picture(1.0)).all()
    assert np.abs(picture(1.0) - picture(0.0)).max() > 1e-4


@shows("save_model_as", by=METHOD)
@pytest.mark.parametrize("form", ["ckpt", "pt"])
def test_every_form_holds_the_same_and_trains_on(train: Train, form: str) -> None:
    run = train(save_model_as=form, max_train_steps=2)
    plain = train("plain", max_train_steps=2)
    file = run.out / f"small.{form}"
    assert run.of("save")[-1]["path"] == str(file)
    found = torch.load(file, weights_only=True)
    assert same(found, weights(plain))
    further = train("further", max_train_steps=1, learning_rate=1e-12, controlnet_model_name_or_path=file)
    kept = weights(further)
    assert all(torch.allclose(value, kept[name], atol=1e-9) for name, value in found.items())


@shows("save_precision", by=METHOD)
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"mixed_precision": "bf16", "save_precision": "fp16"},
        {"mixed_precision": "bf16", "full_bf16": True},
        {"mixed_precision": "bf16", "fp8_base": True},
        {"mem_eff_attn": True, "gradient_accumulation_steps": 2},
        {"train_batch_size": 2},
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
        assert {value.dtype for value in weights(run).values()} == {torch.float16}


@shows("sample_prompts", by=METHOD)
def test_samples_with_and_without_a_control_picture(train: Train, edges: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    size = "--w 64 --h 64 --s 2 --d 1"
    lines = [f"a cup {size}", f"a cup {size} --cn {edges / 'coffee.png'}", f"a cup {size} --cn {edges / 'none.png'}"]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    options = {"sample_prompts": prompts, "sample_every_n_steps": STEPS, "learning_rate": 1e-2}
    run = train(**options)
    assert run.code == 0
    free, steered = (Path(event["path"]) for event in run.of("sample"))
    assert not np.array_equal(np.asarray(Image.open(free)), np.asarray(Image.open(steered)))
    warnings = [event["message"] for event in run.of("warn")]
    assert any("There is no control picture" in message and "none.png" in message for message in warnings)
    assert run.losses == train("plain", learning_rate=1e-2).losses


def changed(edges: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(edges, folder)
    change(folder)
    return folder


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "coffee.png").unlink(), "coffee.png"),
    "extra": (lambda folder: shutil.copy(folder / "coffee.png", folder / "odd.png"), "odd.png"),
    "other shape": (
        lambda folder: Image.open(folder / "coffee.png").resize((50, 80)).save(folder / "coffee.png"),
        "50x80",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_control_folders_that_do_not_fit(train: Train, edges: Path, tmp_path: Path, kind: str) -> None:
    change, word = BAD[kind]
    run = train(conditioning_data_dir=changed(edges, tmp_path / "bad", change))
    assert run.code == 2
    assert run.error["key"] == "conditioning_data_dir"
    assert word in run.error["message"]
    assert not run.of("phase")[-1]["name"].startswith("load"), "said before the model is loaded"


def test_no_control_folder_at_all(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(conditioning_data_dir=None)
    assert run.code == 2
    assert "There are no control pictures" in capsys.readouterr().err


def test_data_from_a_file(train: Train, thumbs: Path, edges: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text(
        f"""
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 64
enable_bucket = true
min_bucket_reso = 64
  [[datasets.subsets]]
  image_dir = '{thumbs / "2_photo"}'
  conditioning_data_dir = '{edges}'
""",
        encoding="utf-8",
    )
    nothing = dict.fromkeys(("resolution", "enable_bucket", "min_bucket_reso", "caption_extension"))
    run = train("file", data=None, dataset_config=file, conditioning_data_dir=None, **nothing)
    assert run.losses == pytest.approx(train("plain").losses, rel=1e-5)


def test_a_model_that_is_no_controlnet_is_refused(train: Train, tiny_sd1_file: Path) -> None:
    run = train(controlnet_model_name_or_path=tiny_sd1_file)
    assert run.code == 2
    assert run.error["key"] == "controlnet_model_name_or_path"
