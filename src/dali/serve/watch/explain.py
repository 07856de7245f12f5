"""GET /v1/explain: which experts went where in the last steps, and why; where the server was told to keep them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.replay.explain import events, picture
from dali.serve.http.errors import ApiError, invalid
from dali.serve.serving import serving

if TYPE_CHECKING:
    from dali.measure.explained import Explained

MOST_DIGITS = 9  # of a number of steps
FORMS = {"text": "text/plain", "json": "application/json", "svg": "image/svg+xml"}


async def explain(request: Request) -> Response:
    service = serving(request).service
    if service.explained is None:
        raise ApiError(
            404, "This server keeps no steps. Start it with `dali serve --explain`.", code="not_found"
        )
    if unknown := request.query_params.keys() - {"format", "steps"}:
        raise invalid(
            f"There is no parameter {min(unknown)[:40]!r} here, but format and steps.", param=min(unknown)
        )
    form, since = _form(request), _since(request, service.explained.begun, service.latest)
    told = await asyncio.to_thread(_told, service.explained, form, since)
    return Response(told, media_type=FORMS[form])


def _told(explained: Explained, form: str, since: int) -> str:
    if form == "text":
        return explained.table(since) + "\n"
    steps = explained.steps(since)
    if form == "svg":
        return picture.picture(steps, explained.times)
    return events.explained(steps, f"Times are {explained.times}. {explained.about}".rstrip())


def _form(request: Request) -> str:
    form = request.query_params.get("format", "text")
    if form not in FORMS:
        raise invalid(f"format cannot be {form[:40]!r}. It is one of {', '.join(FORMS)}.", param="format")
    return form


def _since(request: Request, begun: int, latest: int) -> int:
    """The step after which all are told: of the latest answer, or so many as are asked for."""
    steps = request.query_params.get("steps")
    if steps is None:
        return latest
    if not (steps.isdecimal() and len(steps) <= MOST_DIGITS and int(steps)):
        raise invalid(f"steps cannot be {steps[:40]!r}. It is a whole number from 1.", param="steps")
    return max(begun - int(steps), 0)


ROUTES = [Route("/v1/explain", explain)]
