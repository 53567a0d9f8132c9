"""Which language the browser of the current request asks for: its cookie, known during the whole request."""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from gradio.context import LocalContext
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "kohya-language"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")

_asked: ContextVar[str] = ContextVar("kohya_language", default="")


def named(cookies: Mapping[str, str]) -> str:
    """The language these cookies name; "" for none."""
    name = cookies.get(COOKIE, "")
    return name if _NAME.fullmatch(name) else ""


def current() -> str:
    """The language of the request being answered; "" where there is none or it does not say.

    Gradio's events are worked on later, away from their request, but carry it with them.
    """
    event: Any = LocalContext.request.get(None)
    cookies = getattr(getattr(event, "request", None), "cookies", None)
    return _asked.get() if cookies is None else named(cookies)


class Asked:
    """Middleware: notes each request's language."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its language noted."""
        if scope["type"] == "http":
            _asked.set(named(Request(scope).cookies))
        await self.app(scope, receive, send)
