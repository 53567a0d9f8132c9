"""Every address of the running page, Gradio's own included: without the login none is open, and none gives a file of
the machine."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest

from kohya_gui import app, gate, localization, settings
from kohya_gui.exposure import Exposure
from kohya_gui.jobs import JobStore
from kohya_gui.lean import LeanBlocks
from kohya_gui.paths import Roots
from kohya_gui.sent import PageScript
from kohya_gui.services import Services

LOGIN = {"username": "ann", "password": "right"}
SECRET = "the-secret-of-this-machine"
# what somebody without the login may fetch: the empty page with the login form, and what it is drawn with
OPEN = {
    "/", "/login", "/login/", "/assets/{path}", "/static/{path}", "/svelte/{path}", "/favicon.ico",
    "/manifest.json", "/robots.txt", "/theme.css", "/gradio_api/theme.css", "/gradio_api/startup-events",
}  # fmt: skip
# what somebody with the login gets besides
OURS = {
    "/logout", "/config", "/config/", "/gradio_api/heartbeat/{session_hash}", "/gradio_api/queue/data",
    "/gradio_api/queue/join", "/gradio_api/component_server", "/gradio_api/component_server/", "/gradio_api/cancel",
    "/gradio_api/reset", "/gradio_api/reset/", "/kohya/file", "/kohya/thumb", "/kohya/log", "/kohya/upload",
    "/kohya/page.js",
    "/kohya/tensorboard/{path}",
}  # fmt: skip
# streams that never end: asked for without the login only
ENDLESS = ("/gradio_api/heartbeat", "/gradio_api/queue/data")


class Running:
    """A page with a login, an outsider's client and one that has logged in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "open").mkdir()
        (folder / "secret.txt").write_text(SECRET)
        jobs = JobStore(folder / "open/jobs")
        services = Services(
            roots=Roots([folder / "open"]),
            jobs=jobs,
            words=localization.load(None),
            home=folder / "open",
            remembered=settings.Remembered(jobs.root / ".page.json"),
        )
        with LeanBlocks(analytics_enabled=False) as blocks:
            box = gr.Textbox(value=f"{folder} pretrained_model_name_or_path")
            box.change(str.upper, box, box, api_visibility="private")
        script = PageScript(lambda language: f"const home = '{folder}'", services.words)
        self.page = app.App(blocks, services, script)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        login = (LOGIN["username"], LOGIN["password"])
        self.url = self.page.launch(Exposure("127.0.0.1", False, login, False), port=port).rstrip("/")
        self.outside = httpx.Client(base_url=self.url, timeout=20)
        self.inside = httpx.Client(base_url=self.url, timeout=20)
        assert self.inside.post("/login", data=LOGIN).status_code == 200
        # over plain http a client keeps the cookie that is not for https alone
        assert self.inside.cookies

    def routes(self) -> list[tuple[str, str]]:
        """(method, path) of every address that the application has."""
        server = self.page.blocks.server_app
        found = [(method, path) for path, methods in server.openapi()["paths"].items() for method in methods]
        for route in server.routes:
            path = getattr(route, "path", "")
            found += [(method, path) for method in getattr(route, "methods", None) or ("GET",) if path]
        return list(dict.fromkeys((method.upper(), path.replace(":path", "")) for method, path in found))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(tmp_path_factory.mktemp("gate"))
    yield made
    made.page.close()


def filled(path: str) -> str:
    """An address of the route's form."""
    return re.sub(r"\{[^}]*\}", "x", path)


def test_all_addresses_are_known_here(running: Running) -> None:
    known = dict.fromkeys(path for _, path in running.routes())
    assert len(known) > 60, "the list of routes was not found"
    open_doors = {path for method, path in running.routes() if gate.find_door(method, filled(path))}
    public = {
        path
        for method, path in running.routes()
        if (door := gate.find_door(method, filled(path))) is not None and door.public
    }
    assert public <= OPEN, f"open to everybody: {public - OPEN}"
    assert open_doors <= OPEN | OURS, f"open, but nobody looked at it: {open_doors - OPEN - OURS}"


def test_without_the_login_nothing_is_open(running: Running) -> None:
    for method, path in running.routes():
        if path in OPEN:
            continue
        answer = running.outside.request(method, filled(path))
        assert answer.status_code in (401, 404), f"{method} {path}: {answer.status_code}"


def test_the_login_page_tells_nothing_about_the_machine(running: Running) -> None:
    text = running.outside.get("/").text
    assert "auth_required" in text
    assert str(running.folder) not in text and str(Path.home()) not in text and "pretrained_model" not in text


