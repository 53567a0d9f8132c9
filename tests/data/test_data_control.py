"""Control and mask pictures: found by name, of the same shape, cut and mirrored with their pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_kit import blueprint, save_photo
from PIL import Image
from torch import Tensor

from sd_scripts.data.batch import make_batch
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.loader import BatchLoader
from sd_scripts.schema.errors import DataError

Folder = Callable[..., Path]
SIZES = [(64, 64), (96, 64), (64, 96), (80, 80), (131, 70)]


def group_of(tmp_path: Path, **values: Any) -> DatasetGroup:
    """Pictures in train/ with control pictures in control/."""
    values = {
        "train_data_dir": tmp_path / "train",
        "conditioning_data_dir": tmp_path / "control",
        "enable_bucket": True,
        "bucket_reso_steps": 16,
        "control_images": True,
        "requires_control": True,
    } | values
    return build(blueprint(**values), 1)[0]


def encode(pixels: Tensor) -> Tensor:
    """Every 8x8 pixels' mean, so that latents tell which part of a picture they are of."""
    return torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


@pytest.fixture
def pairs(folder: Folder, tmp_path: Path) -> Path:
    """The control pictures are copies of the pictures, under another ending."""
    place = folder("", SIZES, ["a", "b", "c"])
    for number, size in enumerate(SIZES):
        save_photo(tmp_path / "control" / f"im{number:02d}.bmp", size, number)
    return place


def test_every_picture_once_with_its_caption(tmp_path: Path, pairs: Path) -> None:
    batches = list(BatchLoader(group_of(tmp_path)).epoch(1))
    assert sorted(caption for batch in batches for caption in batch.captions) == ["", "", "a", "b", "c"]
    assert all(batch.masks is None for batch in batches)


@pytest.mark.parametrize(
    "how",
    [
        {"flip_aug": True},
        {"flip_aug": True, "random_crop": True},
        {"flip_aug": True, "enable_bucket": False, "random_crop": True},
        {"flip_aug": True, "enable_bucket": False},
        {"flip_aug": True, "bucket_no_upscale": True},
        {"flip_aug": True, "resize_interpolation": "nearest"},
    ],
)
def test_cut_and_mirrored_with_the_picture_in_the_range_of_pictures(
    tmp_path: Path, pairs: Path, how: dict[str, Any]
) -> None:
    group = group_of(tmp_path, train_batch_size=2, **how)
    flips = set()
    for epoch in range(1, 5):
        for batch in BatchLoader(group).epoch(epoch):
            assert batch.images is not None
            assert batch.conditioning_images is not None
            assert torch.equal(batch.images, batch.conditioning_images)
            flips.update(batch.flipped)
    assert flips == {True, False}


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("buckets", [False, True])
def test_the_same_place_with_cached_latents(tmp_path: Path, pairs: Path, to_disk: bool, buckets: bool) -> None:
    plain = group_of(tmp_path, flip_aug=True, enable_bucket=buckets)
    cached = group_of(tmp_path, flip_aug=True, enable_bucket=buckets)
    cached.cache_latents(encode, to_disk=to_disk)
    for epoch in range(1, 5):
        for index in range(len(plain)):
            batch, direct = make_batch(cached, index, epoch), make_batch(plain, index, epoch)
            assert batch.conditioning_images is not None
            assert batch.latents is not None
            assert torch.equal(batch.conditioning_images, direct.conditioning_images)
            assert torch.allclose(encode(batch.conditioning_images), batch.latents, atol=1e-5)


def test_colours_change_in_the_picture_alone(tmp_path: Path, pairs: Path) -> None:
    plain, coloured = group_of(tmp_path), group_of(tmp_path, color_aug=True)
    changed = 0
    for epoch in range(1, 7):
        for index in range(len(plain)):
            before, after = make_batch(plain, index, epoch), make_batch(coloured, index, epoch)
            assert torch.equal(before.conditioning_images, after.conditioning_images)
            changed += not torch.equal(before.images, after.images)
    assert changed


