"""/v1/completions."""

from __future__ import annotations

import json

import pytest

from served import Served

ROUTE = "/v1/completions"
GREEDY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def alone(tiny: Served):
    return tiny.llm.generate("Once upon a time", temperature=0, max_tokens=8)


def test_the_official_client_gets_what_the_model_says(tiny, alone):
    answer = tiny.openai.completions.create(model="dali-tiny", **GREEDY)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (alone.text, "length")
    chunks = list(tiny.openai.completions.create(model="dali-tiny", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == alone.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_token_ids_and_several_prompts(tiny, alone):
    ids = tiny.llm.encode("Once upon a time")
    prompts = ["Once upon a time", "The dog"]
    _, answer = tiny.post(ROUTE, GREEDY | {"prompt": prompts, "n": 2})
    texts = [choice["text"] for choice in answer["choices"]]
    other = tiny.llm.generate("The dog", temperature=0, max_tokens=8)
    assert texts == [alone.text, alone.text, other.text, other.text]
    assert answer["usage"]["prompt_tokens"] == alone.prompt_tokens + other.prompt_tokens
    _, answer = tiny.post(ROUTE, GREEDY | {"prompt": [ids, ids]})
    assert [choice["text"] for choice in answer["choices"]] == [
        tiny.llm.generate(ids, temperature=0, max_tokens=8).text
    ] * 2


def test_a_prompt_of_nothing_begins_a_text(tiny):
    for nothing in ({"prompt": ""}, {"prompt": None}, {}):
        status, answer = tiny.post(ROUTE, {"max_tokens": 1, "temperature": 0} | nothing)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert answer["usage"]["prompt_tokens"] == 1


def test_sixteen_tokens_unless_told(tiny):
    _, answer = tiny.post(ROUTE, {"prompt": "Once upon a time", "temperature": 0})
    assert answer["usage"]["completion_tokens"] == 16


def test_log_probabilities_in_the_form_of_this_route(tiny, alone):
    _, answer = tiny.post(ROUTE, GREEDY | {"logprobs": 2})
    found = answer["choices"][0]["logprobs"]
    expected = tiny.llm.generate("Once upon a time", temperature=0, max_tokens=8, logprobs=2).logprobs
    assert found["token_logprobs"] == [one.logprob for one in expected]
    assert "".join(found["tokens"]) == alone.text
    assert found["text_offset"] == [len("".join(found["tokens"][:at])) for at in range(8)]
    assert [sorted(top.values(), reverse=True) for top in found["top_logprobs"]] == [
        [logprob for _, logprob in one.top] for one in expected
    ]
    chunks = tiny.events(ROUTE, GREEDY | {"logprobs": 2})
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for one in streamed for offset in one["text_offset"]] == found["text_offset"]
    assert [token for one in streamed for token in one["tokens"]] == found["tokens"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [10**9]),
        ("prompt", [-1]),
        ("prompt", [True]),
        ("prompt", ["x"] * 1000),
        ("prompt", {"text": "x"}),
        ("echo", True),
        ("suffix", "end"),
        ("best_of", 3),
        ("logprobs", True),
        ("logprobs", 99),
        ("max_tokens", -5),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tiny, field, value):
    answer = tiny.http.post(ROUTE, content=json.dumps(GREEDY | {field: value}))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert field in error["message"]


def test_embeddings_are_refused_with_the_reason(tiny):
    status, answer = tiny.post("/v1/embeddings", {"input": "x"})
    assert status == 400
    assert "no embeddings" in answer["error"]["message"]
