"""What a browser may fetch: nothing without the login, nothing outside the open folders, nothing for another site."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from .conftest import SECONDS, Served

pytestmark = pytest.mark.browser


def status(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> int:
    """The answer's code."""
    request = urllib.request.Request(url, headers=headers or {}, data=data)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def file_url(served: Served, path: Path | str) -> str:
    return f"{served.url}/kohya/file?path={urllib.parse.quote(str(path))}"


def test_only_files_in_open_folders_are_given(served: Served) -> None:
    (served.folder / "result.safetensors").write_bytes(b"x")
    (served.folder / ".hidden").write_text("x")
    assert status(file_url(served, served.folder / "result.safetensors")) == 200
    for path in ("/etc/passwd", served.folder / ".." / ".." / "x", served.folder / ".hidden", served.folder, ""):
        assert status(file_url(served, path)) == 404


def test_a_page_among_the_files_is_saved_and_not_shown(served: Served) -> None:
    (served.folder / "evil.html").write_text("<script>alert(1)</script>")
    with urllib.request.urlopen(file_url(served, served.folder / "evil.html"), timeout=SECONDS) as answer:
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_sites_are_refused(served: Served) -> None:
    assert status(served.url) == 200
    assert status(served.url, {"Host": "evil.example"}) == 403
    address = f"{served.url}/gradio_api/queue/join"
    assert status(address, {"Origin": "http://evil.example", "Content-Type": "text/plain"}, b"{}") == 403


def test_open_to_the_network_means_a_login(chromium: Browser, tmp_path: Path) -> None:
    served = Served(tmp_path, "--listen", "0.0.0.0")
    served.start()
    try:
        said = re.search(r"Log in as (\S+) with the password (\S+)", served.log())
        assert said is not None
        (tmp_path / "result.safetensors").write_bytes(b"x")
        assert status(file_url(served, tmp_path / "result.safetensors")) == 401
        assert status(f"{served.url}/config") == 401
        context = chromium.new_context()
        page = context.new_page()
        page.goto(served.url)
        page.locator("input").nth(0).fill(said[1])
        page.locator("input").nth(1).fill("wrong")
        page.get_by_role("button", name="Login").click()
        page.wait_for_timeout(500)
        assert page.locator("#top-lora-button").count() == 0
        page.locator("input").nth(0).fill(said[1])
        page.locator("input").nth(1).fill(said[2])
        page.get_by_role("button", name="Login").click()
        expect(page.locator("#lora-verdict")).to_contain_text(".")
        answer = page.request.get(file_url(served, tmp_path / "result.safetensors"))
        assert answer.status == 200
        context.close()
    finally:
        served.stop()
