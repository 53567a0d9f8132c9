"""Summing up events: incremental, thinned with their extremes, and the cause of a failure from a console."""

import json
from pathlib import Path

import pytest

from kohya_gui import failures
from kohya_gui.job_log import JobLog, Series, console_lines
from sd_scripts.events import EventWriter


def test_curves_keep_their_extremes_and_ends() -> None:
    series = Series()
    for step in range(100_000):
        series.add(step, 0.1)
    series.values[77_777], series.values[5] = 9.0, -3.0
    thinned = series.thinned(1000)
    assert len(thinned) <= 1000
    assert (77_777, 9.0) in thinned and (5, -3.0) in thinned
    assert thinned[0][0] == 0 and thinned[-1][0] == 99_999
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})


def test_smoothing_starts_at_the_first_value_and_follows() -> None:
    series = Series()
    for step, value in enumerate([4.0, 2.0, 2.0]):
        series.add(step, value)
    # worked out by hand for weight 0.5: 4; (0.5*2 + 0.5*2) / 0.75; ...
    assert list(series.smoothed(0.5)) == pytest.approx([4.0, 8 / 3, 16 / 7])
    assert list(series.smoothed(0.0)) == [4.0, 2.0, 2.0]


def test_events_are_read_once_and_a_nan_leaves_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = JobLog(path)
    assert log.refresh().last == {}
    with EventWriter(path) as writer:
        writer.write("start", total_steps=3)
        writer.write("phase", name="cache latents", done=1, of=9)
        log.refresh()
        assert log.phase["of"] == 9
        offset = log.offset
        for step, loss in ((1, 0.5), (2, float("nan")), (3, 0.25)):
            writer.write("step", step=step, of=3, loss=loss, lr={"unet": 1e-4, "te": 5e-5}, memory=10)
        writer.write("validate", step=3, loss=0.4)
        writer.write("sample", path="a.png", step=3, epoch=1, index=0, prompt="x", seed=1)
    log.refresh()
    assert log.offset > offset
    curves = log.curves()
    assert curves.loss == [(1, 0.5), (3, 0.25)] and curves.validation == [(3, 0.4)]
    assert set(curves.lr) == {"unet", "te"} and len(curves.memory) == 3
    assert log.samples[0].seed == 1 and log.phase == {"name": "train"}


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"kind": "step", "step": step, "of": 9, "loss": 1.0}) for step in range(1, 9)]
    path.write_text("\n".join(lines) + "\n")
    log = JobLog(path).refresh()
    path.write_text(lines[0] + "\n")
    assert log.refresh().curves().loss == [(1, 1.0)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"kind": 5}',
        '{"kind": "step"}',
        '{"kind": "step", "lr": 3, "step": "x"}',
        '{"kind": "save", "path": null, "bytes": "many"}',
        '{"kind": "sample", "seed": "x"}',
    ],
)
def test_odd_events_never_break_the_page(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line + "\n" + json.dumps({"kind": "step", "step": 2, "of": 4, "loss": 0.5}) + "\n")
    log = JobLog(path).refresh()
    assert log.curves().loss[-1] == (2, 0.5)


def test_a_console_reads_as_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes("one\r\n\x1b[31mred\x1b[0m\n 10%|#\r 50%|##\r100%|###\nünï \xff".encode() + b"\xff\nlast\x07")
    assert console_lines(path) == ["one", "red", "100%|###", "ünï ÿ\ufffd", "last"]
    assert console_lines(path, 1) == ["last"] and console_lines(tmp_path / "none") == []


LAUNCHER = "subprocess.CalledProcessError: Command '['python', 'x.py']' "
EXIT_1 = LAUNCHER + "returned non-zero exit status 1."
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.parametrize(
    ("code", "console", "words", "key"),
    [
        (1, [MEMORY], "GPU ran out of memory", "gradient_checkpointing"),
        (-9, [], "killed by the system", "train_batch_size"),
        (137, [], "killed by the system", "train_batch_size"),
        (1, [LAUNCHER + "died with <Signals.SIGKILL: 9>."], "killed by the system", "train_batch_size"),
        (1, ["  exitcode  : -9 (pid: 123)"], "killed by the system", "train_batch_size"),
        (1, [LAUNCHER + "returned non-zero exit status 3."], "NaN", "learning_rate"),
        (3, [], "NaN", "learning_rate"),
        (2, [], "refused its options", None),
        (1, ["ModuleNotFoundError: No module named 'lycoris.kohya'", EXIT_1], "lycoris.kohya is not", None),
        (1, ["OSError: [Errno 28] No space left on device: '/x'"], "disk is full", "output_dir"),
        (1, ["RuntimeError: expected 4 channels", EXIT_1], "expected 4 channels", None),
        (-11, [], "SIGSEGV", None),
        (None, [], "without an exit code", None),
        (77, ["nothing useful"], "exit code 77", None),
    ],
)  # fmt: skip
def test_the_cause_from_a_console(code: int | None, console: list[str], words: str, key: str | None) -> None:
    found = failures.explain(code, {}, console)
    assert words in found.message and found.key == key and found.hint


def test_the_trainers_own_error_goes_first() -> None:
    found = failures.explain(1, {"message": "It is so.", "hint": "Do that.", "key": "seed"}, ["CUDA out of memory"])
    assert (found.message, found.hint, found.key) == ("It is so.", "Do that.", "seed")
