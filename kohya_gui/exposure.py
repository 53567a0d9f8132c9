"""Who can reach the page: loopback by default, a login as soon as anybody else could, and no request from foreign
sites."""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from kohya_gui.localization import Words
from sd_scripts.schema.errors import UserError

NAME = "kohya"
"""The login's name where only a password is given, or none."""

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Exposure:
    """How the page is open: the address it listens on, whether a tunnel is asked for, and the login, if any.

    `generated` says that the password was made here, so that it has to be printed.
    """

    listen: str
    share: bool
    auth: tuple[str, str] | None
    generated: bool

    @property
    def local(self) -> bool:
        """Only this machine can reach the page."""
        return not self.share and is_loopback(self.listen)

    def sentence(self, words: Words) -> str:
        """Who can reach the page."""
        if self.share:
            return words("Open to everybody who has the shared link and the password.")
        if self.local:
            if self.auth:
                return words("Only this machine can reach the page, with a password.")
            return words("Only this machine can reach the page.")
        if self.listen.strip("[]") in ("0.0.0.0", "::"):
            return words("Everybody who reaches this machine over the network and has the password can open the page.")
        return words("Everybody who reaches {address} and has the password can open the page.", address=self.listen)


def is_loopback(listen: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if listen.lower() in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(listen.strip("[]")).is_loopback
    except ValueError:
        return False


def decide(listen: str, share: bool, username: str, password: str) -> Exposure:
    """Settle the login.

    Args:
        listen: address to listen on.
        share: a public tunnel is asked for.
        username, password: as given; both, or none.
    Returns:
        the exposure; where strangers could come in and no login was given, with a name "kohya" and a password made
        here.
    Raises:
        UserError: if only one of name and password was given.
    """
    listen = listen.strip() or "127.0.0.1"
    if ":" in listen and not listen.startswith("["):
        # the web server takes addresses of IPv6 in brackets only
        listen = f"[{listen}]"
    if bool(username) != bool(password):
        missing = "--password" if username else "--username"
        raise UserError("A login needs a name and a password.", key="username", hint=f"Give {missing} too.")
    if username:
        return Exposure(listen, share, (username, password), generated=False)
    if share or not is_loopback(listen):
        return Exposure(listen, share, (NAME, secrets.token_urlsafe(12)), generated=True)
    return Exposure(listen, share, None, generated=False)


class SameSite:
    """Refuses requests that another site made a browser send.

    Without a login only names of this machine are accepted as the host (a foreign name that resolves to 127.0.0.1 is
    not). With a login the host may be any name, since a tunnel or a proxy brings its own. Either way nothing but a
    followed link may come from a page of another origin: not even a read, since Gradio tells browsers that every
    origin may see the answers of a page that is not on localhost.
    """

    def __init__(self, app: Any, *, local_only: bool) -> None:
        self.app = app
        self.local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.allows(scope.get("method", "CONNECT"), headers):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = b"This request came from another site and was refused."
        start = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def allows(self, method: str, headers: dict[str, str]) -> bool:
        """Whether a request with this method and these (lower-case) headers may pass."""
        host = headers.get("host", "")
        if not self.local_only:
            host = headers.get("x-forwarded-host", host).partition(",")[0]
        if self.local_only and _name(host) not in LOOPBACK and not is_loopback(_name(host)):
            return False
        origin = headers.get("origin")
        if origin is not None:
            return _same(origin, host, strict=self.local_only)
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return True
        # a link on another site may lead here; its scripts, pictures and frames may ask for nothing
        navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return navigates and method in _SAFE_METHODS


def _same(origin: str, host: str, *, strict: bool) -> bool:
    """Whether an Origin header names the host asked for; ports count, unless a proxy left the host's out."""
    scheme, _, address = origin.partition("://")
    if not address or not _name(host) or _name(address) != _name(host):
        return False
    usual = {"http": "80", "https": "443"}.get(scheme.lower(), "")
    here, there = _port(host), _port(address)
    if not here and not strict:
        return True
    return (here or usual) == (there or usual)


def _port(host: str) -> str:
    """The port written behind a host; "" for none."""
    tail = host.strip().rpartition("]")[2]
    return tail.rpartition(":")[2] if ":" in tail and (tail != host.strip() or tail.count(":") == 1) else ""


def _name(host: str) -> str:
    """The host without its port, lower case, IPv6 without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
