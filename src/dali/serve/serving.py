"""What the routes share: the options, and the service once the model is loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dali.serve.http.errors import ApiError
from dali.serve.http.fields import Fields
from dali.serve.options import ServeOptions

if TYPE_CHECKING:
    from starlette.requests import Request

    from dali.llm import LLM
    from dali.serve.service import Service


class Serving:
    """A server that listens, and has its model now or later."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.created = int(time.time())
        self._service: Service | None = None

    def open(self, service: Service) -> None:
        """From here on, ask `service`."""
        self._service = service

    @property
    def service(self) -> Service:
        """ApiError, 503, while the model is being loaded."""
        if self._service is None:
            raise ApiError(503, "Loading model", "unavailable_error", headers={"Retry-After": "1"})
        return self._service

    @property
    def llm(self) -> LLM:
        return self.service.llm

    @property
    def name(self) -> str:
        """What the model calls itself to clients."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        return self.options.alias or (self.llm.name,)

    def check_model(self, fields: Fields) -> None:
        """ApiError, 404, where a request names another model; one that names none means this one."""
        asked = fields.text("model")
        if asked and asked not in (*self.names, self.llm.name):
            raise ApiError(
                404,
                f"There is no model {asked[:80]!r} here. This server has {self.name!r}; `dali serve --alias` gives it other "
                "names.",
                param="model",
                code="model_not_found",
            )


def serving(request: Request) -> Serving:
    found: Serving = request.app.state.serving
    return found
