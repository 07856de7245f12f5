"""Answers that are held to a schema, a grammar or a call, as the official clients ask for them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Annotated

import anthropic
import pytest
from pydantic import BaseModel, Field

import dali
from served import STORY, served

CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content or '' }}{{ m.content }}\n{% endfor %}"
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    '{# <tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call> #}'
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKING = TEMPLATE.replace("assistant:{%", "assistant: <think>{%") + "{# </think> #}"
HOW = {"temperature": 1.5, "max_tokens": 300, "seed": 11}


class Kind(Enum):
    small = "small"
    large = "large"


class Trick(BaseModel, extra="forbid"):
    name: str = Field(max_length=8)
    times: int = Field(ge=1, le=9)


class Dog(BaseModel, extra="forbid"):
    kind: Kind
    owner: Annotated[str, Field(max_length=10)] | None
    tricks: list[Trick] = Field(max_length=2)


SCHEMA = Dog.model_json_schema()
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS, "strict": True}}
    for name in ("rain", "wind")
]


@pytest.fixture(scope="module")
def model(dali_tiny, tmp_path_factory):
    """The bundled model with a template that takes tools and knows reasoning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with dali.load(str(dali_tiny)) as llm:
            llm.tokenizer.chat_template = TEMPLATE
            with served(llm, parallel=8) as found:
                yield found


def is_call(name: str, arguments: str) -> bool:
    value = json.loads(arguments)
    return name in ("rain", "wind") and value["city"] in ("Paris", "Rome") and value["days"] in range(1, 10)


def test_the_official_client_parses_a_chat(model):
    found = model.openai.chat.completions.parse(
        model="dali-tiny", messages=STORY, response_format=Dog, **HOW
    ).choices[0]
    assert found.finish_reason == "stop"
    assert isinstance(found.message.parsed, Dog)


def test_a_stream_is_the_same_text(model):
    form = {"type": "json_schema", "json_schema": {"name": "dog", "schema": SCHEMA, "strict": False}}
    body = {"messages": STORY, "response_format": form} | HOW
    _, whole = model.post(CHAT, body)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in model.events(CHAT, body))
    assert text == whole["choices"][0]["message"]["content"]
    Dog.model_validate_json(text)


def test_the_official_client_parses_a_response(model):
    found = model.openai.responses.parse(
        model="dali-tiny", input=STORY[0]["content"], text_format=Dog, temperature=1.5, max_output_tokens=300
    )
    assert isinstance(found.output_parsed, Dog)
    assert found.text.format.type == "json_schema"


def test_the_official_client_of_anthropic_parses_a_message(model):
    client = anthropic.Anthropic(base_url=model.url, api_key="none", max_retries=0)
    found = client.messages.create(
        model="dali-tiny", messages=STORY, max_tokens=300,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    Dog.model_validate_json(found.content[0].text)
    assert found.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("more", "follows"),
    [
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Dog.model_validate_json),
        ({"json_schema": {"enum": [1, "two"]}}, lambda text: json.loads(text) in (1, "two")),
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
        (
            {"grammar": r'root ::= [\u00e0-\u00ff] "\U0001F600\u000a\\u0041"'},
            lambda text: text[1:] == "😀\n\\u0041",
        ),
        ({"grammar": "start: /[0-9]{3}/"}, lambda text: len(text) == 3 and text.isdigit()),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_other_ways_to_ask(model, more, follows, path):
    asked = {"messages": STORY} if path == CHAT else {"prompt": "A dog"}
    status, answer = model.post(path, asked | HOW | more)
    choice = answer["choices"][0]
    assert (status, choice["finish_reason"]) == (200, "stop")
    assert follows(choice["message"]["content"] if path == CHAT else choice["text"])


def test_an_object_of_any_kind_may_be_asked_for(model):
    body = {
        "messages": STORY,
        "response_format": {"type": "json_object"},
        "temperature": 1.5,
        "max_tokens": 30,
    }
    for seed in range(3):
        _, answer = model.post(CHAT, body | {"seed": seed})
        choice = answer["choices"][0]
        assert choice["message"]["content"].startswith("{")
        assert choice["finish_reason"] == "length" or isinstance(
            json.loads(choice["message"]["content"]), dict
        )


def test_eight_at_once_get_what_each_gets_alone(model):
    bodies = [
        {"messages": STORY, "temperature": 1.5, "max_tokens": 40, "seed": seed, "n": 2 if seed == 3 else 1}
        | ({"json_schema": SCHEMA} if seed % 2 else {"tools": TOOLS, "tool_choice": "required"})
        for seed in range(8)
    ]

    def said(body):
        _, answer = model.post(CHAT, body)
        return [
            (one["message"]["content"], [call["function"] for call in one["message"].get("tool_calls", ())])
            for one in answer["choices"]
        ]

    alone = [said(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(said, bodies)) == alone


def test_a_call_has_to_be_made(model):
    chat = model.openai.chat.completions
    for choice, names in (
        ("required", {"rain", "wind"}),
        ({"type": "function", "function": {"name": "wind"}}, {"wind"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[0]]}}, {"rain"}),
    ):  # fmt: skip
        found = chat.create(
            model="dali-tiny",
            messages=STORY,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            **HOW,
        ).choices[0]
        (call,) = found.message.tool_calls
        assert call.function.name in names
        assert is_call(call.function.name, call.function.arguments)
        assert (found.finish_reason, found.message.content) == ("tool_calls", None)


