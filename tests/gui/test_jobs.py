"""Jobs with real processes: start, follow, stop, kill, resume, queue, and the death of the page."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from gui_bench import Bench

from kohya_gui import job_process
from kohya_gui.jobs import JobStore
from kohya_gui.supervisor import read_json
from sd_scripts.schema.errors import UserError


def test_a_job_runs_to_its_checked_end(bench: Bench) -> None:
    job = bench.add("fast", max_train_steps=30)
    assert bench.store.get(job.id).state == "waiting"
    assert bench.store.tick() == [job.id]
    bench.wait(job.id, "done")
    view = bench.store.get(job.id)
    assert (view.step, view.of, view.fraction) == (30, 30, 1.0)
    assert view.loss == pytest.approx(1 / 30)
    assert [(made.final, made.checked) for made in view.files] == [(True, True)]
    assert "step 30" in bench.store.log(job.id)
    assert bench.store.log(job.id, search="STEP 7") == "step 7"
    exit_ = read_json(job.folder / "exit.json")
    assert exit_ is not None and exit_["code"] == 0


def test_done_needs_the_final_file_to_be_read_again(bench: Bench) -> None:
    job = bench.add("unchecked", max_train_steps=3)
    bench.store.tick()
    bench.wait(job.id, "done", "failed")
    view = bench.store.get(job.id)
    assert view.state == "failed"
    assert "could not be read again" in view.error


def test_stop_keeps_a_state_and_resume_goes_on_from_it(bench: Bench) -> None:
    job = bench.add("slow")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).step > 3)
    bench.store.request(job.id, "save")
    bench.until(lambda: bench.store.get(job.id).files)
    bench.store.request(job.id, "stop")
    bench.wait(job.id, "stopped")
    stopped = bench.store.get(job.id)
    assert stopped.resume_step == stopped.step > 3
    again = bench.with_fake(bench.store.resume(job.id), "fast")
    assert bench.store.values(again.id)["resume"] == stopped.resume_from
    assert bench.store.get(again.id).initial_step == stopped.step
    bench.store.tick()
    bench.wait(again.id, "done")
    assert bench.store.curves(again.id).loss[0][0] == stopped.step + 1


def test_kill_ends_even_a_process_that_ignores_the_polite_request(bench: Bench) -> None:
    job = bench.add("stubborn")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).step > 1)
    noted = read_json(job.folder / "supervisor.json")
    assert noted is not None
    bench.store.kill(job.id, grace=0.3)
    assert bench.store.get(job.id).asked == "kill"
    bench.wait(job.id, "stopped")
    bench.until(lambda: not psutil.pid_exists(noted["child"]))


@pytest.mark.parametrize(
    ("behaviour", "sentence", "key"),
    [
        ("crash", "the picture is too blue", None),
        ("refuse", "network_dim is 0.", "network_dim"),
        ("oom", "killed by the system", "train_batch_size"),
    ],
)
def test_a_failed_job_says_why(bench: Bench, behaviour: str, sentence: str, key: str | None) -> None:
    job = bench.add(behaviour)
    bench.store.tick()
    bench.wait(job.id, "failed")
    view = bench.store.get(job.id)
    assert sentence in view.error
    assert view.error_key == key


def test_a_program_that_does_not_exist_is_a_failed_job(bench: Bench) -> None:
    job = bench.add("fast")
    spec = json.loads((job.folder / "spec.json").read_text())
    spec["argv"] = [str(bench.folder / "no such python")]
    (job.folder / "spec.json").write_text(json.dumps(spec))
    bench.store.tick()
    bench.wait(job.id, "failed")
    assert "could not be started" in bench.store.get(job.id).error


def test_one_job_per_set_of_gpus_in_order(bench: Bench) -> None:
    first = bench.add("slow", "a", gpu_ids="0")
    second = bench.add("slow", "b", gpu_ids="0")
    third = bench.add("slow", "c", gpu_ids="1")
    bench.store.move(second.id, "up")
    assert [view.name for view in bench.store.list()] == ["b", "a", "c"]
    assert bench.store.tick() == [second.id, third.id]
    assert bench.store.tick() == []
    assert bench.store.get(first.id).position == 1
    with pytest.raises(UserError, match="same GPU"):
        bench.store.start(first.id)
    bench.store.kill(second.id, grace=0.2)
    bench.wait(second.id, "stopped")
    assert bench.store.tick() == [first.id]


def test_a_held_queue_starts_nothing(bench: Bench) -> None:
    job = bench.add("fast", max_train_steps=2)
    bench.store.hold(True)
    assert bench.store.tick() == []
    bench.store.hold(False)
    assert bench.store.tick() == [job.id]
    bench.wait(job.id, "done")


def test_two_stores_on_one_folder_start_a_job_once(bench: Bench) -> None:
    other = JobStore(bench.store.root)
    jobs = [bench.add("fast", str(i), max_train_steps=2) for i in range(4)]
    started: list[str] = []
    end = time.monotonic() + 30
    while len(started) < 4 and time.monotonic() < end:
        started += bench.store.tick() + other.tick()
        time.sleep(0.02)
    assert sorted(started) == sorted(job.id for job in jobs)
    for job in jobs:
        bench.wait(job.id, "done")
    assert {view.state for view in other.list()} == {"done"}


def test_the_training_survives_kill_9_of_the_page(bench: Bench) -> None:
    job = bench.add("slow", max_train_steps=60)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom kohya_gui.jobs import JobStore\n"
        f"print(JobStore(Path({str(bench.store.root)!r})).tick(), flush=True)\ntime.sleep(60)\n"
    )
    page = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert page.stdout is not None
    assert job.id in page.stdout.readline()
    bench.until(lambda: bench.store.get(job.id).step > 1)
    os.killpg(page.pid, signal.SIGKILL)
    page.wait()
    seen = bench.store.get(job.id).step
    assert bench.wait(job.id, "done") == "done"
    assert bench.store.get(job.id).step == 60 > seen


def test_a_lost_job_is_interrupted_and_offers_to_resume(bench: Bench) -> None:
    job = bench.add("slow")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).step > 1)
    bench.store.request(job.id, "save")
    bench.until(lambda: bench.store.get(job.id).files)
    noted = read_json(job.folder / "supervisor.json")
    assert noted is not None
    # what a power cut does: supervisor and trainer gone, no exit code written
    os.kill(noted["pid"], signal.SIGKILL)
    os.killpg(noted["child"], signal.SIGKILL)
    assert bench.wait(job.id, "interrupted") == "interrupted"
    view = bench.store.get(job.id)
    assert view.resume_from and "Resume" in view.hint
    assert bench.store.values(bench.store.resume(job.id).id)["resume"] == view.resume_from


def test_a_trainer_that_lost_its_supervisor_is_still_seen_and_can_be_killed(bench: Bench) -> None:
    job = bench.add("slow")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).step > 1)
    noted = read_json(job.folder / "supervisor.json")
    assert noted is not None
    os.kill(noted["pid"], signal.SIGKILL)
    bench.until(lambda: not job_process.same_process(noted["pid"], noted["started"], job.folder.name))
    assert bench.store.get(job.id).state == "training"
    bench.store.kill(job.id, grace=2)
    bench.wait(job.id, "interrupted")


def test_another_process_under_the_same_number_is_not_the_job(bench: Bench) -> None:
    mine = psutil.Process()
    assert job_process.same_process(mine.pid, mine.create_time(), "no such job") is not None
    assert job_process.same_process(mine.pid, mine.create_time() - 1000, "no such job") is None


def test_a_torn_last_line_of_events_waits(bench: Bench) -> None:
    job = bench.add("fast")
    events = job.folder / "events.jsonl"
    line = json.dumps({"v": 1, "t": 1.0, "kind": "step", "step": 5, "of": 9, "loss": 0.5})
    events.write_text(line + "\n" + line.replace("5", "6")[:20])
    found, offset = bench.store.events(job.id)
    assert [event["step"] for event in found] == [5]
    events.write_text(line + "\n" + line.replace('"step": 5', '"step": 6') + "\n")
    found, offset = bench.store.events(job.id, offset)
    assert [event["step"] for event in found] == [6]


def test_remove_takes_the_folder_and_nothing_else(bench: Bench) -> None:
    job = bench.add("fast", max_train_steps=2)
    bench.store.tick()
    bench.wait(job.id, "done")
    written = Path(bench.store.get(job.id).files[0].path)
    bench.store.remove(job.id)
    assert written.exists() and not job.folder.exists()
    assert bench.store.list() == []
    with pytest.raises(UserError, match="no such job"):
        bench.store.get(job.id)


@pytest.mark.parametrize("job_id", ["../../etc", "", "0", "zzzzzzzz", "00000000/../x", "0000000\0"])
def test_hostile_ids_find_no_job(bench: Bench, job_id: str) -> None:
    bench.add("fast")
    for ask in (bench.store.get, bench.store.remove, bench.store.log, bench.store.values):
        with pytest.raises(UserError):
            ask(job_id)


def test_secrets_reach_the_trainer_by_environment_and_stand_in_no_file_of_the_job(bench: Bench) -> None:
    secret = "k3y-" + "0" * 30
    values = {"log_with": "wandb", "wandb_api_key": secret, "additional_parameters": f"--huggingface_token {secret}"}
    job = bench.add("fast", **values, max_train_steps=2)
    for path in job.folder.rglob("*"):
        assert not path.is_file() or secret not in path.read_text()
    store = bench.store.root / ".secrets" / f"{job.id}.json"
    assert stat_mode(store) == 0o600
    spec = json.loads((job.folder / "spec.json").read_text())
    # what the trainer prints of them is starred out, also where half of one was there already
    show = (
        "import os, time; key = os.environ['WANDB_API_KEY']; os.write(1, key[:9].encode()); time.sleep(0.5);"
        "os.write(1, key[9:].encode()); print('', os.environ['HF_TOKEN'])"
    )
    spec["argv"] = [sys.executable, "-c", show]
    (job.folder / "spec.json").write_text(json.dumps(spec))
    bench.store._specs.clear()
    bench.store.tick()
    bench.wait(job.id, "failed", "done")
    stars = "*" * len(secret)
    assert (job.folder / "console.log").read_text().split() == [stars, stars]
    again = bench.store.run_again(job.id)
    assert bench.store.spec(again.id)["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]


def stat_mode(path: Path) -> int:
    """Permission bits of a file."""
    return path.stat().st_mode & 0o777
