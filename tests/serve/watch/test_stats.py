"""GET /v1/stats."""

from __future__ import annotations

import pytest

from served import STORY, served, until

CHAT = "/v1/chat/completions"


@pytest.fixture
def fresh(tiny_llm):
    with served(tiny_llm) as found:
        yield found


def stats(of):
    answer = of.http.get("/v1/stats")
    assert answer.status_code == 200
    return answer.json()


def test_counts_are_those_of_the_answers(fresh):
    before = stats(fresh)
    names = ("running", "waiting", "prompt_tokens", "cached_tokens", "generated_tokens")
    assert [before[name] for name in names] == [0] * 5
    usages = []
    for limit in (3, 5):
        _, answer = fresh.post(CHAT, {"messages": STORY, "max_tokens": limit, "ignore_eos": True})
        usages.append(answer["usage"])
    after = stats(fresh)
    assert after["generated_tokens"] == 8
    assert after["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert after["cached_tokens"] == cached > 0
    assert after["finished"] == {"stop": 0, "length": 2, "tool_calls": 0, "abort": 0, "error": 0}
    assert after["accelerator"] is False


def test_the_workload_is_what_the_layers_routed(fresh):
    fresh.post(CHAT, {"messages": STORY, "max_tokens": 4})
    found = stats(fresh)
    config = fresh.llm.model.config
    assert [len(tokens) for tokens in found["workload"]] == [config.num_experts] * config.num_hidden_layers
    routed = [layer["routed_tokens"] for layer in found["experts"]["layers"]]
    assert [sum(tokens) for tokens in found["workload"]] == routed
    assert "workload" not in found["experts"]
    assert fresh.llm.stats()["workload"] == found["workload"]


def test_an_answer_under_way_is_seen_and_one_cut_off_counts_as_such(fresh):
    body = {"messages": STORY, "max_tokens": 400, "ignore_eos": True, "stream": True}
    with fresh.http.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()  # what nobody holds is closed
        next(lines)
        until(lambda: stats(fresh)["generated_tokens"] > 0)
    until(lambda: stats(fresh)["running"] == 0)
    found = stats(fresh)
    assert found["finished"]["abort"] + found["finished"]["length"] == 1
    assert found["prompt_tokens"] > 0
