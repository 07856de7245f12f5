"""Bodies that are no requests."""

from __future__ import annotations

import pytest

from dali.serve.http import body

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "has to be a JSON object"),
        (b'"text"', "has to be a JSON object"),
        (b'{"messages": NaN}', "not valid JSON"),
        (b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}', "the number 1e999"),
        (b'{"metadata": {"a": -1e999}}', "the number -1e999"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"messages": "\xff\xfe"}', "not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "x", "name": "\\ud83d"}]}', "half of a character"),
        (b"[" * 100_000, "deeper"),
        (b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}", "deeper"),
    ],
)
def test_what_is_no_object_of_json_is_refused(tiny, content, says):
    answer = tiny.http.post(CHAT, content=content)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_characters_may_be_escaped(tiny):
    content = b'{"content": "\\ud83d\\udc15"}'
    assert tiny.http.post("/detokenize", json=tiny.http.post("/tokenize", content=content).json()).json() == {
        "content": "🐕"
    }


def test_a_body_has_a_limit_that_is_told_before_and_after_its_length_is(tiny, monkeypatch):
    monkeypatch.setattr(body, "MOST_BYTES", 1000)
    for content in (b"x" * 5000, iter([b"x" * 500] * 10)):
        answer = tiny.http.post(CHAT, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(body, "SECONDS", 0.05)

    def slow():
        yield b"{"
        import time

        time.sleep(0.3)
        yield b"}"

    assert tiny.http.post(CHAT, content=slow()).status_code == 408


def test_what_is_not_there_is_told_in_the_same_form(tiny):
    answer = tiny.http.get("/v1/nothing")
    assert answer.status_code == 404
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
    answer = tiny.http.get(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert tiny.http.get("/../../etc/passwd").status_code == 404
