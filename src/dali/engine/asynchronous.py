"""A stream for programs with an event loop, which goes on while the model computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

Piece = TypeVar("Piece")


async def in_threads(
    pieces: Generator[Piece, None, None], stop: Callable[[], None]
) -> AsyncGenerator[Piece, None]:
    """What `pieces` yields, each piece awaited in a thread. `stop` ends it from outside, as closing and cancelling do, after the
    step under way."""
    end: Any = object()
    try:
        while True:
            piece = asyncio.ensure_future(asyncio.to_thread(next, pieces, end))
            try:
                found = await asyncio.shield(piece)
            except asyncio.CancelledError:
                await asyncio.to_thread(stop)
                await asyncio.wait([piece])  # a generator cannot be closed while it runs
                raise
            if found is end:
                return
            yield found
    finally:
        await asyncio.to_thread(pieces.close)
