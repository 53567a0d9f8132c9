"""What both benchmarks need: fresh processes with their time and peak memory, medians, tables, the machine's facts."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.05
MEBI = 1 << 20


class BenchmarkError(Exception):
    """A measured process failed or left no numbers."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: start on the wall clock, seconds it took, peak resident bytes, standard output."""

    started: float
    seconds: float
    peak_bytes: int
    stdout: str


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a measured process: this tree importable, no network, a fixed number of threads."""
    values = {**os.environ, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    values["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    if threads:
        values["OMP_NUM_THREADS"] = str(threads)
    return values


def peak_of(pid: int) -> int:
    """The highest resident memory of a live process so far, in bytes; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        memory = psutil.Process(pid).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    except (OSError, psutil.Error):
        return 0


def run_fresh(argv: Sequence[str], env: Mapping[str, str], timeout: float = 1800) -> Finished:
    """Run a command to its end. The peak is that of its largest process: a launcher beside the trainer adds nothing.

    Raises BenchmarkError, with the end of its output, where it fails or takes longer than `timeout` seconds.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        started, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(argv, env=dict(env), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        try:
            while process.poll() is None:
                if time.perf_counter() - clock > timeout:
                    raise BenchmarkError(f"{' '.join(argv[:4])} ... took longer than {timeout:.0f} s")
                peak = max([peak, *map(peak_of, tree(process.pid))])
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - clock
        finally:
            end_tree(process)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise BenchmarkError(f"{' '.join(argv)}\nended with {process.returncode}:\n{text[-3000:]}")
    return Finished(started, seconds, peak, text)


def tree(pid: int) -> list[int]:
    """The process and everything it started."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def end_tree(process: subprocess.Popen[Any]) -> None:
    """End a process and everything it started, if it still runs."""
    if process.poll() is not None:
        return
    for pid in reversed(tree(process.pid)):
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(30)


def last_json(text: str) -> dict[str, Any]:
    """The last line of a process's output that is a JSON object. Raises BenchmarkError where there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    raise BenchmarkError(f"no numbers in the output:\n{text[-2000:]}")


def alternate(
    contestants: Mapping[str, Callable[[], dict[str, float]]], rounds: int, say: Callable[[str], None] = print
) -> dict[str, list[dict[str, float]]]:
    """Run each contestant once a round, in turn, so that a slow spell of the machine hits all of them."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, measure in contestants.items():
            say(f"round {number} of {rounds}: {name} (load {os.getloadavg()[0]:.1f})")
            numbers = measure()
            say("   " + ", ".join(f"{key} {value:.2f}" for key, value in numbers.items()))
            results[name].append(numbers)
    return results


def medians(runs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of every number over the runs."""
    rows = list(runs)
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(packages: Sequence[str]) -> str:
    """One line about the computer and the packages, for beside the numbers."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    memory = psutil.virtual_memory().total / (1 << 30)
    processor = next(
        (line.split(":", 1)[1].strip() for line in _processor_lines() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return (
        f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def python(*arguments: str) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *arguments]
