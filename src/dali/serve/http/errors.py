"""Errors as clients get them: a status, and a body of the protocol they speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from dali.errors import DaliError, TooLong, Unsupported, UsageError

INVALID = "invalid_request_error"
UNSUPPORTED = "unsupported_parameter"
TOO_LONG = "context_length_exceeded"
# Where a request has its prompt; elsewhere it is `messages`.
PROMPTS = {"/v1/completions": "prompt", "/v1/responses": "input"}
ANTHROPIC_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


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


def api_error(error: DaliError, path: str = "") -> ApiError:
    """What clients of `path` are told of one of dali's errors: those that cannot be meant are theirs, others the server's."""
    message = f"{error.problem} {error.fix}"
    if isinstance(error, TooLong):
        return invalid(message, PROMPTS.get(path, "messages"), TOO_LONG)
    if isinstance(error, Unsupported):
        return invalid(message, code=UNSUPPORTED)
    return invalid(message) if isinstance(error, UsageError) else ApiError(503, message, "unavailable_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """As OpenAI's clients know it."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """As Anthropic's clients know it; by these words Claude Code sees that it has to shorten a conversation."""
    kind = ANTHROPIC_KINDS.get(error.status, INVALID if error.status < 500 else "api_error")
    long = "prompt is too long: " if error.code == TOO_LONG else ""
    return {"type": "error", "error": {"type": kind, "message": f"{long}{error.message}"}}


def error_response(path: str, error: ApiError) -> JSONResponse:
    """For a request of `path`, whose protocol decides on the body's form."""
    body = anthropic_body(error) if path.startswith("/v1/messages") else error_body(error)
    return JSONResponse(body, error.status, error.headers)
