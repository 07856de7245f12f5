"""The example of Ray Serve: what keeps a conversation's turns together, and how a request is carried to its replica."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from call import answer, carried
from conversation import conversation_of

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST, OTHER = {"role": "user", "content": "Hello"}, {"role": "user", "content": "Bye"}
ANSWER = {"role": "assistant", "content": "Yes?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
LONG = "Once upon a time " * 20


def key(body: object, **headers: str) -> str | None:
    return conversation_of(headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"messages": [FIRST]}, {"messages": [FIRST, ANSWER, OTHER], "temperature": 0}),
        # Claude Code's system prompt has a line that changes with every request.
        ({"system": "1", "messages": [PARTS]}, {"system": "2", "messages": [PARTS, ANSWER, OTHER]}),
        ({"input": [FIRST]}, {"input": [SYSTEM, FIRST, ANSWER, OTHER]}),
        ({"prompt": LONG}, {"prompt": LONG + "there was"}),
        ({"prompt": [7] * 300}, {"prompt": [7] * 300 + [8]}),
        ({"prompt_cache_key": "a", "input": "x"}, {"prompt_cache_key": "a", "input": "y"}),
        ({"metadata": {"user_id": "s"}, "messages": [FIRST]}, {"metadata": {"user_id": "s"}, "messages": [OTHER]}),
    ],
)  # fmt: skip
def test_turns_of_a_conversation_share_a_key(first, later):
    assert key(first) == key(later) is not None


def test_conversations_differ():
    others = [{"messages": [OTHER]}, {"messages": [SYSTEM, {"role": "user", "content": "Hello!"}]}, {"prompt": "a"},
              {"prompt": "b"}, {"prompt": [1, 2]}, {"prompt_cache_key": "k", "messages": [FIRST]}]  # fmt: skip
    keys = [key({"messages": [FIRST]}), *map(key, others)]
    assert len(set(keys)) == len(keys)
    assert None not in keys


def test_the_header_is_the_clients_own_word():
    assert key({"messages": [FIRST]}, **{"x-session-id": "mine"}) == "mine"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff", b'{"messages": 1}', b'{"messages": [1]}', b"[" * 100_000]
)
def test_what_is_no_conversation_has_no_key(body):
    assert conversation_of({}, body) is None


left = asyncio.Event()


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"got": (await request.body()).decode(), "path": request.url.path}, 201, {"x-a": "b"})


async def endless(request: Request) -> StreamingResponse:
    async def pieces():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            left.set()

    return StreamingResponse(pieces())


async def fail(request: Request) -> None:
    raise ZeroDivisionError


APP = Starlette(
    routes=[Route("/echo", echo, methods=["POST"]), Route("/endless", endless), Route("/fail", fail)]
)


def scope(path: str, method: str = "GET") -> dict[str, object]:
    asked = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [],
        "app": APP,
        "state": {},
    }
    return carried(asked)


def test_an_answer_is_carried_whole():
    async def run():
        return [message async for message in answer(APP, scope("/echo", "POST"), b"hello")]

    start, body, *_ = asyncio.run(run())
    assert (start["status"], (b"x-a", b"b") in start["headers"]) == (201, True)
    assert json.loads(body["body"]) == {"got": "hello", "path": "/echo"}


def test_who_stops_reading_has_left():
    async def run():
        left.clear()
        messages = answer(APP, scope("/endless"), b"")
        assert (await anext(messages))["type"] == "http.response.start"
        await anext(messages)
        await messages.aclose()
        await asyncio.wait_for(left.wait(), 5)

    asyncio.run(run())


def test_what_the_app_raises_is_raised():
    async def run():
        return [message async for message in answer(APP, scope("/fail"), b"")]

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_only_plain_values_are_carried():
    assert set(scope("/echo")) == {"type", "method", "path", "query_string", "headers"}
