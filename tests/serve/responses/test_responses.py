"""/v1/responses, asked by OpenAI's own client and as Codex asks."""

from __future__ import annotations

import json

import openai
import pytest

from calling_model import QUESTION, SCHEMA
from dali.errors import DaliError
from dali.serve.http.fields import Fields
from dali.serve.responses.items import messages_of
from served import STORY

ROUTE = "/v1/responses"
TOOLS = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
CODEX_TOOLS = [
    *TOOLS,
    {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "other"}]},
    {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": ""},
    },
    {"type": "web_search", "external_web_access": False},
    {"type": "local_shell"},
]
BODY = {"input": QUESTION, "temperature": 0, "tools": TOOLS}
OPENING = ["response.created", "response.in_progress"]


def events_of(served, body):
    lines = [line for line in served.lines(ROUTE, body) if not line.startswith(":")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [line.removeprefix("event: ") for line in lines[::2]] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_the_official_client_gets_what_the_model_says(tiny):
    alone = tiny.llm.chat(STORY, temperature=0, max_tokens=24)
    found = tiny.openai.responses.create(
        model="dali-tiny", input=STORY[0]["content"], temperature=0, max_output_tokens=24
    )
    assert found.output_text == alone.text
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (found.usage.input_tokens, found.usage.output_tokens) == (alone.prompt_tokens, 24)
    assert found.usage.input_tokens_details.cached_tokens <= alone.prompt_tokens


def test_a_session_with_a_call_and_its_result_completes(caller):
    create = caller.openai.responses.create
    first = create(model="model", **BODY)
    reasoning, message, call = first.output
    assert (reasoning.type, reasoning.summary[0].text) == ("reasoning", "Hm.")
    assert (message.type, message.content[0].text) == ("message", "I look.")
    assert (call.type, call.name, json.loads(call.arguments), call.status) == (
        "function_call", "weather", {"city": "Paris"}, "completed",
    )  # fmt: skip
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [{"type": "input_text", "text": "Rain."}],
    }
    asked = [{"role": "user", "content": QUESTION}, *first.output, result]
    second = create(model="model", **BODY | {"input": asked})
    assert (second.status, second.output_text) == ("completed", "It rains!")
    again = create(model="model", **BODY | {"input": [*asked[:-1], result | {"output": "Rain."}]})
    assert again.usage.input_tokens == second.usage.input_tokens


def test_events_come_in_the_official_order(caller):
    events = events_of(caller, BODY)
    names = [event["type"].removeprefix("response.") for event in events]
    once = [name for at, name in enumerate(names) if name != names[at - 1]]
    assert once == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
        "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in events[-1]["response"]["output"]]
    assert all(event["item_id"] == added[event["output_index"]] for event in events if "item_id" in event)
    assert [event["delta"] for event in events if event["type"].endswith("arguments.delta")] == [
        '{"ci', 'ty": "Par', 'is"', "}",
    ]  # fmt: skip


def test_the_official_client_puts_a_stream_together(caller):
    with caller.openai.responses.stream(model="model", **BODY) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert (final.output_text, final.output[2].arguments) == ("I look.", '{"city": "Paris"}')


def test_what_codex_sends_passes(caller):
    body = BODY | {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
        "instructions": "You are a coding agent.", "tools": CODEX_TOOLS, "tool_choice": "auto", "store": False,
        "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"}, "prompt_cache_key": "x",
        "include": ["reasoning.encrypted_content"], "truncation": "auto", "text": {"verbosity": "medium"},
    }  # fmt: skip
    assert events_of(caller, body)[-1]["response"]["output"][-1]["name"] == "weather"


@pytest.mark.parametrize("given", ["", []])
def test_nothing_to_answer_is_answered(tiny, given):
    status, answer = tiny.post(ROUTE, {"input": given, "instructions": "Hi", "max_output_tokens": 1})
    assert (status, answer["status"], answer["usage"]["output_tokens"]) == (200, "incomplete", 1)
    assert answer["output"][0]["type"] == "message"


def test_a_turn_is_one_message():
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    items = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm."}],
            "encrypted_content": None,
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Well."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        call,
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "+a"},
        {"type": "function_call_output", "call_id": "1", "output": "c"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "d"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "reasoning", "summary": []},
    ]
    function = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    patch = {"id": "2", "type": "function", "function": {"name": "patch", "arguments": '{"input": "+a"}'}}
    assert messages_of(Fields({"instructions": "System.", "input": items})) == [
        {"role": "system", "content": "System."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.\nWell.",
            "tool_calls": [function, patch],
        },
        {"role": "tool", "content": "c", "tool_call_id": "1"},
        {"role": "tool", "content": "d", "tool_call_id": "2"},
        {"role": "assistant", "content": "", "reasoning_content": ""},
    ]


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("background", {"background": True}),
        ("prompt", {"prompt": {"id": "p"}}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "x"}}}),
        ("text.format.type", {"text": {"format": {"type": "grammar"}}}),
        ("no tools", {"tool_choice": "required", "tools": []}),
        ("winter", {"tool_choice": {"type": "function", "name": "winter"}}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("input", {"input": None}),
        ("input", {"input": 5}),
        ("input", {"input": ["x"]}),
        ("role", {"input": [{"type": "message", "content": "x"}]}),
        ("content", {"input": [{"role": "user"}]}),
        ("item_reference", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("nonsense", {"input": [{"type": "nonsense"}]}),
        (
            "input_image",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        ),
        ("call_id", {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}),
        ("name", {"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}),
        ("output", {"input": [{"type": "function_call_output", "call_id": "1", "output": 5}]}),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(caller, says, change):
    status, answer = caller.post(ROUTE, BODY | change)
    assert status == 400
    assert says in answer["error"]["message"]


def test_a_failure_on_the_way_is_told(tiny, monkeypatch):
    def fail():
        raise DaliError("No memory.", "Buy some.")

    monkeypatch.setattr(tiny.llm.loop, "step", fail, raising=False)
    *_, last = events_of(tiny, {"input": "Hi"})
    assert (last["type"], last["response"]["error"]["message"]) == ("response.failed", "No memory. Buy some.")
    with pytest.raises(openai.InternalServerError, match="Buy some"):
        tiny.openai.responses.create(model="dali-tiny", input="Hi")
