"""How a generation becomes an answer, whole or as a stream of chunks; chat and completions differ in their choices alone."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import dali
from dali.errors import UsageError
from dali.serve.generation.ask import Ask
from dali.serve.generation.events import Answer, Delta, Finish, Part
from dali.serve.generation.generation import Generation
from dali.serve.http.errors import ApiError, api_error, error_body
from dali.serve.http.fields import Fields
from dali.serve.http.sse import DONE, PAUSE, PING, Alike, EventStream, cancelled_with, event
from dali.serve.openai.usage import timings_of, usage_of
from dali.serve.serving import Serving


class Choices(Protocol):
    """How one route writes choices."""

    prefix: str
    """Of an answer's id."""
    kind: str
    """What "object" a whole answer is,"""
    chunk_kind: str
    """and a chunk of one."""

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """What a stream begins with, before anything was generated."""

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """What a delta adds; at its end the finish, where it has one."""

    def whole(self, choice: int, answer: Answer) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Form:
    """What form of answer a request wants."""

    stream: bool
    include_usage: bool

    @classmethod
    def of(cls, fields: Fields) -> Form:
        options = fields.fields("stream_options")
        return cls(bool(fields.flag("stream")), bool(options.flag("include_usage")))


async def reply(request: Request, host: Serving, ask: Ask, form: Form, choices: Choices) -> Response:
    """Answers `ask`. ApiError: what Service.begin and the model refuse, and answers that fail before anything was sent."""
    generation = await host.service.begin(ask)
    head = {
        "id": f"{choices.prefix}-{secrets.token_hex(12)}",
        "object": choices.chunk_kind if form.stream else choices.kind,
        "created": int(time.time()),
        "model": host.name,
        "system_fingerprint": f"dali-{dali.__version__}",
    }
    if form.stream:
        return EventStream(generation, _stream(generation, head, ask.n, form, choices))
    async with cancelled_with(request.receive, generation):
        answers = await generation.answers()
    for answer in answers:
        if failed := failure(answer.finish):
            raise failed
    return JSONResponse(
        head
        | {
            "choices": [choices.whole(index, answer) for index, answer in enumerate(answers)],
            "usage": usage_of([answer.finish for answer in answers], ask.n),
            "timings": timings_of(answers[-1].finish),
        }
    )


async def _stream(
    generation: Generation, head: dict[str, Any], n: int, form: Form, choices: Choices
) -> AsyncGenerator[bytes, None]:
    if form.include_usage:
        head = head | {"usage": None}
    alike = Alike(head)
    finishes = [Finish("abort")] * len(generation.choices)
    opening = [chunk for index in range(len(finishes)) for chunk in choices.opening(index)]
    yield b"".join(alike.event({"choices": [chunk]}) for chunk in opening)
    async with aclosing(generation.deltas(PAUSE)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield PING
                continue
            end = {}
            if delta.finish is not None:
                if failed := failure(delta.finish):
                    yield event(error_body(failed)) + DONE
                    return
                finishes[delta.choice] = delta.finish
                end = {"timings": timings_of(delta.finish)}
            chunks = choices.chunks(delta)
            out = [alike.event({"choices": [chunk]}) for chunk in chunks[:-1]]
            out += [alike.event({"choices": [chunk]} | end) for chunk in chunks[-1:]]
            if out:
                yield b"".join(out)
    usage = event(head | {"choices": [], "usage": usage_of(finishes, n)}) if form.include_usage else b""
    yield usage + DONE


class Growing(Protocol):
    """An answer that a route writes piece by piece."""

    def take(self, parts: Iterable[Part]) -> object:
        """More of it."""

    def finish(self, finish: Finish) -> object: ...


async def gather(request: Request, generation: Generation, output: Growing) -> None:
    """Let `output` take a generation of one choice to its end. ApiError where it fails."""
    async with cancelled_with(request.receive, generation), aclosing(generation.deltas()) as deltas:
        async for delta in deltas:
            if delta is None:
                continue
            output.take(delta.parts)
            if delta.finish is not None:
                if failed := failure(delta.finish):
                    raise failed
                output.finish(delta.finish)


def failure(finish: Finish) -> ApiError | None:
    """What a client is told of a choice that ended otherwise than it should."""
    if isinstance(finish.error, UsageError):
        return api_error(finish.error)
    if finish.error is not None:
        return ApiError(500, f"{finish.error.problem} {finish.error.fix}", "server_error")
    if finish.reason == "abort":
        return ApiError(
            503, "The answer was cut off: the server is stopping, or a step failed.", "unavailable_error"
        )
    return None
