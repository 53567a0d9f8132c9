"""The gate before every address of the page: what is not listed here does not exist, and what is not public needs the
login.

Gradio brings some seventy addresses (files of the disk, uploads, a proxy, recordings, an editor of its own source) of
which this page uses a dozen. A new version may bring more; they stay shut until they are listed.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from kohya_gui.exposure import Receive, Scope, Send

MOST_JSON = 64_000_000
MOST_LOGIN = 10_000
# wrong passwords of one address that cost nothing; each further one doubles the wait
FREE_TRIES, LONGEST_WAIT, MOST_ADDRESSES = 5, 300.0, 1000
# how Gradio marks a file of its own in what a browser sends; no field of this page takes one
_FILE_MARK = b"gradio.FileData"


@dataclass(frozen=True)
class Door:
    """An address that is open: the methods it takes, whether a login is needed, and whether its body is JSON."""

    pattern: re.Pattern[str]
    methods: frozenset[str]
    public: bool = False
    json: bool = False


def _door(path: str, *methods: str, public: bool = False, json: bool = False) -> Door:
    """`*` in the path stands for one or more characters."""
    pattern = re.escape(path).replace(r"\*", ".+")
    return Door(re.compile(rf"{pattern}/?"), frozenset(methods or ("GET", "HEAD")), public, json)


_PUBLIC = (
    "/", "/assets/*", "/static/*", "/svelte/*", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css",
    "/gradio_api/theme.css", "/gradio_api/startup-events",
)  # fmt: skip
DOORS = (
    *(_door(path, public=True) for path in _PUBLIC),
    _door("/login", "POST", public=True),
    _door("/logout"),
    _door("/config"),
    _door("/gradio_api/heartbeat/*"),
    _door("/gradio_api/queue/data"),
    _door("/gradio_api/queue/join", "POST", json=True),
    _door("/gradio_api/component_server", "POST", json=True),
    _door("/gradio_api/cancel", "POST", json=True),
    _door("/gradio_api/reset", "POST", json=True),
    # ours, see `served`
    _door("/kohya/upload", "PUT"),
    _door("/kohya/*", "GET", "HEAD", "POST"),
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def find_door(method: str, path: str) -> Door | None:
    """The door for a request; None if there is none."""
    if "/../" in f"{path}/" or "\\" in path:
        return None
    return next((door for door in DOORS if method in door.methods and door.pattern.fullmatch(path)), None)


def signed_in(app: Any, cookies: Mapping[str, str]) -> bool:
    """Whether these cookies carry what Gradio hands out after a login to this page, or none is needed."""
    if app.auth is None and app.auth_dependency is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    token = next((cookies[name] for name in names if name in cookies), None)
    return token is not None and app.tokens.get(token) is not None


class Tries:
    """Counts wrong passwords by address, and says how long one has to wait."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, address: str, now: float | None = None) -> float:
        """Seconds until the next try of this address is looked at; 0 for at once."""
        count, since = self._wrong.get(address, (0, 0.0))
        if count < FREE_TRIES:
            return 0.0
        pause = min(2.0 ** (count - FREE_TRIES + 1), LONGEST_WAIT)
        return max(0.0, since + pause - (time.monotonic() if now is None else now))

    def wrong(self, address: str, now: float | None = None) -> None:
        """Note a wrong password."""
        count = self._wrong.pop(address, (0, 0.0))[0]
        self._wrong[address] = (count + 1, time.monotonic() if now is None else now)
        if len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)

    def right(self, address: str) -> None:
        """Forget this address's wrong ones."""
        self._wrong.pop(address, None)


class _TooMuch(Exception):
    """A body is longer than it may be, or holds what it may not."""


class Gate:
    """ASGI middleware: doors, login, tries, bodies, headers. Stands behind `SameSite`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.tries = Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # the page speaks no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = _plain_path(scope)
        door = find_door(scope["method"], path)
        if door is None:
            await _answer(send, 404, "There is nothing here.")
        elif not door.public and not signed_in(scope["app"], _cookies(headers)):
            await _answer(send, 401, "Log in first.")
        elif door.json and not headers.get("content-type", "").startswith("application/json"):
            await _answer(send, 415, "Only JSON is taken here.")
        elif path.rstrip("/") == "/login":
            await self._login(scope, receive, send)
        else:
            await self._pass(scope, receive, send, MOST_JSON if door.json else None)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = str((scope.get("client") or ("", 0))[0])
        wait = self.tries.wait(address)
        if wait > 0:
            await _answer(send, 429, f"Too many wrong passwords. Try again in {wait:.0f} seconds.")
            return

        async def watch(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.tries.right(address) if message["status"] < 400 else self.tries.wrong(address)
            await send(message)

        await self._pass(scope, receive, watch, MOST_LOGIN)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, most: int | None) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_headers(message.get("headers") or [])
            await send(message)

        if most is None:
            await self.app(scope, receive, answer)
            return
        try:
            body = await _whole(receive, most)
        except _TooMuch as error:
            await _answer(send, 413, str(error))
            return
        first = True

        async def again() -> Any:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, again, answer)


async def _whole(receive: Receive, most: int) -> bytes:
    """The request's body.

    Raises:
        _TooMuch: if it is longer than `most` bytes, or names a file as Gradio's own components do.
    """
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        # a browser that left sends no more
        more = bool(message.get("more_body")) and message["type"] == "http.request"
        if len(body) > most:
            raise _TooMuch(f"The request has more than {most // 1_000_000 or 1} MB.")
    if _FILE_MARK in body:
        raise _TooMuch("No field of this page takes a file this way.")
    return bytes(body)


def _plain_path(scope: Scope) -> str:
    """The path below a reverse proxy's prefix."""
    path, prefix = str(scope["path"]), str(scope.get("root_path") or "").rstrip("/")
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _with_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """The headers with ours; a cookie goes to no request that another site makes, even over https."""
    kept = [(name, _lax(value) if name.lower() == b"set-cookie" else value) for name, value in headers]
    present = {name.lower() for name, _ in kept}
    return kept + [(name, value) for name, value in _HEADERS if name not in present]


def _lax(cookie: bytes) -> bytes:
    plain = re.sub(rb";\s*samesite=\w+", b"", cookie, flags=re.IGNORECASE)
    return plain + b"; SameSite=Lax"


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
