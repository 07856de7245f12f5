"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dali.serve.anthropic.conversation import messages_of
from dali.serve.anthropic.output import Output
from dali.serve.anthropic.request import ask_of, template_of, tools_of
from dali.serve.generation.generation import Generation
from dali.serve.http.body import read_fields
from dali.serve.http.errors import anthropic_body
from dali.serve.http.sse import PAUSE, EventStream, named_events
from dali.serve.openai.reply import failure, gather
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
    await gather(request, generation, output)
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
    yield named_events([*output.begin(), {"type": "ping"}])
    async with aclosing(generation.deltas(PAUSE)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield named_events([{"type": "ping"}])
                continue
            events = output.take(delta.parts)
            if delta.finish is not None:
                failed = failure(delta.finish)
                events += [anthropic_body(failed)] if failed else output.finish(delta.finish)
            if events:
                yield named_events(events)


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
