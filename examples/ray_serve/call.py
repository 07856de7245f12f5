"""One request to an ASGI app in this process, whoever received it: its body at hand, its answer message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Scope

CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path", "query_string", "headers",
           "client", "server")  # fmt: skip


def carried(scope: Scope) -> dict[str, Any]:
    """What of a request goes to another process: plain values, and nothing of the app that received it."""
    return {name: scope[name] for name in CARRIED if name in scope}


async def answer(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """What the app sends, as it sends it. Whoever stops reading, or is cancelled, is a client that has left."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        if (request := next(asked, None)) is not None:
            return request
        await asyncio.Event().wait()  # the client is there until the task is cancelled
        raise AssertionError

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            await sent.put(None)

    task = asyncio.create_task(run())
    try:
        while (message := await sent.get()) is not None:
            yield message
        await task  # raises what the app raised
    finally:
        task.cancel()
