"""What may be brought into a folder of pictures, and that nothing there is ever overwritten."""

import io
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import upload
from kohya_gui.paths import Roots
from sd_scripts.schema.errors import UserError


def png(width: int = 8, height: int = 8) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(made, "PNG")
    return made.getvalue()


def test_a_picture_and_its_caption_are_written_to_a_new_folder(tmp_path: Path) -> None:
    roots, folder = Roots([tmp_path]), tmp_path / "new" / "10_cat"
    upload.store(roots, str(folder), "a b.png", png())
    upload.store(roots, str(folder), "a b.txt", "ein Kätzchen".encode())
    assert (folder / "a b.png").read_bytes() == png()
    assert (folder / "a b.txt").read_text(encoding="utf-8") == "ein Kätzchen"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    roots = Roots([tmp_path])
    upload.store(roots, str(tmp_path), "a.png", png())
    with pytest.raises(UserError, match="already there"):
        upload.store(roots, str(tmp_path), "a.png", png(9, 9))
    assert (tmp_path / "a.png").read_bytes() == png()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../a.png", png()),
        (".a.png", png()),
        ("a\\b.png", png()),
        ("a\n.png", png()),
        ("", png()),
        ("a.svg", b"<svg/>"),
        ("a.png", b"no picture"),
        ("a.png", png()[:40]),
        ("a.txt", b"\xff\xfe\xfa"),
        ("a.txt", b"a" * (upload.MOST_CAPTION_BYTES + 1)),
    ],
)
def test_what_is_no_picture_or_no_name_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UserError):
        upload.store(Roots([tmp_path]), str(tmp_path / "pictures"), name, content)
    assert list(tmp_path.iterdir()) == []


def test_the_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_PIXELS", 100)
    with pytest.raises(UserError, match="pixels"):
        upload.store(Roots([tmp_path]), str(tmp_path), "a.png", png(11, 10))
    with pytest.raises(UserError, match="outside"):
        upload.store(Roots([tmp_path / "open"]), str(tmp_path / "other"), "a.png", png())
