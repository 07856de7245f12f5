"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dali.serve.anthropic.conversation import messages_of
from dali.serve.anthropic.output import Event, Output
from dali.serve.anthropic.request import ask_of, template_of, tools_of
from dali.serve.generation.generation import Generation
from dali.serve.http.body import read_fields
from dali.serve.http.errors import anthropic_body
from dali.serve.http.sse import PAUSE, EventStream, cancelled_with, event
from dali.serve.openai.reply import failure
from dali.serve.serving import serving


async def messages(request: Request) -> Response:
    host = serving(request)
    fields = await read_fields(request)
    host.check_model(fields)
    streams = fields.flag("stream")
    generation = await host.service.begin(ask_of(fields, host.llm))
    output = Output(host.name, generation.choices[0].sequence.prompt_tokens)
    if streams:
        return EventStream(generation, _stream(generation, output))
    async with cancelled_with(request.receive, generation), aclosing(generation.deltas()) as deltas:
        async for delta in deltas:
            if delta is None:
                continue
            output.take(delta.parts)
            if delta.finish is not None:
                if failed := failure(delta.finish):
                    raise failed
                output.finish(delta.finish)
    return JSONResponse(output.message)


async def count_tokens(request: Request) -> Response:
    """{"input_tokens": how many tokens the prompt has that /v1/messages would give the model}."""
    host = serving(request)
    fields = await read_fields(request)
    host.check_model(fields)
    llm = host.llm
    asked, tools, template = messages_of(fields), tools_of(fields), template_of(fields, llm)
    ids = await asyncio.to_thread(llm.chat_prompt, asked, tools.schemas, template)
    return JSONResponse({"input_tokens": len(ids)})


async def _stream(generation: Generation, output: Output) -> AsyncGenerator[bytes, None]:
    yield _sent([*output.begin(), {"type": "ping"}])
    async with aclosing(generation.deltas(PAUSE)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield _sent([{"type": "ping"}])
                continue
            events = output.take(delta.parts)
            if delta.finish is not None:
                failed = failure(delta.finish)
                events += [anthropic_body(failed)] if failed else output.finish(delta.finish)
            if events:
                yield _sent(events)


def _sent(events: list[Event]) -> bytes:
    return b"".join(event(one, one["type"]) for one in events)


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
