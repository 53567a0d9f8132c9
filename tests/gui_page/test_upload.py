"""What may be brought into a folder of pictures, and that nothing there is ever overwritten."""

import io
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
from awaited import awaited
from PIL import Image

from kohya_gui import pictures, served, upload
from kohya_gui.jobs import JobStore
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


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return made


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2_000_000_000, 1), (12_000, 12_000)])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(UserError, match=r"pixels|not a picture"):
        upload.store(Roots([tmp_path]), str(tmp_path), "a.png", bomb(width, height))
    (tmp_path / "b.png").write_bytes(bomb(width, height))
    with pytest.raises(UserError, match=r"too large|readable"):
        pictures.thumbnail(tmp_path / "b.png", 64, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(tmp_path: Path, kind: str) -> None:
    made = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(40)]
    frames[0].save(made, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="animation"):
        upload.store(Roots([tmp_path]), str(tmp_path), f"a.{kind.lower()}", made.getvalue())


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO"])
def test_another_kind_under_a_pictures_name_is_not_opened(tmp_path: Path, kind: str) -> None:
    """Pillow goes by the content, and hands EPS to Ghostscript."""
    made = io.BytesIO()
    Image.new("RGB", (16, 16)).save(made, kind)
    with pytest.raises(UserError):
        upload.store(Roots([tmp_path]), str(tmp_path), "a.png", made.getvalue())
    (tmp_path / "b.png").write_bytes(made.getvalue())
    with pytest.raises(UserError, match="readable"):
        pictures.thumbnail(tmp_path / "b.png", 64, tmp_path / "cache")


def test_names_and_numbers_have_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="too long"):
        upload.store(Roots([tmp_path]), str(tmp_path), "ä" * 120 + ".png", png())
    monkeypatch.setattr(upload, "MOST_FILES", 2)
    upload.store(Roots([tmp_path]), str(tmp_path), "a.png", png())
    upload.store(Roots([tmp_path]), str(tmp_path), "b.png", png())
    with pytest.raises(UserError, match="already holds"):
        upload.store(Roots([tmp_path]), str(tmp_path), "c.png", png())


@pytest.mark.parametrize("folder", ["sd_scripts", "kohya_gui/tabs", "presets/lora"])
def test_nothing_is_put_among_the_program(folder: str) -> None:
    with pytest.raises(UserError, match="program itself"):
        upload.store(Roots([upload.PROJECT]), str(upload.PROJECT / folder), "a.png", png())


def test_only_a_few_uploads_are_in_memory_at_once(tmp_path: Path) -> None:
    from starlette.applications import Starlette

    app = Starlette(routes=served.routes(Roots([tmp_path]), JobStore(tmp_path / "jobs")))
    app.auth = app.auth_dependency = None  # type: ignore[attr-defined]
    now = most = 0

    async def send(client: httpx.AsyncClient, number: int) -> None:
        async def body() -> AsyncIterator[bytes]:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await anyio.sleep(0.02)
            yield b"a cat"
            now -= 1

        query = {"folder": str(tmp_path / "p"), "name": f"{number}.txt"}
        answer = await client.put("http://x/kohya/upload", params=query, content=body())
        assert answer.json() == {"written": f"{number}.txt"}

    async def all_at_once() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client, anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(send, client, number)

    awaited(all_at_once())
    assert most == served.UPLOADS_AT_ONCE and len(list((tmp_path / "p").iterdir())) == 12
