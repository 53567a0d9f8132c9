"""Pictures of every tab for the documentation, taken from the real page in Chromium with the demo project.

    python docs/make_screenshots.py [--to docs/images] [--only lora jobs] [--demo FOLDER]

Makes the demo project in a temporary folder, or in a new one that is named, whose name is then seen in the pictures;
starts the page, fills each tab in as a person would, trains the demo's LoRA, and writes WebP files. The exit code is 1
where a browser is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
QUALITY = 82
PATIENCE = 300_000
expect.set_options(timeout=60_000)
TRAINING = ("dreambooth", "lora", "textual_inversion", "finetune", "controlnet", "lllite")
OTHERS = ("utilities", "lora_tools", "jobs", "settings", "about")
# Beside the light pictures of 1280 pixels: tab -> width and scheme of a second one.
SECOND = {"lora": (1280, "dark"), "jobs": (1280, "dark"), "dreambooth": (800, "light")}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page as its own process; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, str(ROOT / "kohya_gui.py"), "--headless", "--server_port", str(port)]
    argv += ["--jobs_dir", str(folder), "--allow_folder", str(folder)]
    said = folder / "page.log"
    with said.open("wb") as log:
        page = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        while "The page is at" not in said.read_text(encoding="utf-8"):
            if page.poll() is not None:
                raise SystemExit(said.read_text(encoding="utf-8"))
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait(20)


def make_demo(folder: Path) -> dict[str, Any]:
    """The demo project in `folder`; its settings with absolute paths."""
    argv = [sys.executable, "-m", "sd_scripts.tools.make_demo", "--out", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    values = dict(json.loads((folder / "demo.json").read_text(encoding="utf-8")))
    for key in ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "logging_dir", "sample_prompts"):
        if values.get(key):
            values[key] = str((folder / values[key]).resolve())
    return values


def visit(browser: Browser, url: str, width: int = 1280, scheme: Any = "light") -> Page:
    """A fresh window."""
    page = browser.new_page(
        viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce", locale="en-GB"
    )
    page.goto(url)
    expect(page.locator("#lora-verdict")).to_contain_text(".")
    return page


def open_tab(page: Page, tab: str) -> None:
    if tab == "lora_tools":
        page.click("#top-utilities-button")
        page.click("#utilities-lora_tools-button")
        page.click("#utilities-merge_lora-button")
        return
    page.click(f"#top-{tab}-button")
    if tab in TRAINING:
        expect(page.locator(f"#{tab}-verdict")).to_contain_text(".")


def fill(page: Page, tab: str, demo: dict[str, Any]) -> None:
    """The demo's settings in the LoRA tab; in the others what the demo has for them."""
    if tab == "lora":
        page.click("#lora-open")
        with page.expect_file_chooser() as chooser:
            page.click("[data-upload]")
        content = json.dumps(demo).encode()
        chooser.value.set_files([{"name": "demo.json", "mimeType": "application/json", "buffer": content}])
        expect(page.locator("#lora-file")).to_contain_text("demo.json")
        if page.locator(".k-sheet").is_visible():
            page.keyboard.press("Escape")
        return
    pictures = demo["train_data_dir"]
    texts = {"output_dir": demo["output_dir"], "output_name": f"my_{tab}", "train_data_dir": pictures}
    if tab != "lllite":
        texts["pretrained_model_name_or_path"] = demo["pretrained_model_name_or_path"]
    if tab == "textual_inversion":
        texts |= {"token_string": "ohwx", "init_word": "shape"}
    for key, text in texts.items():
        page.fill(f"#{tab}-{key} .k-in", text)
    page.wait_for_timeout(1500)


def merge(page: Page, demo: dict[str, Any]) -> None:
    """Two small LoRA files in the form that merges them, and what would come of it."""
    folder = Path(demo["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    for slot, name, ratio in (("a", "my_cat", "0.8"), ("b", "ink_style", "0.5")):
        made = {f"{layer}.lora_down.weight": torch.ones(16, 768), f"{layer}.lora_up.weight": torch.ones(640, 16)}
        save_file(made | {f"{layer}.alpha": torch.tensor(8.0)}, str(folder / f"{name}.safetensors"))
        page.fill(f"#tool_merge_lora-lora_{slot}_model .k-in", str(folder / f"{name}.safetensors"))
        page.fill(f"#tool_merge_lora-ratio_{slot} .k-in", ratio)
    page.fill("#tool_merge_lora-save_to .k-in", str(folder / "cat_in_ink"))
    page.wait_for_timeout(1500)


def train(page: Page) -> None:
    """Start the demo's training and wait for its end, so that curves, samples and files are there."""
    page.click("#lora-start")
    row = page.locator("#jobs-table tbody tr").first
    expect(row).to_contain_text("done", timeout=PATIENCE)
    page.wait_for_timeout(1500)


def take(page: Page, path: Path) -> None:
    """Write what the window shows as WebP."""
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(path, "WEBP", quality=QUALITY, method=6)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def take_all(browser: Browser, url: str, demo: dict[str, Any], to: Path, only: set[str]) -> None:
    page = visit(browser, url)
    for tab in (*TRAINING, *OTHERS):
        if tab not in only:
            continue
        if tab == "jobs":
            open_tab(page, "lora")
            fill(page, "lora", demo)
            expect(page.locator("#lora-start")).to_be_enabled()
            train(page)
        open_tab(page, tab)
        if tab in TRAINING:
            fill(page, tab, demo)
        if tab == "lora_tools":
            merge(page, demo)
        take(page, to / f"{tab}.webp")
    for tab in [each for each in SECOND if each in only]:
        width, scheme = SECOND[tab]
        second = visit(browser, url, width, scheme)
        open_tab(second, tab)
        if tab in TRAINING:
            fill(second, tab, demo)
        second.wait_for_timeout(1500)
        take(second, to / f"{tab}-{scheme if scheme == 'dark' else width}.webp")
        second.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", nargs="*", default=[*TRAINING, *OTHERS])
    parser.add_argument("--demo", type=Path, help="a folder that is made for this and removed afterwards")
    given = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        print("No browser: install Chromium (Debian: apt-get install chromium).", file=sys.stderr)
        return 1
    given.to.mkdir(parents=True, exist_ok=True)
    if given.demo:
        given.demo.mkdir(parents=True)
    folder = (given.demo or Path(tempfile.mkdtemp(prefix="kohya-demo-"))).resolve()
    try:
        demo = make_demo(folder / "demo")
        with served(folder) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            take_all(browser, url, demo, given.to.resolve(), set(given.only))
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
