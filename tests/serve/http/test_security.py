"""Who may ask."""

from __future__ import annotations

import logging

import pytest

from dali.errors import UsageError
from dali.serve.http.fields import Fields
from dali.serve.options import ServeOptions
from served import STORY, served

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(tiny_llm):
    with served(tiny_llm, api_key="open sesame") as found:
        yield found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic open sesame"},
        {"x-api-key": "ö".encode()},
    ],
)
def test_without_the_key_nothing_is_told_but_health(locked, headers):
    answer = locked.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert locked.http.get("/health", headers=headers).json() == {"status": "ok"}


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer open sesame"}, {"x-api-key": "open sesame"}])
def test_the_key_opens(locked, headers):
    assert locked.http.get("/v1/models", headers=headers | {"Host": "example.org"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:8000", "127.0.0.1.example.org", "192.168.0.7", "[::", ""]
)
def test_a_foreign_name_for_this_machine_is_refused(tiny, host):
    answer = tiny.http.get("/health", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000"])
def test_its_own_names_are_not(tiny, host):
    assert tiny.http.get("/health", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_may_not_ask(tiny):
    for origin in ("https://example.org", "null", "http://127.0.0.1:1", "http://["):
        answer = tiny.http.post(CHAT, json={"messages": STORY, "max_tokens": 1}, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        assert not [name for name in answer.headers if name.startswith("access-control")]
    own = {"Origin": tiny.url}
    assert tiny.http.post(CHAT, json={"messages": STORY, "max_tokens": 1}, headers=own).status_code == 200


def test_another_address_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UsageError, match="api_key"):
            ServeOptions(host=host)
        assert ServeOptions(host=host, api_key="k").host == host
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        assert ServeOptions(host=host).host == host
    with pytest.raises(UsageError, match="letters"):
        ServeOptions(api_key="schlüssel")


def test_an_unexpected_failure_is_told_without_what_was_asked(tiny, monkeypatch, caplog):
    def fail(self, name):
        raise KeyError("a secret of the prompt")

    monkeypatch.setattr(Fields, "text", fail)
    monkeypatch.setattr(logging.getLogger("dali"), "propagate", True)
    with caplog.at_level(logging.INFO):
        answer = tiny.http.post(CHAT, json={"messages": STORY})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text + answer.text


def test_nothing_of_a_prompt_is_logged(tiny, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("dali"), "propagate", True)
    with caplog.at_level(logging.INFO):
        tiny.post(CHAT, {"messages": STORY, "max_tokens": 1})
        tiny.post(CHAT, {"messages": STORY, "temperature": "Tell me a story"})
    assert "story" not in caplog.text
