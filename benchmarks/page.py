"""What the page with all its tabs costs: until it answers, until one can work, per tab, per key, and with many lookers.

    python benchmarks/page.py [--rounds 3] [--browsers 10]

The page is its own process, as a person starts it; the browser is the installed Chromium without a window. "Answer"
is the first answer to a request for the page, "interactive" the moment when Python has answered the form's first
question. A tab's switch ends two frames after its form stands. Ten browsers look at one running job that says
something twice a second; beside it lies a job with a console log of 100 MB and 200,000 events.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from playwright.sync_api import Browser, Page, Response, sync_playwright

from benchmarks.common import ROOT, BenchmarkError, end_tree, environment, machine, markdown, medians, python
from sd_scripts.schema.tabs import TABS

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
# kohya_ss v26 on a machine with two cores: 10.5 to 12.4 s to its first answer, 6.85 MB; a third and a sixth of that.
GOALS = {"answer": 3.5, "page_mb": 1.14, "switch": 0.3, "key": 0.1, "big_job": 3.0}
FIGURES = {
    "answer": "start to first answer, s",
    "answer_cpu": "start to first answer, s of processor time",
    "page_mb": "page with its own script and style, MB uncompressed",
    "all_mb": "the same with Gradio's files, MB uncompressed",
    "paint": "first paint, s",
    "interactive": "time to interactive, s",
    "switch": "slowest first look at a tab, s",
    "switch_median": "median first look at a tab, s",
    "switch_again": "slowest second look at a tab, s",
    "key": "slowest key of 40, s",
    "key_median": "median key, s",
    "big_job": "a job of 100 MB and 200,000 events stands in an open page, s",
    "browsers_cpu": "page's processor time a second with all browsers on one running job, s",
    "event_lag": "an event of the job is seen by all browsers after, s (median)",
    "memory": "page's memory, MiB",
}
WATCH = """() => { window.keys = []; new PerformanceObserver((list) => { for (const each of list.getEntries())
  if (each.name === 'keydown' || each.name === 'input') window.keys.push(each.duration); })
  .observe({ type: 'event', durationThreshold: 16, buffered: false }); }"""
# From the click to two frames after what one waits for stands there.
SWITCH = """([button, wanted]) => new Promise((done, fail) => { const began = performance.now();
  document.querySelector(button).click();
  const look = () => {
    if ([...document.querySelectorAll(wanted)].some((each) => each.offsetParent))
      requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - began) / 1000)));
    else if (performance.now() - began > 30000) fail(new Error(`${wanted} does not come`));
    else requestAnimationFrame(look); };
  look(); })"""
PAINT = """() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime / 1000"""
STEP = {"v": 1, "kind": "step", "epoch": 1, "epochs": 1, "avg_loss": 0.1, "speed": 2.0, "eta": 60.0, "memory": 1 << 30}


@dataclass
class Server:
    """A running page."""

    url: str
    process: psutil.Process
    answer: float
    answer_cpu: float


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Start `kohya_gui.py` and take the time until it first answers. Raises BenchmarkError where it never does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = python(str(ROOT / "kohya_gui.py"), "--headless", "--server_port", str(port), "--jobs_dir", str(folder))
    env = environment() | {"GRADIO_TEMP_DIR": str(folder / "gradio")}
    log = (folder / "page.log").open("wb")
    began = time.perf_counter()
    started = subprocess.Popen(argv, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        body = None
        while body is None:
            if started.poll() is not None or time.perf_counter() - began > 120:
                raise BenchmarkError((folder / "page.log").read_text()[-2000:])
            body = fetch(url)
        took = time.perf_counter() - began
        process = psutil.Process(started.pid)
        cpu = process.cpu_times()
        yield Server(url, process, took, cpu.user + cpu.system)
    finally:
        end_tree(started)
        log.close()


def fetch(url: str) -> bytes | None:
    """The page's HTML; None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except OSError:
        time.sleep(0.02)
        return None


