"""/v1/messages, asked by Anthropic's own client and as Claude Code asks."""

from __future__ import annotations

import json
from contextlib import contextmanager

import anthropic
import pytest

from calling_model import QUESTION, SCHEMA
from dali.errors import DaliError
from dali.serve.anthropic.conversation import messages_of
from dali.serve.http.fields import Fields
from served import STORY, served

ROUTE = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
TOOLS = [
    {
        "name": "weather",
        "description": "Tells the weather.",
        "input_schema": SCHEMA,
        "cache_control": {"type": "ephemeral"},
    }
]
ASKED = [{"role": "user", "content": QUESTION}]
BODY = {
    "messages": ASKED,
    "max_tokens": 100,
    "tools": TOOLS,
}  # the scripted model says the same at any temperature
BILLING = "x-anthropic-billing-header: cc_version=2.1.{}; cc_entrypoint=cli; cch={};"


@contextmanager
def client_of(served, key="none"):
    with anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0) as client:
        yield client.messages


def events_of(served, body):
    lines = served.lines(ROUTE, body)
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [line.removeprefix("event: ") for line in lines[::2]] == [event["type"] for event in events]
    return events


def test_the_official_client_gets_what_the_model_says(tiny):
    alone = tiny.llm.chat(STORY, temperature=0, max_tokens=24)
    with client_of(tiny) as messages:
        found = messages.create(
            model="dali-tiny", messages=STORY, max_tokens=24, extra_body={"temperature": 0}
        )
    assert (found.content[0].text, found.stop_reason, found.role) == (alone.text, "max_tokens", "assistant")
    usage = found.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == alone.prompt_tokens
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (24, 0)


def test_a_session_with_a_call_and_its_result_completes(caller):
    with client_of(caller) as messages:
        first = messages.create(model="model", **BODY)
        thinking, text, use = first.content
        assert (thinking.thinking, text.text, first.stop_reason) == ("Hm.", "I look.", "tool_use")
        assert (use.type, use.name, use.input) == ("tool_use", "weather", {"city": "Paris"})
        result = {
            "type": "tool_result",
            "tool_use_id": use.id,
            "content": [{"type": "text", "text": "Rain."}],
        }
        asked = [
            *ASKED,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        second = messages.create(model="model", **BODY | {"messages": asked})
        count = messages.count_tokens(model="model", messages=asked, tools=TOOLS)
    assert (second.content[0].text, second.stop_reason) == ("It rains!", "end_turn")
    assert count.input_tokens == second.usage.input_tokens + second.usage.cache_read_input_tokens


def test_events_come_in_the_official_order(caller):
    events = events_of(caller, BODY)
    names = [event["type"] for event in events]
    once = [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert [delta["thinking"] for delta in deltas if delta["type"] == "thinking_delta"] == ["Hm", "."]
    assert (
        "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
        == '{"city": "Paris"}'
    )
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 14
    assert events[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 3}


def test_the_official_client_puts_a_stream_together(caller):
    with client_of(caller) as messages, messages.stream(model="model", **BODY) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == "I look."
    assert (final.content[2].input, final.stop_reason) == ({"city": "Paris"}, "tool_use")
    assert final.content[0].signature


def test_what_claude_code_sends_passes(caller):
    body = BODY | {
        "system": [
            {"type": "text", "text": BILLING.format(1, "abc")},
            {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]},
            {"role": "system", "content": "Be quick."},
            {"role": "user", "content": "Go."},
        ],
        "tools": [*TOOLS, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "metadata": {"user_id": "me"},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }  # fmt: skip
    answer = caller.http.post(f"{ROUTE}?beta=true", json=body, headers={"anthropic-beta": "x"})
    assert (answer.status_code, answer.json()["stop_reason"]) == (200, "tool_use")


def test_the_billing_line_changes_nothing(caller):
    def count(system):
        return caller.post(COUNT, {"messages": ASKED, "system": system})

    plain = count("You are kind.")
    assert plain[0] == 200
    for version in (1, 22):
        line = BILLING.format(version, "f" * version)
        assert count([{"type": "text", "text": line}, {"type": "text", "text": "You are kind."}]) == plain
        assert count(f"{line}\nYou are kind.") == plain
    assert count(f"You are kind.\n{BILLING}") != plain
    assert count([{"type": "text", "text": BILLING}]) == caller.post(COUNT, {"messages": ASKED})


def test_blocks_become_messages():
    found = messages_of(
        Fields(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "user", "content": [{"type": "text", "text": "b"}]},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                            {"type": "redacted_thinking", "data": "x"},
                            {"type": "text", "text": "c"},
                            {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
                            {"type": "tool_use", "id": "2", "name": "g", "input": {}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "1", "content": "d"},
                            {"type": "tool_result", "tool_use_id": "2", "is_error": True},
                            {"type": "text", "text": "e"},
                        ],
                    },
                ]
            }
        )
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    other = {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    assert found == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "reasoning_content": "Hm.", "tool_calls": [call, other]},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
        {"role": "tool", "content": "The tool failed.", "tool_call_id": "2"},
        {"role": "user", "content": "e"},
    ]


