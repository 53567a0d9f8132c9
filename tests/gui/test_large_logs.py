"""Long runs stay cheap to look at: what is read is bounded, whatever the size of the log and of the events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kohya_gui.job_log import MOST_STEPS, JobLog, Series, console_lines, pace
from sd_scripts.events import EventWriter

IO = Path("/proc/self/io")
EVENTS = 20_000
pytestmark = pytest.mark.skipif(not IO.exists(), reason="Linux counts the bytes that a process reads")


def read_so_far() -> int:
    """Bytes that this process has read, from any file."""
    return int(next(line.split()[1] for line in IO.read_text().splitlines() if line.startswith("rchar")))


def step(number: int) -> str:
    return json.dumps({"kind": "step", "step": number, "of": EVENTS, "loss": 1 / number, "lr": {"unet": 1e-4}}) + "\n"


def test_of_a_log_of_100_mb_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with log.open("wb") as file:
        file.truncate(100_000_000)  # a hole: it takes no room
        file.seek(0, 2)
        file.write(b"".join(b"\nline %d" % number for number in range(1000)) + b"\n")
    before = read_so_far()
    assert console_lines(log, 400) == [f"line {number}" for number in range(600, 1000)]
    assert read_so_far() - before < 2_100_000
    log.write_text("one\n\x1b[31mtwo\x1b[0m\nold\rthree")
    assert console_lines(log, 2) == ["two", "three"]
    assert console_lines(log, 0) == console_lines(log, 3) == ["one", "two", "three"]


def test_events_are_read_once_and_pages_share_what_is_made_of_them(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(step(number) for number in range(1, EVENTS + 1)))
    log = JobLog(path)
    before = read_so_far()
    first = log.refresh().curves()
    once = read_so_far() - before
    assert path.stat().st_size <= once < 1.1 * path.stat().st_size
    assert max(len(first.loss), len(first.smooth), len(first.lr["unet"])) <= 1000
    before = read_so_far()
    for _ in range(50):  # as many pages, looking each second
        assert log.refresh().curves() is first
    with path.open("a") as file:
        file.write(step(EVENTS + 1))
    grown = log.refresh().curves()
    assert grown.loss[-1][0] == EVENTS + 1 and grown is not first
    assert read_so_far() - before < 50_000


def test_of_a_very_long_run_enough_steps_are_read_for_the_chart(tmp_path: Path) -> None:
    count = 3 * MOST_STEPS + 7
    with EventWriter(tmp_path / "events.jsonl") as writer:
        writer.write("start", total_steps=count)
    lines = [
        json.dumps({"v": 1, "t": 1.5 * number, "kind": "step", "step": number, "of": count, "loss": 1 + 1 / number})
        for number in range(1, count + 1)
    ]
    lines.insert(count // 2, json.dumps({"v": 1, "t": 5.0, "kind": "warn", "code": "odd", "message": "Odd."}))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    log = JobLog(tmp_path / "events.jsonl").refresh()
    assert (log.first_step["step"], log.last["step"], len(log.warnings)) == (1, count, 1)
    assert MOST_STEPS <= len(log.loss.steps) < 1.1 * MOST_STEPS
    assert pace(log, 0.0) == pytest.approx((1.5, 1.5))
    every = Series()
    for number in range(1, count + 1):
        every.add(number, 1 + 1 / number)
    whole = dict(zip(every.steps, every.smoothed(0.95)))
    some = dict(zip(log.loss.steps, log.loss.smoothed(0.95)))
    assert all(some[step] == pytest.approx(whole[step], rel=0.01) for step in list(some)[100:])
