"""How fast the page comes up, and what it costs: own imports, building the form, launching, the first page.

    python benchmarks/start.py [--rounds 5]

Each round is a fresh process that runs `kohya_gui.py` as a person would and looks at its clock on the way: when
gradio is imported, when the form begins and ends, when the server answers. Gradio's own import is shown, but nobody
here can change it; the goals are for the rest.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    MEBI,
    ROOT,
    BenchmarkError,
    environment,
    last_json,
    machine,
    markdown,
    medians,
    python,
    run_fresh,
)

HEAVY = ("torch", "transformers", "diffusers", "accelerate", "bitsandbytes", "onnxruntime", "cv2", "scipy")
GOALS = {"own_imports": 0.2, "form_and_launch": 1.5, "page_mb": 1.0}
FIGURES = {
    "gradio": "python and `import gradio`, s",
    "own_imports": "own imports, s",
    "own_imports_cpu": "own imports, s of processor time",
    "form": "building the form, s",
    "launch": "launch, s",
    "form_and_launch": "form and launch, s",
    "form_and_launch_cpu": "form and launch, s of processor time",
    "first_page": "first page, s",
    "page_mb": "page, MB",
    "page_gzip_mb": "page compressed, MB",
    "components": "components",
    "peak": "memory, MiB",
    "whole": "start to first page, s",
}


class _Answered(BaseException):
    """Ends the measured process once the page was fetched; no handler for errors catches it."""


def probe(port: int, arguments: list[str]) -> dict[str, Any]:
    """Run in the fresh process: start the page and take its times. Seconds, megabytes, names of heavy modules."""
    began = time.perf_counter()
    import gradio

    clocks = {"gradio": time.perf_counter() - began}
    build, launch = gradio.Blocks.__init__, gradio.Blocks.launch
    result: dict[str, Any] = {}

    def first_blocks(self: Any, *args: Any, **kwargs: Any) -> None:
        if "form" not in clocks:
            clocks.update(form=time.perf_counter(), form_cpu=time.process_time())
        build(self, *args, **kwargs)

    def watched_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        called = time.perf_counter()
        launch(self, *args, **{**kwargs, "prevent_thread_lock": True})
        up, up_cpu = time.perf_counter(), time.process_time()
        body = fetch(self.local_url)
        answered = time.perf_counter()
        result.update(
            gradio=clocks["gradio"],
            own_imports=clocks["form"] - imported,
            own_imports_cpu=clocks["form_cpu"] - imported_cpu,
            form=called - clocks["form"],
            launch=up - called,
            form_and_launch=up - clocks["form"],
            form_and_launch_cpu=up_cpu - clocks["form_cpu"],
            first_page=answered - up,
            page_mb=len(body) / 1e6,
            page_gzip_mb=len(gzip.compress(body)) / 1e6,
            components=len(self.blocks),
            heavy=[name for name in HEAVY if name in sys.modules],
        )
        raise _Answered

    gradio.Blocks.__init__, gradio.Blocks.launch = first_blocks, watched_launch
    sys.argv = ["kohya_gui.py", "--headless", "--server_port", str(port), *arguments]
    import runpy

    imported, imported_cpu = time.perf_counter(), time.process_time()
    try:
        runpy.run_path(str(ROOT / "kohya_gui.py"), run_name="__main__")
    except _Answered:
        return result
    raise BenchmarkError("kohya_gui.py ended without launching a page")


def fetch(url: str) -> bytes:
    """The page's HTML, which holds the description of every component."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def measure(jobs: Path, extra: list[str]) -> dict[str, Any]:
    """One fresh start, without jobs of earlier runs in its way."""
    env = environment() | {"GRADIO_TEMP_DIR": str(jobs / "gradio")}
    argv = python(__file__, "--probe", str(free_port()), "--", "--jobs_dir", str(jobs), *extra)
    done = run_fresh(argv, env, timeout=180)
    numbers = last_json(done.stdout)
    numbers["peak"] = done.peak_bytes / MEBI
    numbers["whole"] = numbers.pop("answered_at") - done.started
    return numbers


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="write every round's numbers to this JSON file")
    parser.add_argument("--probe", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("gui", nargs="*", help="further flags for kohya_gui.py, after --")
    return parser.parse_args()


def report(rounds: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The table, and the goals that were missed."""
    numbers = [{key: row[key] for key in FIGURES} for row in rounds]
    middle = medians(numbers)
    rows = [
        [label, f"{middle[key]:.3g}", f"{min(r[key] for r in numbers):.3g} to {max(r[key] for r in numbers):.3g}",
         f"< {GOALS[key]}" if key in GOALS else ""]
        for key, label in FIGURES.items()
    ]  # fmt: skip
    missed = [
        f"{FIGURES[key]}: {middle[key]:.2f} (goal < {goal})" for key, goal in GOALS.items() if middle[key] >= goal
    ]
    heavy = sorted({name for row in rounds for name in row["heavy"]})
    if heavy:
        missed.append(f"the page's process loads {', '.join(heavy)}")
    head = f"{machine(('gradio',))}. {time.strftime('%Y-%m-%d')}, median of {len(rounds)} fresh starts."
    loaded = f"Loaded of {', '.join(HEAVY)}: {', '.join(heavy) or 'none'}."
    return "\n".join([head, "", markdown(["figure", "median", "range", "goal"], rows), "", loaded]), missed


def main() -> int:
    """Measure, print the table, say which goals were missed (exit code 1 for that)."""
    options = arguments()
    if options.probe:
        numbers = probe(options.probe, options.gui)
        print(json.dumps({**numbers, "answered_at": time.time()}), flush=True)
        sys.stdout.flush()
        # The server's threads still listen; nothing of this process is needed any more.
        os._exit(0)
    rounds = []
    with tempfile.TemporaryDirectory() as jobs:
        # The first start compiles bytecode and fills the disk cache: it is thrown away.
        for number in range(options.rounds + 1):
            numbers = measure(Path(jobs), options.gui)
            print(f"start {number}{' (not counted)' if number == 0 else ''}: {numbers['whole']:.2f} s", flush=True)
            rounds += [numbers] if number else []
    table, missed = report(rounds)
    print("\n" + table)
    if options.save:
        options.save.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")
    print("\n".join(missed) or "goals reached")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"benchmark failed: {error}")