def test_reasons_to_stop(caller):
    body = BODY | {"tools": []}
    _, stopped = caller.post(ROUTE, body | {"stop_sequences": [" look"]})
    assert (stopped["stop_reason"], stopped["stop_sequence"], stopped["content"][1]["text"]) == (
        "stop_sequence",
        " look",
        "I",
    )
    _, ended = caller.post(ROUTE, body)
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)
    _, short = caller.post(ROUTE, body | {"max_tokens": 2})
    assert (short["stop_reason"], [block["type"] for block in short["content"]]) == (
        "max_tokens",
        ["thinking"],
    )
    _, cut = caller.post(ROUTE, BODY | {"max_tokens": 11})
    assert (cut["stop_reason"], [block["type"] for block in cut["content"]]) == (
        "max_tokens",
        ["thinking", "text"],
    )


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("messages", {"messages": []}),
        ("role", {"messages": [{"role": "wizard", "content": "x"}]}),
        ("content", {"messages": [{"role": "user"}]}),
        ("image", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        (
            "image",
            {"messages": [{"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}
            ]}]},
        ),
        ("of the assistant", {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}),
        ("of the user", {"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}),
        ("tool_use_id", {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}),
        ("system", {"system": 5}),
        ("max_tokens", {"max_tokens": 0}),
        ("no tools", {"tools": [], "tool_choice": {"type": "any"}}),
        ("winter", {"tool_choice": {"type": "tool", "name": "winter"}}),
        ("tool_choice.name", {"tool_choice": {"type": "tool"}}),
        ("tool_choice", {"tool_choice": {}}),
        ("name", {"tools": [{"input_schema": {}}]}),
        ("thinking.type", {"thinking": {"type": "perhaps"}}),
        ("stop_sequences", {"stop_sequences": [""]}),
        ("mcp_servers", {"mcp_servers": [{"url": "x"}]}),
        ("output_config.format.schema", {"output_config": {"format": {"type": "json_schema"}}}),
        ("output_format.type", {"output_format": {"type": "yaml"}}),
        ("uniqueItems", {"output_format": {"type": "json_schema", "schema": {"uniqueItems": True}}}),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(caller, says, change):
    status, answer = caller.post(ROUTE, BODY | change)
    assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    assert says in answer["error"]["message"]


def test_errors_have_anthropics_form(tiny, tiny_llm, monkeypatch):
    status, answer = tiny.post(ROUTE, {"messages": [{"role": "user", "content": "dog " * 2000}]})
    assert (status, answer["error"]["message"].startswith("prompt is too long: ")) == (400, True)
    with client_of(tiny) as messages, pytest.raises(anthropic.NotFoundError, match="no model 'claude'"):
        messages.create(model="claude", messages=STORY, max_tokens=1)
    with served(tiny_llm, api_key="open sesame") as locked:
        with client_of(locked, "wrong") as messages, pytest.raises(anthropic.AuthenticationError):
            messages.create(model="dali-tiny", messages=STORY, max_tokens=1)
        with client_of(locked, "open sesame") as messages:
            messages.create(model="dali-tiny", messages=STORY, max_tokens=1)

    def fail():
        raise DaliError("No memory.", "Buy some.")

    monkeypatch.setattr(tiny.llm.loop, "step", fail, raising=False)
    assert events_of(tiny, {"messages": STORY})[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "No memory. Buy some."},
    }