def job_folder(jobs: Path, name: str, *, running: bool) -> Path:
    """A job as the page's supervisor leaves it; a running one is this process's."""
    number = f"{sum(name.encode()):08x}"
    folder = jobs / f"20260101-000000-{name}-{number}"
    folder.mkdir(parents=True)
    spec = {"id": number, "name": name, "created": time.time(), "command": "train_network", "gpu_set": "all"}
    spec |= {"values": {"output_name": name, "output_dir": str(folder)}, "argv": [sys.executable], "env": {}}
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "launched.json").write_text(json.dumps({"time": time.time(), "pid": os.getpid()}))
    if running:
        own = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        (folder / "supervisor.json").write_text(json.dumps(own))
    else:
        (folder / "exit.json").write_text(json.dumps({"code": 0, "time": time.time()}))
    return folder


def step(number: int, of: int) -> str:
    """A step's event as a line."""
    said = {**STEP, "t": time.time(), "step": number, "of": of, "loss": 1 / number, "lr": {"unet": 1e-4}}
    return json.dumps(said) + "\n"


def big_job(jobs: Path) -> Path:
    """A job that ended after 200,000 steps and has written 100 MB to its console."""
    folder = job_folder(jobs, "big", running=False)
    with (folder / "events.jsonl").open("w") as events:
        events.writelines(step(number, 200_000) for number in range(1, 200_001))
        events.write(json.dumps({"v": 1, "t": time.time(), "kind": "end", "status": "done", "step": 200_000}) + "\n")
    line = "12:00:00 INFO step 1/200000 epoch 1/1 loss 0.1234 average 0.1234 rate unet 0.0001 2.00 it/s 60 min left\n"
    with (folder / "console.log").open("w") as console:
        console.write(line * (100_000_000 // len(line)))
    return folder


def first_looks(browser: Browser, server: Server) -> dict[str, float]:
    """Paint, interactive, tabs and keys in one fresh window."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(server.url, wait_until="commit")
    page.wait_for_function("document.querySelector('#lora-verdict')?.textContent.includes('.')", polling=20)
    numbers = {"interactive": float(page.evaluate("performance.now()")) / 1000}
    numbers["paint"] = float(page.evaluate(PAINT))
    page.wait_for_timeout(1500)  # what loads after that
    sizes = {each.url: len(each.body()) for each in list(answers) if each.ok and "/gradio_api/" not in each.url}
    own = [size for url, size in sizes.items() if "/assets/" not in url and "/static/" not in url]
    numbers |= {"page_mb": sum(own) / 1e6, "all_mb": sum(sizes.values()) / 1e6}
    names = [*TABS, "utilities", "jobs", "settings", "about"]
    rounds = [[switch(page, name) for name in names] for _ in range(2)]
    numbers |= {"switch": max(rounds[0]), "switch_median": statistics.median(rounds[0]), "switch_again": max(rounds[1])}
    switch(page, "lora")
    page.wait_for_timeout(500)
    page.evaluate(WATCH)
    page.locator("#lora-output_name .k-in").click()
    page.keyboard.type("a name that somebody types without pause", delay=40)
    page.wait_for_timeout(1500)
    keys = [float(each) / 1000 for each in page.evaluate("window.keys")]
    numbers |= {"key": max(keys, default=0.0), "key_median": statistics.median([0.0, *keys][:1] + keys)}
    page.close()
    return numbers


def switch(page: Page, name: str) -> float:
    """Seconds from the click on a tab to its content."""
    wanted = {"utilities": "#tool_basic_caption-start", "jobs": "#jobs-tab", "settings": "#settings-tab"}
    target = wanted.get(name, f"#{name}-form .k-field" if name in TABS else f"#top-{name} *")
    return float(page.evaluate(SWITCH, [f"#top-{name}-button", target]))


def many_browsers(browser: Browser, server: Server, running: Path, count: int) -> dict[str, float]:
    """`count` windows on one running job that says something twice a second."""
    with (running / "events.jsonl").open("a", buffering=1) as events:
        events.write(json.dumps({"v": 1, "t": time.time(), "kind": "start", "total_steps": 5000}) + "\n")
        events.write(step(1, 5000))
        contexts = [browser.new_context() for _ in range(count)]
        pages = []
        for context in contexts:
            page = context.new_page()
            page.goto(server.url)
            page.click("#top-jobs-button")
            page.locator("#jobs-table tbody tr", has_text="running").first.click()
            pages.append(page)
        lags = []
        cpu, clock = server.process.cpu_times(), time.perf_counter()
        for number in range(2, 22):
            events.write(step(number * 100, 5000))
            if number % 4 == 0:
                lags.append(seen_after(pages, f"{number * 100:,}"))
            else:
                time.sleep(0.5)
        after, seconds = server.process.cpu_times(), time.perf_counter() - clock
    used = after.user + after.system - cpu.user - cpu.system
    for context in contexts:
        context.close()
    return {"browsers_cpu": used / seconds, "event_lag": statistics.median(lags)}


def seen_after(pages: list[Page], text: str) -> float:
    """Seconds until every window shows this text in its table of jobs."""
    began = time.perf_counter()
    for page in pages:
        page.wait_for_function(
            "(text) => document.querySelector('#jobs-table').textContent.includes(text)", arg=text, polling=50
        )
    return time.perf_counter() - began


def open_big(browser: Browser, server: Server, made: Path, jobs: Path) -> float:
    """Seconds from the moment when the large job lies in its folder until its curve and log stand in an open page.

    The page asks once a second.
    """
    page = browser.new_page()
    page.goto(server.url)
    page.click("#top-jobs-button")
    page.wait_for_timeout(2500)
    began = time.perf_counter()
    made.rename(jobs / made.name)
    page.wait_for_function("document.querySelector('#jobs-log')?.textContent.includes('step 1/200000')", polling=20)
    page.wait_for_selector("#jobs-curves polyline.k-line")
    took = time.perf_counter() - began
    page.close()
    return took


def say(numbers: dict[str, float]) -> None:
    """What is known so far, for whoever waits."""
    print("   " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items()), flush=True)


def measure(program: str, browsers: int) -> dict[str, float]:
    """All figures of one fresh start."""
    folder = Path(tempfile.mkdtemp(prefix="page "))
    try:
        with served(folder) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            numbers = {"answer": server.answer, "answer_cpu": server.answer_cpu}
            numbers |= first_looks(browser, server)
            say(numbers)
            jobs = folder / "jobs"
            jobs.mkdir(exist_ok=True)
            numbers["big_job"] = open_big(browser, server, big_job(folder / "made"), jobs)
            say(numbers)
            running = job_folder(jobs, "running", running=True)
            numbers |= many_browsers(browser, server, running, browsers)
            numbers["memory"] = server.process.memory_info().rss / (1 << 20)
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return numbers


def main() -> int:
    """Measure, print a table; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browsers", type=int, default=10)
    given = parser.parse_args()
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        raise BenchmarkError("No browser: install Chromium.")
    rounds = []
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds} (load {os.getloadavg()[0]:.1f})", flush=True)
        rounds.append(measure(program, given.browsers))
    middle = medians(rounds)
    rows = [
        [label, f"{middle[key]:.3g}", f"{min(r[key] for r in rounds):.3g} to {max(r[key] for r in rounds):.3g}",
         f"< {GOALS[key]}" if key in GOALS else ""]
        for key, label in FIGURES.items()
    ]  # fmt: skip
    print(machine(["gradio", "playwright"]))
    print(markdown(["figure", "median", "range", "goal"], rows))
    missed = [FIGURES[key] for key, goal in GOALS.items() if middle[key] >= goal]
    for label in missed:
        print(f"missed: {label}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
