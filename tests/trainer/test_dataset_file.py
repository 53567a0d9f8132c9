"""Whole runs on a description file with data sets of every kind, sizes and batch sizes of their own."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from runs import Finished, train_here


@pytest.fixture
def described(thumbs: Path, tmp_path: Path) -> Path:
    """Folders, a metadata file, and masked pictures, in one file."""
    photos = Path(shutil.copytree(thumbs / "2_photo", tmp_path / "2_photo"))  # caches are written beside them
    pictures = sorted(photos.glob("*.png"))
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({path.stem: {"caption": "a photo", "tags": "small"} for path in pictures[:2]}))
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in pictures:
        Image.new("RGB", Image.open(path).size, (255, 255, 255)).save(masks / path.name)
    file = tmp_path / "data.toml"
    file.write_text(
        f"""
        [general]
        caption_extension = ".txt"
        flip_aug = true

        [[datasets]]  # folders
        resolution = 64
        batch_size = 2
        enable_bucket = false
          [[datasets.subsets]]
          image_dir = '{photos}'
          num_repeats = 2
          class_tokens = "thing"
          [[datasets.subsets]]
          image_dir = '{shutil.copytree(photos, tmp_path / "reg")}'
          is_reg = true

        [[datasets]]  # a metadata file
        resolution = [96, 64]
        batch_size = 1
        network_multiplier = 0.5
        bucket_reso_steps = 32
          [[datasets.subsets]]
          metadata_file = '{meta}'
          image_dir = '{photos}'

        [[datasets]]  # masked
        resolution = 128
        batch_size = 4
          [[datasets.subsets]]
          image_dir = '{photos}'
          conditioning_data_dir = '{masks}'
        """,
        encoding="utf-8",
    )
    return file


@pytest.mark.parametrize("cached", [False, True])
def test_kinds_sizes_and_batch_sizes_in_one_run(tiny_sd1: Path, described: Path, tmp_path: Path, cached: bool) -> None:
    options = {"dataset_config": described, "masked_loss": True, "cache_latents": cached, "max_train_steps": 12}
    run = train_here(tiny_sd1, None, tmp_path / "out", **options)
    assert run.code == 0
    (start,) = run.of("start")
    # four pictures twice and as many to hold the model back, the two of the metadata file, four with masks
    assert [(*bucket["size"], bucket["count"]) for bucket in start["buckets"]] == [
        (64, 64, 16),
        (64, 64, 2),
        (128, 128, 4),
    ]
    assert start["repeats_images"] == 22
    assert len(run.losses) == 12
    assert all(0 < loss < 10 for loss in run.losses)


def refused(run: Finished) -> str:
    assert run.code == 2
    assert not run.of("phase") or run.of("phase")[-1]["name"] == "scan pictures"
    return str(run.error["message"])


def test_kinds_that_a_command_does_not_know(tiny_sd1: Path, described: Path, tmp_path: Path) -> None:
    masked = train_here(tiny_sd1, None, tmp_path / "a", dataset_config=described)
    assert refused(masked).startswith("data.toml, datasets[2]: this command does not train on conditioning_data_dir")
    metadata = train_here(tiny_sd1, None, tmp_path / "b", "train_db", dataset_config=described, masked_loss=True)
    assert refused(metadata).startswith("data.toml, datasets[1]: this command does not train on metadata_file")
    folders = train_here(tiny_sd1, None, tmp_path / "c", "fine_tune", dataset_config=described)
    assert refused(folders).startswith("data.toml, datasets[0]: this command does not train on folders")


def test_steps_of_buckets_for_sdxl(tiny_sdxl: Path, described: Path, tmp_path: Path) -> None:
    text = described.read_text(encoding="utf-8").replace("bucket_reso_steps = 32", "bucket_reso_steps = 16")
    described.write_text(text, encoding="utf-8")
    options = {"dataset_config": described, "masked_loss": True, "network_train_unet_only": True}
    run = train_here(tiny_sdxl, None, tmp_path / "out", "sdxl_train_network", **options)
    assert refused(run).startswith("data.toml, datasets[1]: bucket_reso_steps is 16, but must be a multiple of 32")


def test_changing_captions_of_one_subset_and_a_cache_of_captions(
    tiny_sdxl: Path, described: Path, tmp_path: Path
) -> None:
    text = described.read_text(encoding="utf-8").replace("is_reg = true", "is_reg = true\nshuffle_caption = true")
    described.write_text(text, encoding="utf-8")
    options = {
        "dataset_config": described,
        "masked_loss": True,
        "network_train_unet_only": True,
        "cache_text_encoder_outputs": True,
    }
    run = train_here(tiny_sdxl, None, tmp_path / "out", "sdxl_train_network", **options)
    assert refused(run).startswith("cache_text_encoder_outputs and shuffle_caption exclude each other")
    assert "datasets[0].subsets[1]" in run.error["hint"]
    described.write_text(text.replace("shuffle_caption = true", ""), encoding="utf-8")
    plain = train_here(tiny_sdxl, None, tmp_path / "plain", "sdxl_train_network", **options)
    options["cache_text_encoder_outputs_to_disk"] = True
    for name in ("first", "second"):
        disk = train_here(tiny_sdxl, None, tmp_path / name, "sdxl_train_network", **options)
        assert disk.losses == pytest.approx(plain.losses, rel=1e-6)
