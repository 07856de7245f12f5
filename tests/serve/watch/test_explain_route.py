"""GET /v1/explain, where a server keeps steps and where it does not."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from dali.measure.explained import Explained
from served import STORY, served
from trace_events import of, read

BODY = {"messages": STORY, "ignore_eos": True}


@pytest.fixture(scope="module")
def asked(tiny_llm):
    """A server that keeps steps, of which two things were asked: of five steps or more, then of three."""
    with served(tiny_llm) as found:
        found.service.explained = Explained(tiny_llm)
        for tokens in (5, 3):
            status, _ = found.post("/v1/chat/completions", BODY | {"max_tokens": tokens})
            assert status == 200
        yield found
        tiny_llm.loop.watch = None


def test_the_latest_answer_is_told_of_and_more_where_it_is_asked_for(asked):
    def steps(query=""):
        return {
            event["args"]["step"]
            for event in of(read(asked.http.get(f"/v1/explain?format=json{query}").text), "X")
            if "step" in event["args"]
        }

    begun = asked.service.explained.begun
    latest = steps()
    assert max(latest) == begun
    assert len(latest) in (3, 4)  # of its prompt, one or more
    assert steps("&steps=2") == {begun - 1, begun}
    assert steps("&steps=1000") == set(range(1, begun + 1))


def test_it_is_a_table_for_people_and_a_picture(asked):
    answer = asked.http.get("/v1/explain")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith("Experts of the last ")
    assert "times are measured" in answer.text
    answer = asked.http.get("/v1/explain?format=svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert ElementTree.fromstring(answer.text).tag.endswith("svg")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("format=png", "format cannot be 'png'. It is one of text, json, svg."),
        ("steps=0", "steps cannot be '0'. It is a whole number from 1."),
        pytest.param(f"steps={'9' * 5000}", "steps cannot be '9999", id="digits"),
        ("steps=-1", "steps cannot be '-1'"),
        ("step=1", "There is no parameter 'step' here"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(asked, query, said):
    answer = asked.http.get(f"/v1/explain?{query}")
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_server_that_keeps_none_says_how_it_would(tiny_llm):
    with served(tiny_llm) as found:
        answer = found.http.get("/v1/explain")
        assert answer.status_code == 404
        assert "dali serve --explain" in answer.json()["error"]["message"]
