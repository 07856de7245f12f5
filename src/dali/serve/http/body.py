"""A request's body: read within limits, and as JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from dali.serve.http.errors import ApiError, invalid
from dali.serve.http.fields import Fields

MOST_BYTES = 32 * 2**20  # ten times the text that a context of a million tokens holds
MOST_DEPTH = 64  # of arrays and objects within each other
SECONDS = 60.0  # within which a body has to be there
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # may be one half of a character, where the other one is missing
AT_ONCE = 2**16  # bytes that are parsed in the event loop; more of them in a thread


async def read_fields(request: Request) -> Fields:
    """The fields of an object. ApiError: 400 for what is none, 408 for a body that comes too slowly, 413 for too large a one."""
    body = await read_body(request)
    value = _parsed(body) if len(body) <= AT_ONCE else await asyncio.to_thread(_parsed, body)
    if not isinstance(value, dict):
        raise invalid("The body has to be a JSON object.")
    return Fields(value)


async def read_body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                size += len(part)
                if (
                    size <= MOST_BYTES
                ):  # else it is read to its end all the same, as many clients write all before they read
                    parts.append(part)
                elif size > 8 * MOST_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        raise ApiError(
            408, f"The body did not come within {SECONDS:.0f} seconds.", headers={"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise ApiError(400, "The client left.") from error
    if size > MOST_BYTES:
        raise _too_large()
    return b"".join(parts)


def _too_large() -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {MOST_BYTES // 2**20} MiB.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def _parsed(body: bytes) -> Any:
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: byte {body[error.start]:#04x} at {error.start}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        where = f" ({error.msg} at {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise invalid(f"The body is not valid JSON{where}.") from error
    _check_depth(value)
    if HALF.search(body):
        _check_text(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # JSON has no infinity to repeat it with
        raise invalid(
            f"The body has the number {text[:40]}, and numbers of at most {sys.float_info.max:.1e} are read."
        )
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _check_text(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid('The body has half of a character, as in "\\ud800", which no text has.') from error


def _too_deep() -> ApiError:
    return invalid(f"The body nests arrays and objects deeper than {MOST_DEPTH}.")
