"""Training sizes and latents, and the whole chain from caption files to the first batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_kit import Run

from kohya_gui.paths import Roots
from kohya_gui.prepare.undo import undo_job
from sd_scripts.data.config import build_blueprint
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.loader import BatchLoader
from sd_scripts.events import read_events
from sd_scripts.finetune import (
    clean_captions_and_tags,
    merge_captions_to_metadata,
    merge_dd_tags_to_metadata,
    prepare_buckets_latents,
)
from sd_scripts.models.loading import load_vae
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.validation import ValidationOptions

SMALL = [
    *("--max_resolution", "64,64"),
    *("--min_bucket_reso", "32"),
    *("--max_bucket_reso", "128"),
    *("--bucket_reso_steps", "16"),
]


def group_of(folder: Path, metadata: Path) -> DatasetGroup:
    """The data sets that fine-tuning makes of a metadata file with training sizes."""
    dataset = DatasetOptions(train_data_dir=str(folder), in_json=str(metadata), train_batch_size=2)
    return build(build_blueprint(dataset, CaptionOptions(), ValidationOptions()), seed=5)[0]


def never(pixels: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a picture was encoded again")


def test_from_captions_to_the_first_batch(pictures: Path, tmp_path: Path, tiny_sd1: Path, script: Run) -> None:
    meta = str(tmp_path / "meta.json")
    assert merge_captions_to_metadata.main([str(pictures), meta]) == 0
    assert merge_dd_tags_to_metadata.main([str(pictures), meta]) == 0
    assert clean_captions_and_tags.main([meta, meta]) == 0
    done = script("finetune/prepare_buckets_latents.py", pictures, meta, meta, tiny_sd1, "--batch_size", 2, *SMALL)
    assert done.returncode == 0, done.stderr

    entries = json.loads(Path(meta).read_text())
    assert len(entries) == 4
    assert len({tuple(entry["train_resolution"]) for entry in entries.values()}) > 1
    for name, entry in entries.items():
        assert list(entry) == ["caption", "tags", "train_resolution"]
        width, height = entry["train_resolution"]
        with np.load(pictures / f"{name}.npz") as arrays:
            assert arrays["latents"].shape == (4, height // 8, width // 8)
            assert arrays["latents"].dtype == np.float32
            assert arrays["original_size"].dtype == np.int64 and arrays["crop_ltrb"].dtype == np.float64
            assert tuple(arrays["original_size"]) == Image.open(pictures / f"{name}.png").size
            assert "latents_flipped" not in arrays

    group = group_of(pictures, Path(meta))
    assert group.cache_latents(never, to_disk=True, encoder_id="another number format") == 0
    batch = next(iter(BatchLoader(group).epoch(1)))
    assert batch.latents is not None and batch.latents.shape[1] == 4
    assert any("girl" in caption and "blue eyes" in caption for caption in batch.captions)


def test_what_a_job_encoded_anew_comes_back(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    """As a job the script keeps what stood under its names: older latents and lists are there again after an undo."""
    meta, job = str(tmp_path / "meta.json"), tmp_path / "job"
    assert merge_captions_to_metadata.main([str(pictures), meta]) == 0
    (pictures / "rocket.npz").write_bytes(b"older latents")
    before = {path: path.read_bytes() for path in (*pictures.iterdir(), Path(meta))}
    assert prepare_buckets_latents.main(["--job_dir", str(job), str(pictures), meta, meta, str(tiny_sd1), *SMALL]) == 0
    events, _ = read_events(job / "events.jsonl")
    assert events[-1]["status"] == "done" and events[-1]["written"] == 5
    assert [event["done"] for event in events if event["kind"] == "phase"][-1] == 4
    assert (pictures / "rocket.npz").read_bytes() != b"older latents"
    assert undo_job(job, Roots([tmp_path])) == {"restored": 2, "removed": 3, "changed": 0}
    assert {path: path.read_bytes() for path in (*pictures.iterdir(), Path(meta))} == before


@pytest.mark.slow
def test_the_fine_tuning_trainer_takes_them_as_they_are(
    pictures: Path, tmp_path: Path, tiny_sd1: Path, script: Run
) -> None:
    meta = tmp_path / "meta.json"
    assert merge_captions_to_metadata.main([str(pictures), str(meta)]) == 0
    assert prepare_buckets_latents.main([str(pictures), str(meta), str(meta), str(tiny_sd1), *SMALL]) == 0
    before = {path: path.stat().st_mtime_ns for path in pictures.iterdir()}
    argv = ["--pretrained_model_name_or_path", tiny_sd1, "--train_data_dir", pictures, "--in_json", meta]
    argv += ["--output_dir", tmp_path / "out", "--output_name", "tuned", "--max_train_steps", 1]
    done = script("fine_tune.py", *argv, "--cache_latents_to_disk", "--save_model_as", "safetensors")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tuned.safetensors").is_file()
    assert {path: path.stat().st_mtime_ns for path in pictures.iterdir()} == before


def test_latents_are_those_of_the_vae(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    square = pictures / "square.png"
    Image.open(pictures / "rocket.png").resize((64, 64)).save(square)
    argv = [str(pictures), str(meta), str(meta), str(tiny_sd1), "--flip_aug", *SMALL]
    assert prepare_buckets_latents.main(argv) == 0
    with np.load(pictures / "square.npz") as arrays:
        latents, flipped = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["latents_flipped"])
        assert arrays["crop_ltrb"].tolist() == [0, 0, 64, 64]
    vae = load_vae(str(tiny_sd1), torch.float32)
    pixels = torch.from_numpy(np.array(Image.open(square))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        for found, wanted in ((latents, pixels), (flipped, pixels.flip(-1))):
            spread = vae.encode(wanted).latent_dist
            assert ((found - spread.mean[0]).abs() <= 6 * spread.std[0] + 1e-5).all()
            assert (found - spread.mean[0]).abs().max() > 0


def test_every_picture_gets_its_entry_and_the_batch_size_changes_nothing(
    pictures: Path, tmp_path: Path, tiny_sd1: Path
) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    found = []
    for size in (1, 3):
        assert (
            prepare_buckets_latents.main(
                [str(pictures), str(meta), str(tmp_path / "out.json"), str(tiny_sd1), "--batch_size", str(size), *SMALL]
            )
            == 0
        )
        found.append({path.name: np.load(path)["latents"] for path in sorted(pictures.glob("*.npz"))})
    assert len(json.loads((tmp_path / "out.json").read_text())) == 4
    for name, latents in found[0].items():
        np.testing.assert_allclose(latents, found[1][name], atol=1e-5)


def test_existing_files_are_kept_only_if_they_fit(
    pictures: Path, tmp_path: Path, tiny_sd1: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    argv = [str(pictures), str(meta), str(meta), str(tiny_sd1), *SMALL, "--skip_existing"]
    assert prepare_buckets_latents.main(argv) == 0
    kept = pictures / "rocket.npz"
    before = kept.stat().st_mtime_ns
    (pictures / "猫.npz").write_bytes(b"PK torn")
    capsys.readouterr()
    assert prepare_buckets_latents.main(argv) == 0
    assert "3 pictures have their latents already" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert np.load(pictures / "猫.npz")["latents"].shape[0] == 4
    assert prepare_buckets_latents.main([*argv, "--flip_aug"]) == 0
    assert "latents_flipped" in np.load(kept)


def test_folders_below_and_no_upscale(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    below = pictures / "deep"
    below.mkdir()
    Image.open(pictures / "rocket.png").crop((0, 0, 70, 52)).save(below / "rocket.png")
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    argv = [str(pictures), str(meta), str(meta), str(tiny_sd1), "--recursive", "--full_path", *SMALL]
    assert prepare_buckets_latents.main([*argv, "--bucket_no_upscale", "--bucket_reso_steps", "12"]) == 0
    entries = json.loads(meta.read_text())
    # 70 x 52 has fewer pixels than 64 x 64: cut to steps of 12, 60 x 48, then down to multiples of 8
    assert entries[str(below / "rocket.png")]["train_resolution"] == [56, 48]
    assert np.load(below / "rocket.npz")["latents"].shape == (4, 6, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in": "none.json"}, "cannot be read"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all"),
        ({"more": ["--max_resolution", "big"]}, "width,height"),
        ({"more": ["--min_bucket_reso", "512"]}, "min_bucket_reso"),
        ({"more": ["--mixed_precision", "fp8"]}, "no, fp16 or bf16"),
        ({"broken": True}, "broken.png"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    change: dict, words: str, pictures: Path, tmp_path: Path, tiny_sd1: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    if change.get("broken"):
        (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    argv = [str(pictures), str(tmp_path / change.get("in", "meta.json")), str(tmp_path / "out.json")]
    argv += [str(change.get("model", tiny_sd1)), *SMALL, *change.get("more", [])]
    assert prepare_buckets_latents.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out.json").exists() and not list(pictures.glob("*.npz"))
