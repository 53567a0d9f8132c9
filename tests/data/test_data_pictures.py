"""Reading, turning, resizing and cropping of real picture files."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from sd_scripts.data.image import (
    Face,
    Picture,
    crop_at_face,
    face_in_name,
    fit_bucket,
    load_mask,
    load_picture,
    picture_size,
    random_corner,
    shift_colours,
    to_tensor,
)
from sd_scripts.schema.buckets import crop_ltrb
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.imagesize import read_header

NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "batches.json").read_text(encoding="utf-8"))


def photo(size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize(size)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.webp", "a.bmp", "a.avif"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    photo().save(path, quality=95)
    assert picture_size(path) == (96, 64)
    assert (read_header(path) is None) == (name == "a.avif")
    pixels = load_picture(path).pixels
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 12


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("exif", [True, False])
def test_webp_headers(tmp_path: Path, lossless: bool, exif: bool) -> None:
    extra = Image.Exif()
    extra[0x0112] = 6
    path = tmp_path / "a.webp"
    photo((131, 77)).save(path, lossless=lossless, **({"exif": extra} if exif else {}))
    header = read_header(path)
    assert header is not None
    assert header.size == ((77, 131) if exif else (131, 77))
    assert load_picture(path).size == header.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_rotation(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description before it"
    path = tmp_path / name
    picture = Image.new("RGB", (80, 40), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 16, 16))  # stored corner at the top left
    picture.save(path, exif=exif, **({"quality": 95} if name != "a.png" else {}))
    shown = load_picture(path)
    assert picture_size(path) == shown.size == ((40, 80) if orientation >= 5 else (80, 40))
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    row, column = corners[orientation]
    assert shown.pixels[row, column, 0] > 200


def test_special_modes(tmp_path: Path) -> None:
    grey16 = (np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16)
    Image.fromarray(grey16).save(tmp_path / "grey16.png")
    pixels = load_picture(tmp_path / "grey16.png").pixels
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert 120 < pixels[32, 0, 0] < 136
    assert pixels[-1, -1].tolist() == [255, 255, 255]
    photo().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert np.abs(load_picture(tmp_path / "palette.png").pixels.astype(int) - np.asarray(photo())).mean() < 12
    photo().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(load_picture(tmp_path / "cmyk.jpg").pixels.astype(int) - np.asarray(photo())).mean() < 12
    photo().convert("L").save(tmp_path / "grey.png")
    assert load_picture(tmp_path / "grey.png").pixels.shape == (64, 96, 3)
    photo().convert("1").save(tmp_path / "bit.bmp")
    assert set(np.unique(load_picture(tmp_path / "bit.bmp").pixels)) == {0, 255}


def test_alpha_is_dropped_or_a_mask(tmp_path: Path) -> None:
    rgba = photo().convert("RGBA")
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 48:] = 128
    rgba.putalpha(Image.fromarray(alpha))
    rgba.save(tmp_path / "a.png")
    plain, masked = load_picture(tmp_path / "a.png"), load_picture(tmp_path / "a.png", with_mask=True)
    assert plain.mask is None
    assert np.array_equal(plain.pixels, np.asarray(photo()))
    assert masked.mask is not None
    assert masked.mask[0, 0] == 0
    assert masked.mask[0, 60] == pytest.approx(128 / 255)
    photo().save(tmp_path / "b.jpg")
    opaque = load_picture(tmp_path / "b.jpg", with_mask=True).mask
    assert opaque is not None
    assert opaque.min() == 1


def test_a_mask_is_the_red_channel(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), (51, 255, 0)).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.shape == (4, 8)
    assert mask[0, 0] == pytest.approx(0.2)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    photo().save(tmp_path / "torn.jpg")
    content = (tmp_path / "torn.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13))
    for name in ("text.png", "empty.webp", "short.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            picture_size(tmp_path / name)
    with pytest.raises(DataError, match=r"torn\.jpg"):
        load_picture(tmp_path / "torn.jpg")


@pytest.mark.parametrize("case", NUMBERS["resize_values"], ids=lambda c: c["in"]["recipe"][:26])
def test_resized_pixels_against_recorded_numbers(case: dict[str, Any]) -> None:
    given, wanted = case["in"], case["out"]
    seed = int(given["recipe"].split("RandomState(")[1].split(")")[0])
    height, width = (int(n) for n in given["recipe"].split("256,(")[1].split(",3)")[0].split(","))
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    bucket, resized = tuple(given["bucket"]), tuple(given["resized"])
    result = fit_bucket(Picture(pixels), bucket, resized).pixels
    summary = wanted["result_hwc"]
    assert list(result.shape) == summary["shape"]
    assert float(result.astype(np.float64).sum()) == summary["sum"]
    assert result.ravel()[:8].tolist() == summary["first8"]
    assert result.ravel()[-8:].tolist() == summary["last8"]
    assert crop_ltrb(bucket, (width, height)) == pytest.approx(tuple(wanted["crop_ltrb"]))
    tensor, numbers = to_tensor(result), wanted["normalised"]
    assert list(tensor.shape) == numbers["shape"]
    assert tensor.flatten()[:8].tolist() == pytest.approx(numbers["first8"], abs=2e-6)
    assert float((tensor.double() ** 2).sum()) == pytest.approx(numbers["sumsq"], rel=1e-5)


@pytest.mark.parametrize("case", NUMBERS["random_crop"], ids=lambda c: str(c["in"]["random_seed"]))
def test_random_crop_draws(case: dict[str, Any]) -> None:
    rng = random.Random(case["in"]["random_seed"])
    for row in case["out"]["rows"]:
        assert random_corner(tuple(row["resized"]), tuple(row["bucket"]), rng) == (row["left"], row["top"])
    assert rng.random() == pytest.approx(case["out"]["next_python_random"], abs=1e-8)


@pytest.mark.parametrize("case", NUMBERS["face_crop"], ids=lambda c: str(c["in"]["face_cx_cy_w_h"]))
def test_face_crop_draws(case: dict[str, Any]) -> None:
    given, wanted = case["in"], case["out"]
    rng, replay = random.Random(given["random_seed"]), random.Random(given["random_seed"])
    width, height = given["image"]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    pixels = np.stack([columns * 255 / width, rows * 255 / height, rows * 0], -1).astype(np.uint8)
    result = crop_at_face(
        Picture(pixels),
        Face(*given["face_cx_cy_w_h"]),
        tuple(given["target_w_h"]),
        tuple(given["face_crop_aug_range"]),
        rng,
        given["random_crop"],
    )
    assert list(result.size) == wanted["size"]
    for draw in wanted["draws"]:
        value = getattr(replay, draw[0])(draw[1], draw[2])
        assert value == pytest.approx(draw[3], abs=1e-6)
    assert rng.getstate() == replay.getstate()
    if wanted["left_top"] != "unchanged":
        left, top = wanted["left_top"]
        resized = Picture(pixels).resize(tuple(wanted["resized"]))
        assert np.array_equal(result.pixels, resized.crop(left, top, result.size).pixels)


def test_face_names() -> None:
    assert face_in_name("some_one_400_300_120_100.png") == Face(400, 300, 120, 100)
    assert face_in_name("a_b_c_d_e.png") is None
    assert face_in_name("400_300_120_100.png") is None


def test_enlarging_keeps_more_detail_than_averaging() -> None:
    pixels = np.asarray(photo((40, 40)))
    chosen = Picture(pixels).resize((80, 80)).pixels
    assert np.array_equal(chosen, Picture(pixels).resize((80, 80), "lanczos").pixels)
    assert not np.array_equal(chosen, Picture(pixels).resize((80, 80), "area").pixels)
    with pytest.raises(DataError, match="fancy"):
        Picture(pixels).resize((80, 80), "fancy")


def test_colour_shift_changes_some_and_keeps_the_rest() -> None:
    pixels = np.asarray(photo())
    results = [shift_colours(pixels, random.Random(seed)) for seed in range(60)]
    changed = [r for r in results if not np.array_equal(r, pixels)]
    assert 8 <= len(changed) <= 35
    assert all(np.abs(r.astype(int) - pixels).mean() < 25 for r in changed)


def test_flip_and_crop_take_the_mask_along() -> None:
    mask = np.zeros((4, 8), np.float32)
    mask[:, 0] = 1
    flipped = Picture(np.zeros((4, 8, 3), np.uint8), mask).flip()
    assert flipped.mask is not None
    assert flipped.mask[0, -1] == 1
    part = flipped.crop(6, 0, (2, 4))
    assert part.mask is not None
    assert part.mask.tolist() == [[0.0, 1.0]] * 4
    assert torch.isfinite(to_tensor(part.pixels)).all()
