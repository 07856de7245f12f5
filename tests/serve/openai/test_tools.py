"""Calls of tools in chats."""

from __future__ import annotations

import json

import pytest

from calling_model import QUESTION, SCHEMA, TEMPLATE, calling_model

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}]
ASKED = [{"role": "user", "content": QUESTION}]
BODY = {"messages": ASKED, "temperature": 0, "tools": TOOLS}


def test_a_session_with_a_call_and_its_result_completes(caller):
    chat = caller.openai.chat.completions
    first = chat.create(model="model", **BODY).choices[0]
    assert (first.finish_reason, first.message.content, first.message.reasoning_content) == (
        "tool_calls",
        "I look.",
        "Hm.",
    )
    (call,) = first.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Paris"},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "Rain."}]}
    said = first.message.model_dump(exclude_none=True)
    second = chat.create(model="model", **BODY | {"messages": [*ASKED, said, result]}).choices[0]
    assert (second.finish_reason, second.message.content, second.message.tool_calls) == (
        "stop",
        "It rains!",
        None,
    )


def test_a_streamed_call_has_its_name_first_and_its_arguments_as_they_come(caller):
    chunks = caller.events(CHAT, BODY)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    first, *more = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert (first["index"], first["type"], first["function"]) == (
        0,
        "function",
        {"name": "weather", "arguments": ""},
    )
    assert len(first["id"]) == 9
    assert first["id"].isalnum()
    assert [piece["function"]["arguments"] for piece in more] == ['{"ci', 'ty": "Par', 'is"', "}"]
    assert all(set(piece) == {"index", "function"} for piece in more)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_official_client_puts_a_streamed_call_together(caller):
    with caller.openai.chat.completions.stream(model="model", **BODY) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_a_call_that_is_cut_off_is_incomplete_and_half_a_name_is_text(caller):
    for limit, content, arguments in (
        (11, "I look.", ['{"ci', 'ty": "Par'][:2]),
        (9, 'I look.\n<tool_call>\n{"name": "wea', None),
    ):
        _, answer = caller.post(CHAT, BODY | {"max_tokens": limit})
        choice = answer["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", content)
        if arguments:
            assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "".join(arguments)
        else:
            assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_without_tools_nothing_is_called(caller, more):
    _, answer = caller.post(CHAT, BODY | more)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith("</tool_call>")


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[0]]}}},
    ],
)
def test_what_changes_nothing_here_passes(caller, more):
    _, answer = caller.post(CHAT, BODY | more)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", {"type": "function", "function": {"name": "winter"}}),
        ("tool_choice", "perhaps"),
        ("tool_choice", 5),
        ("tool_choice", {"type": "allowed_tools"}),
        ("tools", {}),
        ("tools", ["x"]),
        ("tools", [{"type": "custom", "custom": {"name": "x"}}]),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": 5}}]),
        ("parameters", [{"type": "function", "function": {"name": "f", "parameters": "x"}}]),
        ("parallel_tool_calls", "no"),
        ("tool_calls", [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]),
        ("tool_calls", [{"role": "assistant", "content": "", "tool_calls": "x"}]),
        ("arguments", [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]),
        ("tool_call_id", [{"role": "tool", "content": "", "tool_call_id": 5}]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(caller, field, value):
    sent = {
        "parameters": "tools",
        "tool_calls": "messages",
        "arguments": "messages",
        "tool_call_id": "messages",
    }
    status, answer = caller.post(CHAT, BODY | {sent.get(field, field): value})
    assert status == 400
    assert field in answer["error"]["message"]


def test_a_template_without_tools_is_told_of_them_in_words(tiny):
    prompt = tiny.post("/apply-template", {"messages": ASKED, "tools": TOOLS})[1]["prompt"]
    assert '"name": "weather"' in prompt
    status, answer = tiny.post(CHAT, BODY | {"max_tokens": 4})
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert tiny.http.get("/props").json()["chat_template_caps"]["supports_tools"] is False


def test_a_model_that_never_saw_a_tool_calls_one_where_it_has_to(tiny):
    schema = SCHEMA | {"properties": {"city": {"enum": ["Paris"]}}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}]
    _, answer = tiny.post(
        CHAT, BODY | {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    )
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (
        "weather",
        {"city": "Paris"},
    )


def test_a_session_with_one_completes(tmp_path):
    template = (
        TEMPLATE.replace("tools", "nothing").replace("tool_calls", "nothing").replace("'tool'", "'user'")
    )
    template = template.replace("messages[-1].role == 'user'", "'<tool_response>' in messages[-1].content")
    with calling_model(tmp_path, template=template) as server:
        chat = server.openai.chat.completions
        first = chat.create(model="model", **BODY).choices[0]
        assert first.finish_reason == "tool_calls"
        (call,) = first.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
        result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
        said = first.message.model_dump(exclude_none=True)
        second = chat.create(model="model", **BODY | {"messages": [*ASKED, said, result]}).choices[0]
        assert (second.finish_reason, second.message.content) == ("stop", "It rains!")


def test_letters_that_are_none_are_refused_wherever_they_are(caller):
    tools = [{"type": "function", "function": {"name": "f", "description": "\\ud800"}}]
    content = json.dumps(BODY | {"tools": tools}).replace("\\\\ud800", "\\ud800")
    assert caller.http.post(CHAT, content=content).status_code == 400
