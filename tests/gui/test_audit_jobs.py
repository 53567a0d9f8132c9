"""Jobs in bad luck: full disks, files taken away, states that went, runs that would write over each other."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from gui_bench import Bench

from kohya_gui import cli, job_again, job_view
from kohya_gui.jobs import JobStore
from sd_scripts.schema.errors import UserError


def ended(bench: Bench, code: int, events: list[dict[str, Any]], **values: Any) -> Path:
    """A job that ran and ended, with these events."""
    job = bench.add("fast", **values)
    lines = "".join(json.dumps({"v": 1, "t": 1.0, **event}) + "\n" for event in events)
    (job.folder / "events.jsonl").write_text(lines)
    (job.folder / "launched.json").write_text('{"time": 1.0, "pid": 1}')
    (job.folder / "exit.json").write_text(json.dumps({"code": code, "ended": 2.0}))
    return job.folder


def state(folder: Path, step: int) -> dict[str, Any]:
    """The event of a written state, which is really there."""
    path = folder / f"cat-step{step:08d}-state"
    path.mkdir(parents=True)
    return {"kind": "save", "path": str(path), "step": step, "state": True, "checked": True, "bytes": 1}


def test_run_again_writes_beside_the_first_run_and_not_over_it(bench: Bench) -> None:
    out = bench.folder / "out"
    out.mkdir()
    (out / "cat.safetensors").write_text("first")
    (out / "cat-2-step00000010.safetensors").write_text("second")
    done = ended(bench, 0, [], output_name="cat")
    third = bench.store.run_again(done.name[-8:])
    assert bench.store.values(third.id)["output_name"] == third.name == "cat-3"
    fourth = bench.store.run_again(done.name[-8:])
    assert bench.store.values(fourth.id)["output_name"] == "cat-4"


def test_a_name_under_which_nothing_lies_is_kept(tmp_path: Path) -> None:
    (tmp_path / "cat-2.safetensors").write_text("of another run")
    values = {"output_dir": str(tmp_path), "output_name": "cat"}
    assert job_again.beside(values, []) == values


def test_two_jobs_in_the_queue_never_write_the_same_files(bench: Bench) -> None:
    first = bench.add("fast", output_name="cat")
    with pytest.raises(UserError, match="same folder") as refused:
        bench.add("fast", output_name="cat")
    assert refused.value.key == "output_name"
    bench.store.remove(first.id)
    bench.add("fast", output_name="cat")


def test_resume_looks_for_the_newest_state_now_and_not_when_the_job_ended(bench: Bench) -> None:
    out = bench.folder / "states"
    folder = ended(bench, 1, [state(out, 10), state(out, 20)], output_name="cat")
    job_id = folder.name[-8:]
    assert bench.store.get(job_id).resume_step == 20
    shutil.rmtree(out / "cat-step00000020-state")
    again = bench.store.resume(job_id)
    assert bench.store.values(again.id)["resume"].endswith("cat-step00000010-state")
    assert bench.store.get(again.id).initial_step == 10


def test_a_resumed_job_that_failed_early_goes_on_from_the_same_state(bench: Bench) -> None:
    out = bench.folder / "states"
    folder = ended(bench, 1, [state(out, 30)], output_name="cat")
    second = bench.store.resume(folder.name[-8:])
    (second.folder / "launched.json").write_text('{"time": 1.0, "pid": 1}')
    (second.folder / "exit.json").write_text('{"code": 1, "ended": 2.0}')
    third = bench.store.resume(second.id)
    assert bench.store.values(third.id)["resume"] == bench.store.values(second.id)["resume"]
    assert bench.store.get(third.id).initial_step == 30


def test_old_jobs_are_not_read_again_at_the_next_start(bench: Bench) -> None:
    events = [{"kind": "step", "step": 5, "of": 5, "loss": 0.5}, {"kind": "error", "message": "It broke."}]
    folder = ended(bench, 1, [*events, state(bench.folder / "s", 5)])
    seen = bench.store.list()
    with (folder / "events.jsonl").open("r+b") as file:
        stamp = os.stat(folder / "events.jsonl").st_mtime_ns
        file.write(b"x" * 20)
    os.utime(folder / "events.jsonl", ns=(stamp, stamp))
    assert JobStore(bench.store.root).list() == seen
    # but a folder that has changed is looked at anew
    (folder / "events.jsonl").write_text("")
    fresh = JobStore(bench.store.root).list()[0]
    assert fresh.step == 0 and fresh.error != "It broke."


def test_a_summary_of_another_version_is_no_summary(bench: Bench) -> None:
    folder = ended(bench, 1, [{"kind": "error", "message": "It broke."}])
    bench.store.list()
    summary = json.loads((folder / "summary.json").read_text())
    del summary["view"]["gpu_set"]
    summary["view"]["news"] = 1
    (folder / "summary.json").write_text(json.dumps(summary))
    assert JobStore(bench.store.root).list()[0].error == "It broke."


def test_a_full_disk_is_told_in_a_sentence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        bench.add("fast")


def test_a_job_that_lost_the_note_of_its_start_is_not_started_again(bench: Bench) -> None:
    job = bench.add("slow")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).step > 0)
    pid = json.loads((job.folder / "supervisor.json").read_text())["child"]
    for file in ("launched.json", "spec.json"):
        (job.folder / file).unlink()
    assert bench.store.tick() == []
    os.killpg(pid, 9)


def test_the_reason_of_an_end_between_two_looks_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.add("fast")
    (job.folder / "launched.json").write_text('{"time": 1.0, "pid": 1}')

    def dies(folder: Path) -> bool:
        (folder / "exit.json").write_text('{"code": -9, "ended": 5.0}')
        return False

    monkeypatch.setattr(job_view.job_process, "alive", dies)
    view = bench.store.get(job.id)
    assert view.state == "failed" and "want of memory" in view.error and view.ended == 5.0


def test_the_terminal_finds_the_jobs_of_the_page(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    job = bench.add("fast")
    # behind the subcommand, as kohya_gui.py passes it on, and as the page is given it: the folder above
    for folder in (bench.store.root, bench.store.root.parent):
        assert cli.main(["jobs", "list", "--jobs_dir", str(folder)]) == 0
        assert job.id in capsys.readouterr().out


@pytest.mark.parametrize("value", [os.fsdecode(b"caf\xe9") if os.name != "nt" else "\ud800", "\ud800"])
def test_a_folder_whose_name_is_no_unicode_is_refused_by_its_field(bench: Bench, value: str) -> None:
    with pytest.raises(UserError, match="no Unicode") as refused:
        bench.add("fast", output_dir=value)
    assert refused.value.key == "output_dir"
