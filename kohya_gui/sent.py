"""How the page is sent: Gradio's HTML in the visitor's language, and beside it one script with everything the page
is made of, which a browser keeps as long as this program runs."""

import json
import re
import secrets
import threading
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kohya_gui.gate import signed_in
from kohya_gui.localization import Language, Words

PATH = "/kohya/page.js"
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=31536000, immutable"}
_LANG = re.compile(rb'(<html\s+lang=)"en"')
# the script stands after Gradio's configuration and before the module that reads it
_BEFORE = b"<script data-gradio-mode>"


class PageScript:
    """The page's script in every language, each made when it is first asked for."""

    def __init__(self, make: Callable[[Language], str], words: Words) -> None:
        """Args:
        make: gives the script's text for a language.
        words: knows the languages.
        """
        self._make = make
        self._words = words
        self._made: dict[str, str] = {}
        self._lock = threading.Lock()
        # a page that was started again has other ids, so another script
        self.version = secrets.token_hex(6)

    def text(self, name: str = "") -> str:
        """The script in this language, or in the default one."""
        language = self._words.load(name) if name else self._words.default
        with self._lock:
            if language.name not in self._made:
                self._made[language.name] = self._make(language)
            return self._made[language.name]

    async def answer(self, request: Request) -> Response:
        """The route's answer."""
        if not signed_in(request.app, request.cookies):
            return PlainTextResponse("Log in first.", 401)
        text = await anyio.to_thread.run_sync(self.text, self._words.language)
        return Response(text, media_type="text/javascript", headers=_HEADERS)

    def routes(self) -> list[Route]:
        """For the web application."""
        return [Route(PATH, self.answer, methods=["GET"])]

    def dressed(self, html: bytes) -> bytes:
        """Gradio's page with its language and our script; a login form without the script."""
        language = self._words.language
        html = _LANG.sub(rb'\1"' + language.encode() + b'"', html, count=1)
        if b'"auth_required":true' in html:
            return html
        script = f'<script src="{PATH.lstrip("/")}?v={self.version}-{language}"></script>'
        return html.replace(_BEFORE, script.encode() + _BEFORE, 1)


class Dressing:
    """Middleware: hands Gradio's page through `PageScript.dressed`."""

    def __init__(self, app: ASGIApp, *, script: PageScript) -> None:
        self.app = app
        self.script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; only the page itself is changed."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        if scope["type"] != "http" or scope["method"] != "GET" or path not in ("", "/"):
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def gather(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
            content = self.script.dressed(bytes(body)) if kinds and kinds[0].startswith(b"text/html") else bytes(body)
            kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*kept, (b"content-length", str(len(content)).encode())]})
            await send({"type": "http.response.body", "body": content})

        await self.app(scope, receive, gather)


def script_text(source: str, data: dict[str, Any]) -> str:
    """The script and what it is given, as one file."""
    return f"{source}\nkohya.take({json.dumps(data, ensure_ascii=False, separators=(',', ':'))});\n"
