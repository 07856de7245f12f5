"""Answers that come in pieces: server-sent events, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dali.serve.generation.generation import Generation

PAUSE = 5.0  # seconds of silence after which a ping keeps proxies and clients waiting
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(data: Any, name: str | None = None) -> bytes:
    """One event, `data` as JSON."""
    text = f"data: {encode(data)}\n\n"
    return (text if name is None else f"event: {name}\n{text}").encode(errors="replace")


class Alike:
    """Events that all begin with the same fields, which are written as JSON once: one comes with every token."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = f"data: {encode(head)[:-1]},"

    def event(self, fields: dict[str, Any]) -> bytes:
        """One with these fields, at least one, after them."""
        return f"{self._head}{encode(fields)[1:]}\n\n".encode(errors="replace")


def named_events(events: Iterable[dict[str, Any]]) -> bytes:
    """Events that are called by their own type."""
    return b"".join(event(one, one["type"]) for one in events)


@asynccontextmanager
async def cancelled_with(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """While in here, a client that leaves cancels the generation."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


class EventStream(Response):
    """Sends what `chunks` yields as it comes. A client that leaves cancels the generation."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, chunks: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with cancelled_with(receive, self._generation), aclosing(self._chunks) as chunks:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._generation.cancel()
