"""Scripts that make pictures of pictures."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from script_kit import Run

from sd_scripts.data.image import face_in_name
from sd_scripts.tools import (
    canny,
    convert_images_to_hq_jpg,
    convert_images_to_webp,
    crop_images_to_n_buckets,
    detect_face_rotate,
    group_images,
    group_images_recommended_size,
    resize_images_to_resolution,
)
from sd_scripts.tools.resize_images_to_resolution import target_size


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def size(path: Path) -> tuple[int, int]:
    return Image.open(path).size


def test_copies_of_several_sizes(pictures: Path, tmp_path: Path, script: Run) -> None:
    out = tmp_path / "small ones"
    done = script(
        "tools/resize_images_to_resolution.py", pictures, out, "--max_resolution", "96x96,64x32", "--divisible_by", 8,
        "--copy_associated_files",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = names(out)
    assert len(found) == 4 * 2 * 3
    assert {"rocket+96x96.jpg", "rocket+64x32.txt", "猫+64x32.caption"} <= found
    for path in out.glob("*.jpg"):
        width, height = size(path)
        most = 96 * 96 if "+96x96" in path.name else 64 * 32
        assert width % 8 == height % 8 == 0 and min(0.6 * most, 4000) < width * height <= most * 1.02


def test_resized_pixels_transparency_and_what_is_small_already(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :20] = 255
    pixels[:20, :20, 3] = 128
    Image.fromarray(pixels).save(source / "half.png")
    argv = [str(source), str(out), "--max_resolution", "20x20,90x90", "--save_as_png"]
    assert resize_images_to_resolution.main([*argv, "--interpolation", "area"]) == 0
    assert np.array_equal(np.array(Image.open(out / "half+90x90.png")), pixels)
    small = np.array(Image.open(out / "half+20x20.png"))
    assert small.shape == (20, 20, 4) and np.array_equal(small, pixels[::2, ::2])
    assert target_size(1000, 500, 512 * 512, 1) == ((724, 362), (724, 362))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max_resolution", "512"], "holds '512'"),
        (["--interpolation", "best"], "area, cubic or lanczos4"),
        (["--divisible_by", "4096"], "smaller than divisible_by"),
    ],
)
def test_resizing_refuses(
    more: list[str], words: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resize_images_to_resolution.main([str(pictures), str(tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")


def test_nothing_is_written_over_unless_asked(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "rocket+64x64.jpg").write_text("mine")
    argv = [str(pictures), str(out), "--max_resolution", "64x64"]
    assert resize_images_to_resolution.main(argv) == 2
    assert "1 of 4 files are there already" in capsys.readouterr().err
    assert names(out) == {"rocket+64x64.jpg"}
    assert resize_images_to_resolution.main([*argv, "--overwrite"]) == 0
    assert len(names(out)) == 4 and size(out / "rocket+64x64.jpg")[0] > 0


def test_edges(pictures: Path, tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "edges of it.png"
    done = script("tools/canny.py", "--input", pictures / "猫.png", "--output", target, "--thres1", 50, "--thres2", 150)
    assert done.returncode == 0, done.stderr
    grey = cv2.cvtColor(np.array(Image.open(pictures / "猫.png")), cv2.COLOR_RGB2GRAY)
    assert np.array_equal(np.array(Image.open(target)), cv2.Canny(grey, 50, 150))
    assert canny.main(["--input", str(pictures), "--output", str(tmp_path / "all")]) == 0
    assert len(names(tmp_path / "all")) == 4
    for argv, words in (
        (["--input", str(pictures / "none.png"), "--output", "x.png"], "There is no picture"),
        (["--input", str(pictures / "猫.png"), "--output", str(tmp_path / "x.txt")], "no picture format"),
        (["--input", str(pictures / "猫.txt"), "--output", str(tmp_path / "x.png")], "cannot read"),
        (["--input", str(pictures / "猫.png")], "output is missing"),
    ):
        assert canny.main(argv) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_formats(pictures: Path, tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    done = script("tools/convert_images_to_webp.py", pictures, "--in_ext", "png")
    assert done.returncode == 0, done.stderr
    before = np.array(Image.open(pictures / "猫.png"))
    assert np.array_equal(np.array(Image.open(pictures / "猫.webp").convert("RGB")), before)
    done = script("tools/convert_images_to_hq_jpg.py", pictures, "--delete_originals")
    assert done.returncode == 0, done.stderr
    assert not list(pictures.glob("*.webp"))
    back = np.array(Image.open(pictures / "猫.jpg")).astype(int)
    assert 0 < np.abs(back - before).mean() < 3
    assert convert_images_to_hq_jpg.main([str(pictures), "--in_ext", ".jpg"]) == 2
    assert convert_images_to_webp.main([str(pictures)]) == 2
    assert convert_images_to_hq_jpg.main([str(pictures), "--in_ext", "png", "--quality", "80"]) == 2
    said = capsys.readouterr().err
    assert "what would be written" in said and "4 of 4 files" in said and said.count("\n") == 3


def test_a_broken_picture_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.webp").write_bytes(b"RIFF")
    assert convert_images_to_hq_jpg.main([str(tmp_path), "--delete_originals"]) == 2
    assert "broken.webp" in capsys.readouterr().err
    assert names(tmp_path) == {"broken.webp"}


def test_groups_have_one_shape(pictures: Path, tmp_path: Path, script: Run) -> None:
    (pictures / "5_grey cat").mkdir()
    Image.open(pictures / "猫.png").save(pictures / "5_grey cat" / "猫.png")
    out = tmp_path / "groups"
    done = script("tools/group_images.py", pictures, out, 2, "--include_subfolders", "--caption")
    assert done.returncode == 0, done.stderr
    pictures_out = sorted(out.glob("*.png"))
    assert len(pictures_out) == 5
    groups: dict[str, list[float]] = {}
    for path in pictures_out:
        width, height = size(path)
        groups.setdefault(re.match(r"group-\d+", path.name)[0], []).append(width / height)  # type: ignore[index]
    assert sorted(len(shapes) for shapes in groups.values()) == [1, 2, 2]
    assert all(max(shapes) / min(shapes) < 1.02 for shapes in groups.values())
    captions = [path.read_text() for path in out.glob("*.txt")]
    assert captions.count("grey cat") == 1 and len(captions) == 5
    assert len(list(out.glob("*.caption"))) == 4
    bare = tmp_path / "bare"
    assert group_images.main([str(pictures), str(bare), "2", "--no_copy"]) == 0
    assert {path.suffix for path in bare.iterdir()} == {".png"}


def test_padding_keeps_every_pixel(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (60, 40), (255, 0, 0)).save(source / "a.png")
    Image.new("RGB", (40, 60), (255, 0, 0)).save(source / "b.png")
    assert group_images.main([str(source), str(tmp_path / "out"), "2", "--pad"]) == 0
    for path in (tmp_path / "out").iterdir():
        pixels = np.array(Image.open(path))
        assert pixels.shape == (60, 60, 3)
        assert (pixels[..., 0] == 255).sum() == 2400 and (pixels[..., 0] == 0).sum() == 1200


def test_recommended_size(tmp_path: Path, script: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        Image.new("RGB", (100, 50 + 50 * (number // 3))).save(tmp_path / f"{number}.png")
    done = script("tools/group_images_recommended_size.py", tmp_path, 2, 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Recommended group size: 3"
    assert "3: 0.00% cut off" in done.stdout
    assert group_images_recommended_size.main([str(tmp_path), "5", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_buckets(pictures: Path, tmp_path: Path, script: Run) -> None:
    done = script("tools/crop_images_to_n_buckets.py", pictures, tmp_path / "a", 3)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "a") == {f"bucket-{name}.png" for name in ("0001-01", "0001-02", "0001-03", "0002-01")}
    shapes = {round(w / h, 1) for w, h in map(size, (tmp_path / "a").glob("bucket-0001*"))}
    assert len(shapes) == 1
    assert crop_images_to_n_buckets.main([str(pictures), str(tmp_path / "b"), "3", "--use_original_name"]) == 0
    assert names(tmp_path / "b") == {path.name for path in pictures.glob("*.png")}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portrait upright and leaning by 25 degrees, and a cat."""
    import skimage.data

    folder = tmp_path_factory.mktemp("people")
    portrait = skimage.data.astronaut()
    Image.fromarray(portrait).save(folder / "upright.png")
    matrix = cv2.getRotationMatrix2D((256, 256), -25, 1)
    leaning = cv2.warpAffine(portrait, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    Image.fromarray(leaning).save(folder / "leaning.png")
    Image.fromarray(skimage.data.chelsea()).save(folder / "cat.png")
    return folder


def test_faces_are_found_and_named(people: Path, tmp_path: Path, script: Run) -> None:
    out = tmp_path / "faces"
    done = script("tools/detect_face_rotate.py", "--src_dir", people, "--dst_dir", out)
    assert done.returncode == 0, done.stderr
    assert "1 pictures have no such face: cat.png" in done.stdout
    found = {path.name.split("_")[0]: face_in_name(path) for path in out.iterdir()}
    assert set(found) == {"upright", "leaning"}
    for name, (x, y) in {"upright": (224, 115), "leaning": (287, 115)}.items():
        face = found[name]
        assert face is not None and abs(face.x - x) < 12 and abs(face.y - y) < 12 and 80 < face.width < 120


def test_faces_are_turned_cut_and_resized(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "turned"
    argv = ["--src_dir", str(people), "--dst_dir", str(out), "--rotate", "--crop_ratio", "2,2", "--crop_size", "128,96"]
    assert detect_face_rotate.main(argv) == 2  # one of both
    argv = ["--src_dir", str(people), "--dst_dir", str(out), "--rotate", "--crop_ratio", "1.4,1.4"]
    assert detect_face_rotate.main([*argv, "--resize_face_size", "64"]) == 0
    cut = {path.name.split("_")[0]: np.array(Image.open(path)).astype(float) for path in out.iterdir()}
    assert {pixels.shape for pixels in cut.values()} <= {(90, 90, 3), (89, 89, 3)}
    both = [pixels[10:80, 10:80] for pixels in cut.values()]
    match = cv2.matchTemplate(both[0].astype(np.float32), both[1][8:62, 8:62].astype(np.float32), cv2.TM_CCOEFF_NORMED)
    assert match.max() > 0.85, "after turning both are nearly the same picture"

    fit = tmp_path / "fit"
    argv = ["--src_dir", str(people), "--dst_dir", str(fit), "--crop_size", "128,96", "--resize_fit", "--debug"]
    assert detect_face_rotate.main([*argv, "--multiple_faces", "--min_size", "50", "--max_size", "200"]) == 0
    assert {size(path) for path in fit.iterdir()} == {(128, 96)}
    assert all("_1_" in path.name for path in fit.iterdir())