def test_a_response_and_a_message_call_what_is_named(model):
    tools = [{"type": "function", "name": "rain", "parameters": PARAMETERS, "strict": True}]
    found = model.openai.responses.create(
        model="dali-tiny",
        input="Hi",
        tools=tools,
        tool_choice={"type": "function", "name": "rain"},
        max_output_tokens=200,
    )
    assert is_call(found.output[0].name, found.output[0].arguments)
    client = anthropic.Anthropic(base_url=model.url, api_key="none", max_retries=0)
    tools = [{"name": name, "input_schema": PARAMETERS} for name in ("rain", "wind")]
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "wind"}):
        message = client.messages.create(
            model="dali-tiny", messages=STORY, max_tokens=200, tools=tools, tool_choice=choice
        )
        (block,) = message.content
        assert (block.type, message.stop_reason) == ("tool_use", "tool_use")
        assert is_call(block.name, json.dumps(block.input))


def test_a_strict_tool_is_free_text_until_it_is_called(model):
    _, answer = model.post(CHAT, {"messages": STORY, "tools": TOOLS, "temperature": 0, "max_tokens": 8})
    assert answer["choices"][0]["message"]["content"]
    _, free = model.post(CHAT, {"messages": STORY, "tools": [TOOLS[0] | {"function": TOOLS[0]["function"] | {"strict": False}}],
                                "temperature": 0, "max_tokens": 8})  # fmt: skip
    assert free["choices"][0]["message"]["content"]


def test_a_model_may_think_before(model):
    model.llm.tokenizer.chat_template = THINKING
    try:
        _, answer = model.post(CHAT, {"messages": STORY, "json_schema": SCHEMA} | HOW | {"max_tokens": 12})
    finally:
        model.llm.tokenizer.chat_template = TEMPLATE
    message = answer["choices"][0]["message"]
    assert (message["content"], answer["choices"][0]["finish_reason"]) == ("", "length")
    assert message["reasoning_content"]


def test_log_probabilities_come_with_it(model):
    body = {
        "messages": STORY,
        "grammar": 'start: "zebra"',
        "logprobs": True,
        "top_logprobs": 1,
        "temperature": 0,
    }
    _, answer = model.post(CHAT, body)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "zebra"
    assert entries[0]["logprob"] < entries[0]["top_logprobs"][0]["logprob"]


COSTLY = "start: T\nT: /(?s:.*)/ & ~/(?s:.*)(a.{90}b|c.{89}d|e.{88}f|[a-z].{87}[^a-z])(?s:.*)/"


def test_what_turns_out_to_be_too_much_work_on_the_way_is_the_clients(model):
    body = {"messages": STORY, "grammar": COSTLY, "max_tokens": 200, "seed": 1}
    status, answer = model.post(CHAT, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "too" in answer["error"]["message"]
    assert model.events(CHAT, body)[-1]["error"]["type"] == "invalid_request_error"
    assert model.post(CHAT, {"messages": STORY, "max_tokens": 1})[0] == 200


def nested(depth: int) -> dict:
    schema: dict = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("says", "more"),
    [
        ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ("response_format.type", {"response_format": {"schema": {}}}),
        ("each say", {"response_format": {"type": "json_object"}, "grammar": "start: /a/"}),
        ("json_schema", {"json_schema": "x"}),
        ("grammar", {"grammar": "nonsense"}),
        ("GBNF", {"grammar": "root ::= ("}),
        ("uniqueItems", {"json_schema": {"type": "array", "uniqueItems": True}}),
        ("not", {"json_schema": {"not": {}}}),
        ("'a' is unsatisfiable", {"json_schema": {"type": "object", "properties": {"a": False}, "required": ["a"]}}),
        ("pattern", {"json_schema": {"type": "string", "pattern": 5}}),
        ("deeper than", {"json_schema": nested(150)}),
        ("letters", {"json_schema": {"enum": ["x" * 2**20]}}),
        ("comes last", {"json_schema": {}, "messages": [*STORY, {"role": "assistant", "content": "{"}]}),
        ("a tool", {"tools": [{"type": "function", "function": {"name": "a tool"}}], "tool_choice": "required"}),
        ("strict", {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}),
        ("uniqueItems", {"tools": [{"type": "function", "function": {
            "name": "f", "strict": True, "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}},
        }}]}),
    ],
)  # fmt: skip
def test_what_no_answer_can_be_held_to_is_refused_and_says_why(model, says, more):
    status, answer = model.post(CHAT, {"messages": STORY, "max_tokens": 2} | more)
    assert status == 400
    assert says in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 700
    assert (answer["error"]["code"] == "unsupported_parameter") == (
        "cannot be held to this" in answer["error"]["message"]
    )
