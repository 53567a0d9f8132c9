"""The dataset view with real pictures: sizes, crops, captions, thumbnails, near-duplicates, hostile files."""

import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from kohya_gui import pictures
from sd_scripts.schema.errors import UserError


def picture(path: Path, size: tuple[int, int] = (120, 80), seed: int = 0, **save: object) -> Path:
    """A picture with some shapes that depend on the seed."""
    image = Image.new("RGB", size, (seed * 37 % 255, 90, 160))
    draw = ImageDraw.Draw(image)
    for i in range(6):
        x, y = (seed * 53 + i * 31) % size[0], (seed * 29 + i * 17) % size[1]
        draw.rectangle((x, y, x + size[0] // 4, y + size[1] // 5), fill=(i * 40, 255 - i * 30, seed * 11 % 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **save)  # type: ignore[arg-type]
    return path


VALUES = {
    "resolution": "64",
    "enable_bucket": True,
    "min_bucket_reso": 32,
    "bucket_reso_steps": 8,
    "caption_extension": ".txt",
}


def test_folders_and_pictures_are_seen_as_the_trainer_sees_them(tmp_path: Path) -> None:
    picture(tmp_path / "5_sks cat/a.png")
    (tmp_path / "5_sks cat/a.txt").write_text("a cat, sitting\nsecond line")
    picture(tmp_path / "5_sks cat/b.jpg", (20, 20))
    (tmp_path / "5_sks cat/c.webp").write_bytes(b"no picture")
    (folder,) = pictures.scan(tmp_path, VALUES)
    assert (folder.repeats, folder.class_tokens, folder.captions, folder.smallest_side) == (5, "sks cat", 1, 20)
    first, second, third = folder.pictures
    assert first.bucket == (80, 48) and second.bucket == (64, 64) and third.bucket is None
    assert pictures.caption(first, folder) == "a cat, sitting" and pictures.caption(second, folder) == "sks cat"
    assert [p.name for p in pictures.picture_problems([folder], "too small")] == ["b.jpg"]
    assert [p.name for p in pictures.picture_problems([folder], "unreadable")] == ["c.webp"]


def test_the_crop_is_the_part_that_is_trained(tmp_path: Path) -> None:
    picture(tmp_path / "1_x/a.png", (200, 100))
    (folder,) = pictures.scan(tmp_path, {"resolution": "64", "caption_extension": ".txt"})
    # twice as wide as high, cut to a square: the middle half
    assert folder.pictures[0].crop == pytest.approx((0.25, 0, 0.75, 1))


def test_five_draws_of_a_caption(tmp_path: Path) -> None:
    picture(tmp_path / "1_x/a.png")
    (tmp_path / "1_x/a.txt").write_text("cat, red, big, old, soft")
    values = {**VALUES, "shuffle_caption": True, "keep_tokens": 1, "caption_prefix": "photo of"}
    (folder,) = pictures.scan(tmp_path, values)
    seen = pictures.captions_seen(folder.pictures[0], folder, values)
    assert len(seen) == 5 and len(set(seen)) > 1
    assert all(text.startswith("photo of cat, ") and sorted(text.split(", "))[0] == "big" for text in seen)
    assert seen == pictures.captions_seen(folder.pictures[0], folder, values)


def test_a_thumbnail_is_small_upright_and_made_once(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.jpg", (400, 200), exif=_turned())
    made = pictures.thumbnail(source, 100, tmp_path / "cache")
    with Image.open(made) as image:
        assert image.size == (50, 100) and image.format == "JPEG"
    stamp = made.stat().st_mtime_ns
    assert pictures.thumbnail(source, 100, tmp_path / "cache") == made and made.stat().st_mtime_ns == stamp
    picture(source, (401, 200))
    assert pictures.thumbnail(source, 100, tmp_path / "cache") != made
    assert pictures.clean_thumbnails(tmp_path / "cache", most=1) == 1


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "I;16", "LA"])
def test_thumbnails_of_every_kind_of_picture(tmp_path: Path, mode: str) -> None:
    name = "a.tif" if mode in ("CMYK", "I;16") else "a.png"
    Image.new(mode, (30, 20)).save(tmp_path / name)
    with Image.open(pictures.thumbnail(tmp_path / name, 16, tmp_path / "cache")) as image:
        assert image.mode == "RGB" and max(image.size) == 16


def test_a_bomb_and_other_hostile_files_are_refused_quickly(tmp_path: Path) -> None:
    # a PNG of 60,000 x 60,000 black pixels, four bytes of data
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    files = {
        "bomb.png": bomb,
        "text.jpg": b"<svg onload=alert(1)>",
        "empty.png": b"",
        "torn.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    }
    good = picture(tmp_path / "good.jpg").read_bytes()
    files["half.png"] = picture(tmp_path / "x.png", (300, 300)).read_bytes()[:600]
    files["half.jpg"] = good[: len(good) // 3]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            pictures.thumbnail(tmp_path / name, 64, tmp_path / "cache")
    with pytest.raises(UserError):
        pictures.thumbnail(tmp_path / "none.png", 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    for seed in range(8):
        picture(tmp_path / f"1_x/{seed}.png", (160, 120), seed=seed)
    with Image.open(tmp_path / "1_x/3.png") as image:
        image.resize((80, 60)).save(tmp_path / "1_x/copy.jpg", quality=60)
    (tmp_path / "1_x/damaged.png").write_bytes(b"x")
    folders = pictures.scan(tmp_path, VALUES)
    groups = pictures.near_duplicates(folders)
    assert [[Path(path).name for path in group] for group in groups] == [["3.png", "copy.jpg"]]


def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures"):
        pictures.scan(tmp_path, VALUES)
    with pytest.raises(UserError, match="does not exist"):
        pictures.scan(tmp_path / "x", VALUES)
