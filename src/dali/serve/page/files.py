"""The page's files at `/` and `/page/NAME`. They hold nothing of anyone, so that they need no key: the page asks for it."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.serve.http.errors import ApiError

INDEX = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {path.name: path for path in Path(__file__).parent.iterdir() if path.suffix in KINDS}
PATHS = ("/", *(f"/page/{name}" for name in FILES if name != INDEX))

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # another version of dali may be at this address tomorrow
}


async def index(request: Request) -> Response:
    return _file(INDEX)


async def file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES or name == INDEX:
        raise ApiError(404, f"The page has no file {name[:80]!r}.", code="not_found")
    return _file(name)


def _file(name: str) -> Response:
    path = FILES[name]
    return Response(path.read_bytes(), headers=HEADERS, media_type=KINDS[path.suffix])


ROUTES = [Route("/", index), Route("/page/{name}", file)]
