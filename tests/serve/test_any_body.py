"""Whatever is sent, the answer is one of dali's: never a failure of the server."""

from __future__ import annotations

import json

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
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(content=some.binary(max_size=64))
def test_no_bytes_do(tiny, content):
    assert tiny.http.post("/v1/chat/completions", content=content).status_code == 400
