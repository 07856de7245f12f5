"""/v1/embeddings, which is refused."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.serve.http.errors import UNSUPPORTED, ApiError


async def embeddings(request: Request) -> Response:
    raise ApiError(
        400,
        "This server has no embeddings: its models are made to go on with a text, and what they keep of one on the way was not "
        "trained to be compared. Run a model made for embeddings beside it.",
        code=UNSUPPORTED,
    )


ROUTES = [Route(path, embeddings, methods=["POST"]) for path in ("/v1/embeddings", "/embeddings")]
