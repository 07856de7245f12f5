"""Whatever is sent, the answer is one of dali's: never a failure of the server."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from served import STORY

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
NAMES = (
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
    "stop", "stream", "stream_options", "n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format",
    "reasoning_effort", "chat_template_kwargs", "logit_bias", "content", "tokens", "echo", "suffix", "best_of",
    "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty", "ignore_eos", "role", "type", "text", "input",
)  # fmt: skip
PLAIN = (
    some.none()
    | some.booleans()
    | some.integers(-(2**70), 2**70)
    | some.floats(width=32)
    | some.text(max_size=8)
)
VALUES = some.recursive(
    PLAIN,
    lambda inner: (
        some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=6,
)
BODIES = some.dictionaries(some.sampled_from(NAMES), VALUES, max_size=6)


@settings(
    max_examples=50, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(route=some.sampled_from(ROUTES), body=BODIES, sound=some.booleans())
def test_no_body_makes_the_server_fail(tiny, route, body, sound):
    if sound:  # so that more than the first field is looked at
        body = {"messages": STORY, "prompt": "Once"} | body | {"max_tokens": 1, "max_completion_tokens": 1}
    answer = tiny.http.post(route, content=json.dumps(body, allow_nan=True))
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) >= {"message", "type"}


SCHEMA = {"type": "object", "properties": {"city": {"type": ["string", "null"], "enum": ["Paris"]}}}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
SOUND = {
    "/v1/chat/completions": {
        "max_tokens": 1, "tool_choice": "auto", "stop": ["x"],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "x", "parameters": SCHEMA}}],
        "messages": [
            {"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning_content": "c", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "d"}, {"role": "system", "content": "e"},
        ],
    },
    "/v1/responses": {
        "max_output_tokens": 1, "instructions": "a", "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}, {"type": "custom", "name": "x"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "c"}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "d"}]},
        ],
    },
    "/v1/messages": {
        "max_tokens": 1, "system": [{"type": "text", "text": "a"}], "thinking": {"type": "enabled", "budget_tokens": 5},
        "tools": [{"name": "weather", "input_schema": SCHEMA}], "tool_choice": {"type": "auto"}, "stop_sequences": ["x"],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "c"}, {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "x"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "d"}]},
            ]},
        ],
    },
}  # fmt: skip


def places(value, path=()):
    """The paths to all that is in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.mark.parametrize("route", SOUND)
def test_what_is_sound_is_answered(caller, route):
    assert caller.http.post(route, json=SOUND[route]).status_code == 200


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=some.data(), route=some.sampled_from(sorted(SOUND)))
def test_no_single_fault_does(caller, data, route):
    body = json.loads(json.dumps(SOUND[route]))
    *path, last = data.draw(some.sampled_from(list(places(body))))
    holder = body
    for key in path:
        holder = holder[key]
    if data.draw(some.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(VALUES)
    answer = caller.http.post(route, content=json.dumps(body, allow_nan=True))
    assert answer.status_code in (200, 400, 404), answer.text


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(content=some.binary(max_size=64))
def test_no_bytes_do(tiny, content):
    assert tiny.http.post("/v1/chat/completions", content=content).status_code == 400
