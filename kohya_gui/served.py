"""The page's own addresses: a file below the allowed roots, a thumbnail of a picture, a job's log, and where pictures
are sent to. All behind the login."""

import mimetypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from kohya_gui import pictures, upload
from kohya_gui.gate import signed_in
from kohya_gui.jobs import JobStore
from kohya_gui.paths import IMAGE_SUFFIXES, Roots
from kohya_gui.tensorboard import TensorBoard
from sd_scripts.schema.errors import UserError

Say = Callable[[UserError], str]
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
    "Cache-Control": "private, no-cache",
}
THUMB_SIZES = (64, 512)
UPLOADS_AT_ONCE = 4
# what is passed on to TensorBoard and back: no cookie of the page, no cookie of its own
_BOARD_SENDS = ("accept", "content-type")
_BOARD_ANSWERS = ("content-type", "content-disposition", "content-security-policy", "cache-control", "expires")


async def _answer(work: Callable[[Request], Response], say: Say, request: Request) -> Response:
    if not signed_in(request.app, request.cookies):
        return PlainTextResponse("Log in first.", 401)
    try:
        return await anyio.to_thread.run_sync(work, request)
    except UserError as error:
        return PlainTextResponse(say(error), 404)
    except OSError as error:
        return PlainTextResponse(f"The file cannot be read: {error.strerror or error}.", 404)


def _open(roots: Roots, request: Request) -> Path:
    """The file asked for: below the allowed folders and not hidden, nor inside a hidden folder such as .ssh.

    Raises:
        UserError: for any other path.
    """
    path = roots.inside(request.query_params.get("path", ""))
    below = [path.relative_to(root).parts for root in roots.folders if path.is_relative_to(root)]
    if not path.is_file() or any(part.startswith(".") for part in min(below, key=len, default=())):
        raise UserError(f"There is no file {path.name}.")
    return path


def _file(roots: Roots, request: Request) -> Response:
    path = _open(roots, request)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    inline = path.suffix.lower() in IMAGE_SUFFIXES and "download" not in request.query_params
    # only pictures are shown by the browser; whatever else lies there is saved, never run as a page
    return FileResponse(
        path,
        media_type=kind if inline else "application/octet-stream",
        filename=path.name,
        content_disposition_type="inline" if inline else "attachment",
        headers=_HEADERS,
    )


def _thumb(roots: Roots, request: Request) -> Response:
    path = _open(roots, request)
    wanted = request.query_params.get("size", "160")
    size = min(max(int(wanted) if wanted.isdecimal() and len(wanted) < 6 else 160, THUMB_SIZES[0]), THUMB_SIZES[1])
    made = pictures.thumbnail(path, size)
    return FileResponse(made, headers={**_HEADERS, "Cache-Control": "private, max-age=3600"})


def _log(jobs: JobStore, request: Request) -> Response:
    view = jobs.get(request.query_params.get("job", ""))
    text = jobs.log(view.id, tail=1_000_000)
    name = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "_" for sign in view.name)
    headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{name or "job"}.log"'}
    return PlainTextResponse(text, headers=headers)


async def _upload(roots: Roots, turns: anyio.Semaphore, say: Say, request: Request) -> Response:
    """One file as the whole body of the request; folder and name stand in the address. Few at once, as each is held in
    memory until it is checked."""
    if not signed_in(request.app, request.cookies):
        return PlainTextResponse("Log in first.", 401)
    async with turns:
        return await _take(roots, say, request)


async def _take(roots: Roots, say: Say, request: Request) -> Response:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > upload.MOST_BYTES:
            return PlainTextResponse(f"A file may have {upload.MOST_BYTES // 1_000_000} MB at most.", 413)
    folder, name = request.query_params.get("folder", ""), request.query_params.get("name", "")
    try:
        made = await anyio.to_thread.run_sync(upload.store, roots, folder, name, bytes(content))
    except UserError as error:
        # the request itself was fine; the page lists what was refused
        return JSONResponse({"refused": say(error)})
    return JSONResponse({"written": made.name})


async def _board(tensorboard: TensorBoard | None, request: Request) -> Response:
    """TensorBoard's answer, passed on from where only this machine can reach it."""
    if not signed_in(request.app, request.cookies):
        return PlainTextResponse("Log in first.", 401)
    board = tensorboard.running() if tensorboard is not None else None
    if board is None:
        return PlainTextResponse("TensorBoard is not running. Start it in the Jobs tab.", 404)
    # what is behind the prefix stays behind it
    path = quote("/".join(part for part in request.path_params["path"].split("/") if part not in ("", ".", "..")))
    sent = {name: request.headers[name] for name in _BOARD_SENDS if name in request.headers}
    client = httpx.AsyncClient(timeout=60, trust_env=False)
    try:
        asked = client.build_request(
            request.method,
            f"{board.address}{path}?{request.url.query}",
            headers={"Accept-Encoding": "identity", **sent},
            content=await request.body(),
        )
        got = await client.send(asked, stream=True)
    except httpx.HTTPError as error:
        await client.aclose()
        return PlainTextResponse(f"TensorBoard does not answer: {type(error).__name__}.", 502)

    async def end() -> None:
        await got.aclose()
        await client.aclose()

    headers = {name: got.headers[name] for name in _BOARD_ANSWERS if name in got.headers}
    return StreamingResponse(got.aiter_raw(), got.status_code, headers, background=BackgroundTask(end))


def routes(roots: Roots, jobs: JobStore, tensorboard: TensorBoard | None = None, say: Say = str) -> list[Route]:
    """The routes for the web application; relative to the page, so that a reverse proxy's prefix works.

    Args:
        roots: the folders that may be seen and written to.
        jobs: whose logs are given out.
        tensorboard: what is shown behind the page's login.
        say: puts an error into the language of the request.
    """
    works: dict[str, Callable[[Request], Response]] = {
        "/kohya/file": partial(_file, roots),
        "/kohya/thumb": partial(_thumb, roots),
        "/kohya/log": partial(_log, jobs),
    }
    reads = [Route(path, partial(_answer, work, say), methods=["GET"]) for path, work in works.items()]
    upload_one = partial(_upload, roots, anyio.Semaphore(UPLOADS_AT_ONCE), say)
    board = Route("/kohya/tensorboard/{path:path}", partial(_board, tensorboard), methods=["GET", "POST"])
    return [*reads, board, Route("/kohya/upload", upload_one, methods=["PUT"])]
