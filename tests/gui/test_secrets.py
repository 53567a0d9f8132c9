"""Tokens and the page's password: each job has its own, and none stands where others could read it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from gui_bench import Bench

from kohya_gui import command, configs, password
from kohya_gui.secret_store import SecretStore
from kohya_gui.supervisor import read_json, write_json
from sd_scripts.schema.errors import UserError

FIRST, SECOND = "wandb-key-of-the-first", "hf-token-of-the-second"
# a trainer that says whether it has a token, without saying it, and waits to be looked at
TRAINER = (
    "import os, pathlib, sys, time; out = pathlib.Path(sys.argv[1]);"
    "out.write_text(repr([len(os.environ.get(name, '')) for name in ('WANDB_API_KEY', 'HF_TOKEN')]));"
    "end = time.time() + 20\n"
    "while not (out.parent / 'go').exists() and time.time() < end: time.sleep(0.02)"
)


def run(bench: Bench, name: str, gpu: str, **secrets: str) -> tuple[str, Path]:
    """Start a job with these secrets; its id and the file it writes."""
    values = {"output_dir": str(bench.folder / "out"), "output_name": name, "gpu_ids": gpu, **secrets}
    job = bench.store.create(command.build("train_network", values), values, name)
    spec = read_json(job.folder / "spec.json")
    assert spec is not None
    out = bench.folder / f"{name}.txt"
    spec["argv"] = [sys.executable, "-c", TRAINER, str(out)]
    write_json(job.folder / "spec.json", spec)
    bench.store._specs.pop(job.id, None)
    bench.store.tick()
    return job.id, out


def test_each_job_has_its_own_and_nothing_else_holds_them(bench: Bench) -> None:
    first, out1 = run(bench, "one", "0", wandb_api_key=FIRST)
    second, out2 = run(
        bench, "two", "1", huggingface_token=SECOND, additional_parameters=f"--wandb_api_key {SECOND}x --seed 3"
    )
    third, out3 = run(bench, "three", "2")
    for out in (out1, out2, out3):
        bench.until(out.exists)
    said = [bench.until(out.read_text) for out in (out1, out2, out3)]
    assert said == [f"[{len(FIRST)}, 0]", f"[0, {len(SECOND)}]".replace("0,", f"{len(SECOND) + 1},"), "[0, 0]"]
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert FIRST not in line and SECOND not in line
    (bench.folder / "go").touch()
    for job in (first, second, third):
        bench.wait(job, "done", "failed")
    holders = [
        path
        for path in bench.folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in (FIRST, SECOND))
    ]
    assert sorted(path.name for path in holders) == sorted([f"{first}.json", f"{second}.json"])
    for path in holders:
        assert path.parent == bench.store.root / ".secrets"
        if os.name != "nt":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = bench.store.run_again(second)
    assert bench.store.secrets.environment(again.id, ["HF_TOKEN", "WANDB_API_KEY"]) == {
        "HF_TOKEN": SECOND,
        "WANDB_API_KEY": f"{SECOND}x",
    }
    bench.store.remove(again.id)
    bench.store.remove(first)
    assert sorted(path.name for path in (bench.store.root / ".secrets").iterdir()) == [f"{second}.json"]


def test_what_an_earlier_version_kept_for_all_still_serves(tmp_path: Path) -> None:
    (tmp_path / ".secrets.json").write_text(json.dumps({"HF_TOKEN": "old"}))
    store = SecretStore(tmp_path)
    assert store.environment("0123abcd", ["HF_TOKEN"]) == {"HF_TOKEN": "old"}
    store.keep("0123abcd", {"HF_TOKEN": "new"})
    assert store.values("0123abcd", ["HF_TOKEN"]) == {"huggingface_token": "new"}
    assert store.values("0123abce", ["HF_TOKEN"]) == {"huggingface_token": "old"}
    for job in ("../../x", "0123ABCD", "", "0123abcd\n"):
        with pytest.raises(ValueError):
            store.keep(job, {"HF_TOKEN": "x"})


def test_a_command_shows_and_writes_no_secret(tmp_path: Path) -> None:
    values = {
        "wandb_api_key": FIRST,
        "huggingface_token": SECOND,
        "log_with": "wandb",
        "logging_dir": str(tmp_path),
        "additional_parameters": f"--huggingface_token={SECOND}",
    }
    plan = command.build("train_network", values, job_dir=tmp_path)
    shown = [*plan.argv, plan.toml_text, plan.line(True), plan.line(False), *plan.notes, *plan.env.values()]
    shown += [*plan.files.values(), configs.save_text("lora", values)]
    assert not any(secret in text for text in shown for secret in (FIRST, SECOND))
    assert plan.secrets == {"WANDB_API_KEY": FIRST, "HF_TOKEN": SECOND}


@pytest.mark.parametrize("text", [f"--wandb_api_key {FIRST} {FIRST}", f"--wandb_api_key={FIRST} --bad {FIRST}"])
def test_an_error_about_further_flags_repeats_no_secret(text: str) -> None:
    with pytest.raises(UserError) as caught:
        command.build("train_network", {"additional_parameters": text})
    assert FIRST not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "kept", "found"),
    [
        (["--listen", "0.0.0.0", "--password", "x y", "--share"], ["--listen", "0.0.0.0", "--share"], "x y"),
        (["--password=a=b"], [], "a=b"),
        (["--pass", "x"], [], "x"),
        (["--password="], [], ""),
        (["--password", "a", "--password", "b"], [], "b"),
        (["--username", "ann"], ["--username", "ann"], None),
        (["--password"], ["--password"], None),
        (["--", "x"], ["--", "x"], None),
    ],
)
def test_the_password_is_found_however_it_is_written(words: list[str], kept: list[str], found: str | None) -> None:
    assert password.taken_out(words) == (kept, found)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the list of processes is read in /proc")
def test_the_password_leaves_the_process_list() -> None:
    code = (
        "import os, sys; from kohya_gui import password, start; words = sys.argv[1:];"
        "password.leave_the_process_list(words); line = open('/proc/self/cmdline').read();"
        "print([words, 'hu' 'sh' in line, password.choose('ann', ''), 'KOHYA_GUI_PASSWORD' in os.environ])"
    )
    words = ["--username", "ann", "--password", "hush"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[['--username', 'ann'], False, 'hush', False]"


def test_where_the_password_comes_from() -> None:
    environment = {"KOHYA_GUI_PASSWORD": "stored"}
    assert password.choose("ann", "given", environment) == "given" and environment == {}
    assert password.choose("ann", "", {"KOHYA_GUI_PASSWORD": "stored"}) == "stored"
    assert password.choose("", "", {}) == ""
    # no person at the terminal: nothing is asked for
    assert password.choose("ann", "", {}) == ""