def test_values_are_those_of_the_picture(tmp_path: Path, folder: Folder) -> None:
    folder("", [(64, 64)])
    control = Image.new("RGB", (64, 64), (255, 0, 51))
    (tmp_path / "control").mkdir()
    control.save(tmp_path / "control" / "im00.png")
    images = make_batch(group_of(tmp_path), 0, 1).conditioning_images
    assert images is not None
    assert images.shape == (1, 3, 64, 64)
    assert images[0, :, 7, 9].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_a_smaller_control_picture_of_the_same_shape_is_scaled(tmp_path: Path, folder: Folder) -> None:
    folder("", [(128, 96)])
    control = Image.new("RGB", (64, 48), (0, 0, 0))
    control.paste((255, 255, 255), (32, 0, 64, 48))
    (tmp_path / "control").mkdir()
    control.save(tmp_path / "control" / "im00.png")
    images = make_batch(group_of(tmp_path, enable_bucket=False), 0, 1).conditioning_images
    assert images is not None
    assert images[0, :, :, :30].max() == -1
    assert images[0, :, :, 34:].min() == 1


@pytest.mark.parametrize("masks", [False, True])
def test_other_shapes_are_all_named_before_training(tmp_path: Path, folder: Folder, masks: bool) -> None:
    folder("" if not masks else "1_a", SIZES)
    for number, size in enumerate(SIZES):
        save_photo(tmp_path / "control" / f"im{number:02d}.png", size if number not in (1, 3) else (50, 80), number)
    how = {"control_images": False, "requires_control": False} if masks else {}
    with pytest.raises(DataError, match="2 mask or control pictures have another shape") as caught:
        group_of(tmp_path, **how)
    text = str(caught.value)
    assert caught.value.key == "conditioning_data_dir"
    assert f"{tmp_path / 'control' / 'im01.png'} is 50x80, " in text
    assert "im01.png 96x64" in text
    assert "im03.png 80x80" in text
    assert "im02" not in text


def test_missing_and_left_over_control_pictures_are_named(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "control" / "im02.bmp").rename(tmp_path / "control" / "other.bmp")
    with pytest.raises(DataError, match=r"for 1 of 5 pictures: im02\.png"):
        group_of(tmp_path)
    (pairs / "im02.png").unlink()
    (pairs / "im02.txt").unlink()
    with pytest.raises(DataError, match=r"1 picture\(s\) that go with no training picture: other\.bmp"):
        group_of(tmp_path)
    (tmp_path / "control" / "other.bmp").unlink()
    assert group_of(tmp_path).images == 4


def test_two_subsets_of_a_file_and_a_shared_control_folder(tmp_path: Path, folder: Folder) -> None:
    one, two = folder("one", SIZES[:2]), folder("two", SIZES[:2])
    for number in range(2):
        save_photo(tmp_path / "control" / f"im{number:02d}.png", SIZES[number], number)
    text = "[[datasets]]\nbatch_size = 2\n" + "".join(
        f"[[datasets.subsets]]\nimage_dir = '{place}'\nconditioning_data_dir = '{tmp_path / 'control'}'\n"
        f"caption_prefix = '{place.name}'\nnum_repeats = 2\n"
        for place in (one, two)
    )
    path = tmp_path / "data.toml"
    path.write_text(text)
    values = {"dataset_config": path, "train_data_dir": None, "conditioning_data_dir": None}
    batches = list(BatchLoader(group_of(tmp_path, **values)).epoch(1))
    assert sorted(caption for batch in batches for caption in batch.captions) == ["one "] * 4 + ["two "] * 4
    assert all(torch.equal(batch.images, batch.conditioning_images) for batch in batches)


def test_cached_text_outputs_go_with_control_pictures(tmp_path: Path, pairs: Path) -> None:
    group = group_of(tmp_path)
    group.cache_latents(encode)
    assert group.cache_text_outputs(lambda captions: [{"pool2": torch.ones(3) * len(c)} for c in captions]) == 4
    for batch in BatchLoader(group).epoch(1):
        assert batch.text_outputs is not None
        assert batch.conditioning_images is not None
        assert batch.text_outputs["pool2"][:, 0].tolist() == [len(caption) for caption in batch.captions]
