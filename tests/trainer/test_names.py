"""What each trainer calls things: the project and the figures in trackers, and what its file says about itself.

The frozen parts of a whole model are looked at too: a run in 16 bits leaves them as they were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from control_kit import draw_edges
from effects import metadata
from runs import Finished, train_here
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONTROL = {"loss/current", "loss/average", "loss/epoch", "lr"}
WORD = {"token_string": "mycat4", "init_word": "cat", "use_object_template": True}
EMBEDDING = {"loss", "loss/average", "loss/epoch", "lr"}
SPECIFICATION = {
    "sai_model_spec", "architecture", "implementation", "implementation_version", "title", "resolution", "date",
    "prediction_type",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A trainer: its model, the project in trackers, the figures there, its file's architecture (None: no notes)."""

    model: str
    project: str
    figures: set[str]
    architecture: str | None
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "train_db": Case(
        "sd1",
        "dreambooth",
        {"loss", "loss/average", "loss/epoch", "lr/unet", "lr/text_encoder1"},
        "stable-diffusion-v1",
        {"learning_rate_te": 1e-4},
    ),
    "fine_tune": Case(
        "sd1",
        "finetuning",
        {"loss", "loss/average", "loss/epoch", "lr/unet"},
        "stable-diffusion-v1",
        {"in_json": "metadata.json", "caption_extension": None},
    ),
    "sdxl_train": Case(
        "sdxl",
        "finetuning",
        {"loss", "loss/average", "loss/epoch", "lr/block0", "lr/block22"},
        "stable-diffusion-xl-v1-base",
        {"block_lr": ",".join(["1e-4", *["0"] * 21, "1e-4"])},
    ),
    "train_textual_inversion": Case(
        "sd1", "textual_inversion", EMBEDDING, "stable-diffusion-v1/textual-inversion", WORD
    ),
    "train_textual_inversion_XTI": Case("sd1", "textual_inversion", EMBEDDING, None, WORD),
    "sdxl_train_textual_inversion": Case(
        "sdxl", "textual_inversion", EMBEDDING, "stable-diffusion-xl-v1-base/textual-inversion", WORD
    ),
    "train_controlnet": Case("sd1", "controlnet_train", CONTROL, None, {"conditioning_data_dir": "edges"}),
    "sdxl_train_control_net_lllite": Case(
        "sdxl",
        "lllite_control_net_train",
        CONTROL,
        "stable-diffusion-xl-v1-base/control-net-lllite",
        {"conditioning_data_dir": "edges", "network_dim": 8, "cond_emb_dim": 8},
    ),
}


@pytest.fixture(scope="module")
def sources(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A metadata file and control pictures for the photographs."""
    folder = tmp_path_factory.mktemp("sources")
    entries = [f'"{path.stem}": {{"caption": "a photo"}}' for path in (thumbs / "2_photo").glob("*.png")]
    (folder / "metadata.json").write_text("{" + ", ".join(entries) + "}", encoding="utf-8")
    edges = draw_edges(thumbs / "2_photo", folder / "edges")
    return {"metadata.json": folder / "metadata.json", "edges": edges}


@pytest.fixture(params=CASES)
def made(
    request: pytest.FixtureRequest, sources: dict[str, Path], thumbs: Path, tmp_path: Path
) -> tuple[str, Path, Finished]:
    """(command, model, a run of one step in bf16 from a single file with trackers)."""
    case = CASES[request.param]
    options = {
        key: sources.get(value, value) if isinstance(value, str) else value for key, value in case.options.items()
    }
    plain = "in_json" in options or "conditioning_data_dir" in options
    model = request.getfixturevalue(f"tiny_{case.model}_file")
    run = train_here(
        model,
        thumbs / "2_photo" if plain else thumbs,
        tmp_path / "out",
        request.param,
        logging_dir=tmp_path / "logs",
        bucket_reso_steps=32,
        mixed_precision="bf16",
        save_model_as="safetensors",
        train_batch_size=4,
        max_train_steps=1,
        min_timestep=100,
        metadata_author="me",
        **options,
    )
    assert run.code == 0, run.of("error")
    return request.param, model, run


def test_names_in_trackers_and_files(made: tuple[str, Path, Finished]) -> None:
    command, model, run = made
    case = CASES[command]
    (folder,) = (run.out.parent / "logs").iterdir()
    reader = EventAccumulator(str(folder / case.project))
    reader.Reload()
    assert set(reader.Tags()["scalars"]) == case.figures
    loss = "loss" if "loss" in case.figures else "loss/current"
    assert [item.value for item in reader.Scalars(loss)] == pytest.approx(run.losses)

    notes = metadata(run.out / "small.safetensors")
    if case.architecture is None:
        assert notes == {}
    else:
        expected = {f"modelspec.{name}" for name in SPECIFICATION | {"author", "timestep_range"}}
        assert set(notes) - {"format"} == expected
        assert notes["modelspec.architecture"] == case.architecture
        assert notes["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
        assert (notes["modelspec.title"], notes["modelspec.author"]) == ("small", "me")
        assert (notes["modelspec.resolution"], notes["modelspec.prediction_type"]) == ("64x64", "epsilon")
        assert notes["modelspec.timestep_range"] == "100,1000"
    if case.project in ("dreambooth", "finetuning"):
        before, after = load_file(model), load_file(run.out / "small.safetensors")
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        trained = "cond_stage_model." if command == "train_db" else "model.diffusion_model."
        assert moved and all(name.startswith(("model.diffusion_model.", trained)) for name in moved)
        assert {name: value.dtype for name, value in before.items()} == {n: v.dtype for n, v in after.items()}
