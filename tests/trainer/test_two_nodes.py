"""Two machines imitated on one: two launchers, a meeting point between them, and folders of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from effects import SMALL
from runs import SCRIPTS, Finished, arguments, events_of, launch_environment, train_here

pytestmark = pytest.mark.slow
THINGS = ("cat", "dog")
PATIENCE = 300  # seconds; the machines that run these tests are busy with others


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(rank: int, port: int, argv: list[str], home: Path, command: str) -> subprocess.Popen[bytes]:
    """The launcher of machine `rank` of two, with one process; it works in `home` and logs there."""
    home.mkdir(exist_ok=True)
    line = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank), "--same_network"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
        *(str(SCRIPTS / f"{command}.py"), *argv),
    ]
    with (home / "console.log").open("wb") as log:
        environment = {**launch_environment(), "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.Popen(line, stdout=log, stderr=log, env=environment, cwd=home, start_new_session=True)


def end(nodes: list[subprocess.Popen[bytes]]) -> None:
    for node in nodes:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def trainer_of(node: subprocess.Popen[bytes]) -> psutil.Process:
    """The training process that a launcher started."""
    found = [child for child in psutil.Process(node.pid).children(recursive=True) if "train_" in str(child.cmdline())]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def homes(tmp_path: Path, thumbs: Path) -> list[Path]:
    """A folder for each machine with a copy of the pictures: no common file system."""
    found = [tmp_path / "machine0", tmp_path / "machine1"]
    for home in found:
        shutil.copytree(thumbs, home / "pictures")
    return found


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train_network", {**SMALL, "save_state": True, "max_train_steps": 3, "sample_every_n_steps": 3}),
        (
            "sdxl_train_network",
            {"bucket_reso_steps": 32, "network_train_unet_only": True, "cache_text_encoder_outputs_to_disk": True},
        ),
    ],
)
def test_two_machines_without_a_common_disk_lose_as_one(
    command: str, options: dict[str, Any], homes: list[Path], tiny_sd1: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    model = tiny_sdxl if command.startswith("sdxl") else tiny_sd1
    options = {"max_train_steps": 2, **options, "cache_latents_to_disk": True}
    if "sample_every_n_steps" in options:
        options["sample_prompts"] = tmp_path / "prompts.txt"
        options["sample_prompts"].write_text("".join(f"a {thing} --w 64 --h 64 --s 2 --d 1\n" for thing in THINGS))
    port, nodes = free_port(), []
    try:
        for rank, home in enumerate(homes):
            argv = arguments(model, home / "pictures", home / "out", command, **options)
            nodes.append(start_node(rank, port, argv, home, command))
        codes = [node.wait(timeout=PATIENCE) for node in nodes]
    finally:
        end(nodes)
    consoles = [(home / "console.log").read_text() for home in homes]
    assert codes == [0, 0], consoles[0][-3000:] + consoles[1][-3000:]
    together = Finished(0, homes[0] / "out", events_of(homes[0] / "out"))
    pictures = shutil.copytree(homes[0] / "pictures", tmp_path / "alone")
    for cached in pictures.rglob("*.npz"):
        cached.unlink()
    alone = train_here(model, pictures, tmp_path / "single", command, **options, gradient_accumulation_steps=2)
    assert len(alone.losses) == options["max_train_steps"]
    assert together.losses == pytest.approx(alone.losses, rel=2e-5)
    assert together.of("start")[0]["processes"] == 2
    streams = {"random_states_1.pkl"} if options.get("save_state") else set()
    assert names_in(homes[0] / "out") == names_in(alone.out) | streams
    made = {event["process"]: Path(event["path"]) for event in together.of("sample")}
    if "sample_prompts" in options:
        assert set(made) == {0, 1} and all(path.is_relative_to(homes[0]) and path.is_file() for path in made.values())
    assert names_in(homes[1] / "out") == set(), "the second machine writes no results"
    caches = [{path.name for path in (home / "pictures").rglob("*.npz")} for home in homes]
    assert caches[0] == caches[1] == {path.name for path in pictures.rglob("*.npz")} != set()


def names_in(folder: Path) -> set[str]:
    """Names of all files and folders, but for pictures, which are named by the time."""
    return {path.name for path in folder.rglob("*") if path.suffix != ".png"}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_machine_ends_the_other_with_a_sentence(victim: int, homes: list[Path], tiny_sd1: Path) -> None:
    options = {**SMALL, "max_train_steps": 100000, "save_every_n_steps": 100000}
    port, nodes = free_port(), []
    try:
        for rank, home in enumerate(homes):
            argv = arguments(tiny_sd1, home / "pictures", home / "out", **options)
            nodes.append(start_node(rank, port, argv, home, "train_network"))
        deadline = time.monotonic() + PATIENCE
        out = homes[0] / "out"
        while not (out.exists() and any(event["kind"] == "step" for event in events_of(out))):
            assert time.monotonic() < deadline and all(node.poll() is None for node in nodes)
            time.sleep(0.2)
        survivor = nodes[1 - victim]
        trained = trainer_of(nodes[victim])
        nodes[victim].send_signal(signal.SIGKILL)
        trained.send_signal(signal.SIGKILL)
        code = survivor.wait(timeout=120)
    finally:
        end(nodes)
    assert code != 0
    console = (homes[1 - victim] / "console.log").read_text()
    assert "Another process of this run ended early" in console or "The run was ended from outside." in console
    if victim == 1:
        assert events_of(out)[-1]["status"] == "failed"
