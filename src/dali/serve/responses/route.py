"""/v1/responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dali.serve.generation.generation import Generation
from dali.serve.http.body import read_fields
from dali.serve.http.sse import PAUSE, EventStream, named_events
from dali.serve.openai.reply import failure, gather
from dali.serve.responses.output import Output
from dali.serve.responses.request import ask_of, echo_of
from dali.serve.serving import serving


async def responses(request: Request) -> Response:
    host = serving(request)
    fields = await read_fields(request)
    host.check_model(fields)
    streams = fields.flag("stream")
    ask, output = ask_of(fields, host.llm), Output(host.name, echo_of(fields, host.llm))
    generation = await host.service.begin(ask)
    if streams:
        return EventStream(generation, _stream(generation, output))
    await gather(request, generation, output)
    return JSONResponse(output.response)


async def _stream(generation: Generation, output: Output) -> AsyncGenerator[bytes, None]:
    yield named_events(output.begin())
    async with aclosing(generation.deltas(PAUSE)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield named_events(
                    [output.still()]
                )  # Codex gives up on streams whose events are comments alone
                continue
            events = output.take(delta.parts)
            if delta.finish is not None:
                failed = failure(delta.finish)
                events += output.fail(failed) if failed else output.finish(delta.finish)
            if events:
                yield named_events(events)


ROUTES = [Route(path, responses, methods=["POST"]) for path in ("/v1/responses", "/responses")]
