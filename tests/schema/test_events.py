"""The event stream: what is written can be read at any moment, by anybody, after any accident."""

import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.events import Control, EventWriter, read_events


def test_written_events_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    with EventWriter(path) as writer:
        writer.write("start", total_steps=2, buckets=[{"size": (512, 512), "count": 3}], output_dir=Path("a b"))
        writer.write("step", step=1, loss=0.25, lr={"unet": 1e-4})
    events, offset = read_events(path)
    assert [event["kind"] for event in events] == ["start", "step"]
    assert events[0]["v"] == 1 and events[0]["buckets"] == [{"size": [512, 512], "count": 3}]
    assert events[0]["output_dir"] == "a b"
    assert events[1]["lr"] == {"unet": 1e-4} and events[1]["t"] > 1.7e9
    assert offset == path.stat().st_size
    assert read_events(path, offset) == ([], offset)


def test_each_event_is_readable_at_once(tmp_path: Path) -> None:
    path, offset = tmp_path / "events.jsonl", 0
    writer = EventWriter(path)
    for step in range(3):
        writer.write("step", step=step)
        events, offset = read_events(path, offset)
        assert [event["step"] for event in events] == [step]
    writer.close()


def test_torn_last_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"v": 1, "kind": "step", "prompt": "ä" * 20}, ensure_ascii=False).encode()
    path.write_bytes(line + b"\n" + line[:-4])
    events, offset = read_events(path)
    assert len(events) == 1 and offset == len(line) + 1
    assert read_events(path, offset) == ([], offset)
    with path.open("ab") as file:
        file.write(line[-4:] + b"\n")
    events, offset = read_events(path, offset)
    assert [event["prompt"] for event in events] == ["ä" * 20] and offset == path.stat().st_size


def test_a_run_that_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "st')
    with EventWriter(path) as writer:
        writer.write("start", step=2)
    events, _ = read_events(path)
    assert [event["step"] for event in events] == [1, 2]


def test_events_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    path = tmp_path / "events.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventWriter(path) as writer:
        writer.write("step", step=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
        try:
            for step in range(1, 4):
                writer.write("step", step=step)
            assert [event["step"] for event in read_events(path)[0]] == [0]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.write("step", step=4)
        assert [event["step"] for event in read_events(path)[0]] == [0, 1, 2, 3, 4]


def test_nan_becomes_null_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        writer.write("step", loss=math.nan, lr={"unet": math.inf}, norms=[1.0, -math.inf], fine=1.0)
    (event,), _ = read_events(path)
    assert event["loss"] is None and event["lr"] == {"unet": None} and event["norms"] == [1.0, None]
    assert event["fine"] == 1.0
    assert event["warning"] == "loss was nan; lr.unet was inf; norms[1] was -inf"
    assert "NaN" not in path.read_text(encoding="utf-8")


def test_scalars_of_other_libraries_become_numbers(tmp_path: Path) -> None:
    class Scalar:
        def item(self) -> float:
            return 0.5

    with EventWriter(tmp_path / "e.jsonl") as writer:
        writer.write("step", loss=Scalar(), other={1})
    (event,), _ = read_events(tmp_path / "e.jsonl")
    assert event["loss"] == 0.5 and event["other"] == "{1}"


def test_missing_and_replaced_files(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path, 100) == ([], 0)
    path.write_bytes(b'{"kind": "a"}\n')
    events, offset = read_events(path, 5000)
    assert [event["kind"] for event in events] == ["a"] and offset == 14


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "a"}\nnoise\n[1]\n\n\xff\xfe\n{"kind": "b"}\n')
    events, offset = read_events(path)
    assert [event["kind"] for event in events] == ["a", "b"] and offset == path.stat().st_size


def test_a_reader_beside_a_writer_sees_every_event_once(tmp_path: Path) -> None:
    path, total = tmp_path / "events.jsonl", 2000
    writer = EventWriter(path)

    def write() -> None:
        for number in range(total):
            writer.write("step", step=number, text="ü" * (number % 50))

    thread = threading.Thread(target=write)
    seen: list[int] = []
    offset = 0
    thread.start()
    events: list[dict[str, Any]] = []
    running = True
    while running or events:
        running = thread.is_alive()  # asked before reading: what came in between is read in the next round
        events, offset = read_events(path, offset)
        seen += [event["step"] for event in events]
    thread.join()
    writer.close()
    assert seen == list(range(total))


def test_requests_are_taken_once(tmp_path: Path) -> None:
    control = Control(tmp_path / "control")
    assert control.take() == []
    control.request("sample")
    control.request("stop")
    control.request("stop")
    assert Control(tmp_path / "control").take() == ["stop", "sample"]
    assert control.take() == []
    with pytest.raises(ValueError, match="pause"):
        control.request("pause")


def test_schema_and_events_load_nothing_but_the_standard_library() -> None:
    code = """
import pathlib, sys
before = set(sys.modules)
import sd_scripts.events, sd_scripts.schema
import importlib
for path in sorted(pathlib.Path(sd_scripts.schema.__file__).parent.glob("*.py")):
    if path.stem not in ("__init__", "document"):
        importlib.import_module(f"sd_scripts.schema.{path.stem}")
from sd_scripts.schema.fields import fields
fields("train_network")
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(name for name in new if name not in sys.stdlib_module_names and name != "sd_scripts"))
print(len(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign, count = done.stdout.splitlines()
    assert foreign == "[]"
    # about 80 of ours; a number of modules stands for the time, which a busy machine cannot measure
    assert int(count) < 160
