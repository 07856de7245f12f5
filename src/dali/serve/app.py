"""The application: which path is answered by what. An ASGI app, for any server that runs one."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from dali.errors import DaliError
from dali.serve import models, tokenize
from dali.serve.anthropic import route as anthropic
from dali.serve.http.errors import ApiError, api_error, error_response
from dali.serve.http.path import own_path
from dali.serve.http.security import OPEN, Guard
from dali.serve.openai import chat, completions, embeddings
from dali.serve.page import files
from dali.serve.responses import route as responses
from dali.serve.serving import Serving
from dali.serve.watch import explain, metrics, stats

ROUTES = [
    *files.ROUTES,
    *models.ROUTES,
    *tokenize.ROUTES,
    *chat.ROUTES,
    *completions.ROUTES,
    *responses.ROUTES,
    *anthropic.ROUTES,
    *embeddings.ROUTES,
    *stats.ROUTES,
    *metrics.ROUTES,
    *explain.ROUTES,
]


def make_app(serving: Serving) -> Starlette:
    """Answers with 503 until `serving` is open."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, options=serving.options, open_paths=(*OPEN, *files.PATHS))],
        exception_handlers={ApiError: _told, DaliError: _told, HTTPException: _told},
    )
    app.router.redirect_slashes = False
    app.state.serving = serving
    return app


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, DaliError):
        error = api_error(error, own_path(request.scope))
    elif isinstance(error, HTTPException):
        error = _no_route(request, error)
    assert isinstance(error, ApiError)
    return error_response(own_path(request.scope), error)


def _no_route(request: Request, error: HTTPException) -> ApiError:
    what = f"{request.method} {own_path(request.scope)[:80]}"
    known = ", ".join(
        f"{'/'.join(sorted(route.methods - {'HEAD'}))} {route.path}" for route in ROUTES if route.methods
    )
    return ApiError(
        error.status_code,
        f"There is no {what} here. There are: {known}.",
        code="not_found",
        headers=error.headers,
    )
