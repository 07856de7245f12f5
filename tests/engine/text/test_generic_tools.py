"""Tools for models whose chat templates know of none."""

from __future__ import annotations

import json

import pytest

from dali.engine.text.generic_tools import in_words
from dali.engine.text.prompt import chat_prompt
from dali.engine.text.structure import calling_structure_of, generic_tools, tells_calls
from scripted import CHATML, scripted_tokenizer

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
HI = {"role": "user", "content": "Hi"}


def call(arguments) -> dict:
    return {"id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def spelt(messages: list[dict], tools: list[dict] | None, template: str = CHATML) -> str:
    tokenizer = scripted_tokenizer(template=template)
    return str(tokenizer.decode(chat_prompt(tokenizer, "tiny", messages, tools)))


def test_the_system_tells_of_them_before_what_else_it_says():
    said = spelt([{"role": "system", "content": "Be brief."}, HI], [WEATHER])
    head, *rest = said.split("<|im_start|>")[1:]
    assert head.startswith("system\n")
    assert json.dumps(WEATHER) in head
    assert '<tool_call>\n{"name": "NAME"' in head
    assert head.endswith("\n\nBe brief.<|im_end|>\n")
    assert rest == ["user\nHi<|im_end|>\n", "assistant\n"]


def test_without_tools_nothing_is_told():
    assert spelt([HI], None) == spelt([HI], []) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [({"city": "Bünde"}, '{"city": "Bünde"}'), ('{"city": "P', '{"city": "P'), ("", "{}"), (None, "{}")],
)
def test_calls_and_results_are_text_also_where_no_tools_are_offered(arguments, shown):
    messages = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [call(arguments)]},
        {"role": "tool", "tool_call_id": "a", "content": "Rain."},
    ]
    said = spelt(messages, None)
    assert (
        f'assistant\n<tool_call>\n{{"name": "weather", "arguments": {shown}}}\n</tool_call><|im_end|>' in said
    )
    assert "user\n<tool_response>\nRain.\n</tool_response><|im_end|>" in said


def test_text_beside_calls_stays_before_them():
    (message,) = in_words(
        CHATML, [{"role": "assistant", "content": "I look.", "tool_calls": [call("{}"), call("{}")]}], ()
    )
    assert "tool_calls" not in message
    assert message["content"].startswith("I look.\n<tool_call>\n")
    assert message["content"].count("</tool_call>") == 2


def test_a_template_that_takes_no_system_has_the_user_tell_of_them():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    drops = "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    for template in (refuses, drops):
        said = spelt([HI], [WEATHER], template)
        assert "system" not in said
        assert said.index("weather") < said.index("Hi")


def test_control_tokens_in_a_description_are_letters():
    tokenizer = scripted_tokenizer()
    tool = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}
    ids = chat_prompt(tokenizer, "tiny", [HI], [tool])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_calls_are_told_apart():
    tokenizer = scripted_tokenizer()
    assert generic_tools(tokenizer)
    assert tells_calls(tokenizer)
    prompt = chat_prompt(tokenizer, "tiny", [HI], [WEATHER])
    structure = calling_structure_of(tokenizer, prompt, "", [WEATHER], None)
    pieces = [
        *structure.push('Look.\n<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'),
        *structure.flush(),
    ]
    assert pieces[0].text == "Look."
    calls = [piece.call for piece in pieces if piece.call]
    assert calls[0].name == "weather"
    assert json.loads("".join(one.arguments for one in calls)) == {"city": "Paris"}
