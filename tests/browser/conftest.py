"""A real page in a real Chromium: the page runs as its own process, as a person starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the browser tests need the package playwright (tests/requirements.txt)")

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 60.0
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The installed Chromium; where there is none the test is skipped, on a build machine it fails."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        text = "No browser: install Chromium (Debian: apt-get install chromium)."
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A running `kohya_gui.py`; `folder` is open to it and holds its jobs."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = flags
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = folder / "page.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says where it is."""
        words = [sys.executable, str(ROOT / "kohya_gui.py"), "--server_port", str(self.port), "--headless"]
        words += ["--jobs_dir", str(self.folder), "--allow_folder", str(self.folder), *self.flags]
        # plans of trainers in the background would take the processor from what is tested
        environment = {"KOHYA_GUI_FORETELL": "off"} | os.environ
        environment |= {"GRADIO_TEMP_DIR": str(self.folder / "gradio"), "PYTHONUNBUFFERED": "1"}
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                words, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=self.folder
            )
        end = time.monotonic() + SECONDS
        while "The page is at" not in self.log():
            assert self.process.poll() is None, f"the page ended: {self.log()}"
            assert time.monotonic() < end, f"the page did not start: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """What it printed so far."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End it as a power cut would; what it started goes on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)

    def stop(self) -> None:
        """End it if it still runs, and then its trainings."""
        from kohya_gui.jobs import JobStore

        if self.process is not None and self.process.poll() is None:
            self.kill()
        store = JobStore(self.folder / "jobs")
        running = [view.id for view in store.list() if view.running]
        for job in running:
            store.kill(job, grace=1.0)
        end = time.monotonic() + 30
        while any(store.get(job).running for job in running) and time.monotonic() < end:
            time.sleep(0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One page for the tests of a module."""
    made = Served(tmp_path_factory.mktemp("page with space"))
    made.start()
    yield made
    made.stop()


class Visit:
    """One browser window, and what went wrong in it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True} | options
        self.context: BrowserContext = browser.new_context(**settings)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self._request(request.url, url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.goto(url)
        expect(self.page.locator("#lora-verdict")).to_contain_text(".")

    def _request(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.foreign.append(address)

    def open_text(self, content: dict[str, Any], name: str) -> None:
        """Open a configuration from "this computer" and close the report."""
        page = self.page
        page.click("#lora-open")
        with page.expect_file_chooser() as chooser:
            page.click("[data-upload]")
        file = {"name": name, "mimeType": "application/json", "buffer": json.dumps(content).encode()}
        chooser.value.set_files([file])  # type: ignore[list-item]
        expect(page.locator("#lora-file")).to_contain_text(name)

    def job(self, name: str) -> Any:
        """The row of the first job of this name."""
        return self.page.locator("#jobs-table tbody tr", has_text=name).first

    def close(self) -> None:
        """Close the window."""
        self.context.close()


@pytest.fixture
def visit(chromium: Browser, served: Served) -> Iterator[Visit]:
    """A fresh window on the page; at the end nothing may have gone wrong in it or left the machine."""
    made = Visit(chromium, served.url)
    yield made
    made.close()
    assert made.foreign == []
    assert made.errors == []