def test_with_the_login_gradio_has_no_way_to_a_file(running: Running) -> None:
    wanted = running.folder / "secret.txt"
    inside = running.folder / "open/a.txt"
    inside.write_text(SECRET)
    for path in (wanted, inside, Path("/etc/passwd"), Path(app.__file__)):
        for address in (
            f"/gradio_api/file={path}",
            f"/gradio_api/file/{path}",
            f"/file={path}",
            f"/gradio_api/proxy=file://{path}",
            f"/gradio_api/proxy={running.url}/kohya/file?path={path}",
            f"/gradio_api/file=http://127.0.0.1/{path}",
            f"/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{path}",
            f"/assets/../../../../../../../../../..{path}",
            f"/svelte/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/{path}",
            f"/static/{path}",
            f"/assets//{path}",
        ):
            answer = running.inside.get(address)
            assert answer.status_code in (400, 403, 404), f"{address}: {answer.status_code}"
            assert SECRET not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=x"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/run-history/records"),
        ("POST", "/gradio_api/run/x"),
        ("POST", "/gradio_api/api/x"),
        ("POST", "/gradio_api/call/x"),
        ("POST", "/gradio_api/call/v2/x"),
        ("GET", "/gradio_api/call/x/y"),
        ("POST", "/gradio_api/stream/x"),
        ("GET", "/gradio_api/stream/a/b/1/playlist-file"),
        ("GET", "/gradio_api/custom_component/x/client/a/b"),
        ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/vibe-code"),
        ("POST", "/gradio_api/vibe-code"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/gradio_api/token"),
        ("GET", "/pwa_icon/99999"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/gradio_api/mcp/sse"),
        ("TRACE", "/"),
        ("DELETE", "/kohya/file"),
    ],
)
def test_what_the_page_does_not_use_is_not_there(running: Running, method: str, path: str) -> None:
    assert running.inside.request(method, path).status_code == 404


@pytest.mark.parametrize("way", ["/etc/passwd", "/proc/self/environ", "{}/secret.txt", "http://127.0.0.1:1/x"])
def test_no_event_takes_a_file_of_gradio(running: Running, way: str) -> None:
    file = {"path": way.format(running.folder), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": 0, "session_hash": "abc"}
    answer = running.inside.post("/gradio_api/queue/join", json=body)
    assert answer.status_code == 413 and "no field" in answer.text.lower()


def test_a_form_of_another_site_cannot_post(running: Running) -> None:
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "abc"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = running.inside.post("/gradio_api/queue/join", content=body, headers={"content-type": kind})
        assert answer.status_code == 415
        answer = running.inside.post("/gradio_api/component_server", content=body, headers={"content-type": kind})
        assert answer.status_code == 415


@pytest.mark.parametrize("path", ["/", "/kohya/log?job=0", "/config", "/kohya/file?path=x"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", ""])
def test_other_sites_may_not_read(running: Running, path: str, origin: str) -> None:
    answer = running.inside.get(path, headers={"origin": origin})
    assert answer.status_code == 403
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert running.inside.get(path, headers=embedded).status_code == 403


def test_a_link_from_elsewhere_still_opens_the_page(running: Running) -> None:
    way = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert running.inside.get("/", headers=way).status_code == 200
    assert running.inside.get("/", headers={**way, "sec-fetch-dest": "iframe"}).status_code == 403


def test_cookies_and_headers(running: Running) -> None:
    answer = httpx.post(f"{running.url}/login", data=LOGIN)
    cookies = answer.headers.get_list("set-cookie")
    assert cookies and all("samesite=lax" in cookie.lower() and "httponly" in cookie.lower() for cookie in cookies)
    assert not any("samesite=none" in cookie.lower() for cookie in cookies)
    headers = running.outside.get("/").headers
    assert headers["x-frame-options"] == "SAMEORIGIN" and headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_body_has_its_limit(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_JSON", 1000)
    answer = running.inside.post("/gradio_api/queue/join", json={"data": ["x" * 2000]})
    assert answer.status_code == 413


def test_the_queue_has_its_limit(running: Running) -> None:
    assert running.page.blocks._queue.max_size == app.MOST_EVENTS


def test_wrong_passwords_slow_the_next_try_down() -> None:
    tries = gate.Tries()
    for _ in range(gate.FREE_TRIES):
        assert tries.wait("a", 0.0) == 0
        tries.wrong("a", 0.0)
    assert tries.wait("a", 0.0) == 2 and tries.wait("b", 0.0) == 0
    tries.wrong("a", 10.0)
    assert tries.wait("a", 10.0) == 4 and tries.wait("a", 15.0) == 0
    for _ in range(40):
        tries.wrong("a", 20.0)
    assert tries.wait("a", 20.0) == gate.LONGEST_WAIT
    tries.right("a")
    assert tries.wait("a", 20.0) == 0
    for number in range(gate.MOST_ADDRESSES + 5):
        tries.wrong(str(number), 0.0)
    assert len(tries._wrong) == gate.MOST_ADDRESSES


def test_the_running_page_stops_a_guesser(running: Running) -> None:
    wrong = {**LOGIN, "password": "guess"}
    seen = [running.outside.post("/login", data=wrong).status_code for _ in range(gate.FREE_TRIES + 2)]
    assert seen == [400] * gate.FREE_TRIES + [429] * 2
    assert running.outside.post("/login", data=LOGIN).status_code == 429
    assert running.inside.get("/kohya/log?job=0").status_code == 404, "who is in stays in"
