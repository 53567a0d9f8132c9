"""TensorBoard: a real one is started, asked through the page's own address, and ends with the page."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kohya_gui import served, tensorboard
from kohya_gui.jobs import JobStore
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs.tensorboard import TensorboardBar
from kohya_gui.tensorboard import TensorBoard
from sd_scripts.schema.errors import UserError


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    jobs = JobStore(tmp_path / "jobs")
    made = Services(Roots([tmp_path]), jobs, Words({}), tmp_path, Remembered(tmp_path / "page.json"))
    yield made
    made.tensorboard.stop()


def client(services: Services, login: bool = False) -> TestClient:
    app = Starlette(routes=served.routes(services.roots, services.jobs, services.tensorboard))
    app.auth_dependency, app.cookie_id, app.tokens = None, "x", {}  # type: ignore[attr-defined]
    app.auth = {"ann": "right"} if login else None  # type: ignore[attr-defined]
    return TestClient(app)


def write_logs(folder: Path) -> None:
    """A curve as a training writes it."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(folder)
    for step in range(3):
        writer.add_scalar("loss/current", 0.5 - step / 10, step)
    writer.close()


def test_start_fetch_stop(services: Services, tmp_path: Path) -> None:
    write_logs(tmp_path / "logs/run1")
    bar = TensorboardBar(services)
    said = list(bar._start(str(tmp_path / "logs")))
    assert "starting" in said[0] and 'href="kohya/tensorboard/"' in said[1], said
    board = services.tensorboard.running()
    assert board is not None and board.ready and "Open TensorBoard" in bar._look()
    page = client(services)
    answer = page.get("/kohya/tensorboard/")
    assert answer.status_code == 200 and "<title>TensorBoard" in answer.text
    assert "default-src" in answer.headers["content-security-policy"]
    end = time.monotonic() + 20
    while page.get("/kohya/tensorboard/data/runs").json() != ["run1"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    tags = page.get("/kohya/tensorboard/data/plugin/scalars/tags").json()
    assert tags["run1"]["loss/current"] is not None
    # nobody without the login, and no other page of this machine, finds it
    assert client(services, login=True).get("/kohya/tensorboard/").status_code == 401
    assert httpx.get(f"http://127.0.0.1:{board.port}/").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{board.port}/data/runs").status_code == 404
    # dots do not lead out of its prefix to another address of the port
    assert page.get("/kohya/tensorboard/..%2f..%2fdata/runs").json() == ["run1"]
    process = services.tensorboard._process
    assert process is not None
    inside = psutil.Process(process.pid)
    assert {item.laddr.ip for item in inside.net_connections() if item.status == "LISTEN"} == {"127.0.0.1"}
    assert board.address.rstrip("/").rpartition("/")[2] not in " ".join(inside.cmdline())
    assert "not running" in bar._stop()
    assert services.tensorboard.running() is None and page.get("/kohya/tensorboard/").status_code == 404
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(process.pid)


def test_it_ends_with_a_page_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from kohya_gui.paths import Roots; from kohya_gui.tensorboard import _launch, free_port;"
        "p, _ = _launch({'logdir': sys.argv[1], 'port': free_port(6006), 'prefix': '/x'});"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    page = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert page.stdout is not None
    board = psutil.Process(int(page.stdout.readline()))
    os.kill(page.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    page.wait()
    assert board.wait(timeout=20) is not False


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("", "No log folder"),
        ("/etc", "outside"),
        ("../x", "outside"),
        ("a\0b", "NUL"),
        ("//server/logs", "network"),
        ("gs://bucket/logs", "address"),
        ("s3://bucket", "address"),
        ("missing", "does not exist"),
    ],
)
def test_a_folder_it_may_not_or_cannot_show(services: Services, folder: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        services.tensorboard.start(folder)
    assert services.tensorboard.running() is None


def test_without_the_package_one_sentence(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        services.tensorboard.start(str(tmp_path))


def test_ports(services: Services) -> None:
    assert tensorboard.first_port({}) == 6006 and tensorboard.first_port({"TENSORBOARD_PORT": " 7007 "}) == 7007
    for text in ("0", "65536", "x", "-1", "6006;id", "\u0663"):
        with pytest.raises(UserError, match="TENSORBOARD_PORT"):
            tensorboard.first_port({"TENSORBOARD_PORT": text})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert tensorboard.free_port(port) > port


def test_what_does_not_start_is_told(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit('the disk is on fire')")
    monkeypatch.setattr(tensorboard, "_CHILD", broken)
    with pytest.raises(UserError, match="the disk is on fire"):
        services.tensorboard.start(str(tmp_path))
    assert services.tensorboard.running() is None


def test_the_newest_jobs_logs_are_shown_by_themselves(services: Services, tmp_path: Path) -> None:
    from kohya_gui import command

    bar = TensorboardBar(services)
    assert bar.newest_logs() == ""
    values = {"output_dir": str(tmp_path), "logging_dir": str(tmp_path / "logs"), "output_name": "a"}
    services.jobs.create(command.build("train_network", values), values, "a")
    assert bar.newest_logs() == str(tmp_path / "logs")
    assert isinstance(services.tensorboard, TensorBoard)
