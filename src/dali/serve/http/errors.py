"""Errors as clients get them: a status, and a body of the protocol they speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from dali.errors import DaliError, TooLong, UsageError

INVALID = "invalid_request_error"
UNSUPPORTED = "unsupported_parameter"


class ApiError(Exception):
    """An answer that is an error. `param`: the field of the body that it is about; `code`: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def api_error(error: DaliError) -> ApiError:
    """What clients are told of one of dali's errors: those that cannot be meant are theirs, others the server's."""
    message = f"{error.problem} {error.fix}"
    if isinstance(error, TooLong):
        return invalid(message, "messages", "context_length_exceeded")
    return invalid(message) if isinstance(error, UsageError) else ApiError(503, message, "unavailable_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """As OpenAI's clients know it."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(path: str, error: ApiError) -> JSONResponse:
    """For a request of `path`, whose protocol decides on the body's form."""
    return JSONResponse(error_body(error), error.status, error.headers)
