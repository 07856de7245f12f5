"""Conversations as chat templates of different manners take them."""

from __future__ import annotations

import pytest

from dali.engine.text.manners import fitted
from scripted import scripted_tokenizer

HEAD = "{% for m in messages %}{{ m.role }}:{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}%s{% endfor %}{% endfor %}"
AS_JSON = HEAD + CALLS.replace("%s", "{{ c.function.arguments | tojson }}")
ITEMS = HEAD + CALLS.replace(
    "%s", "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}"
)
ADDED = HEAD + CALLS.replace("%s", "{{ 'json:' + c['function']['arguments'] }}")
PRINTED = HEAD + CALLS.replace("%s", "{{ c.function.arguments }}")
EITHER = HEAD + CALLS.replace(
    "%s",
    "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}",
)
DROPS = "{% for m in messages %}{% if m.role == 'user' or loop.first %}{{ m.role }}:{{ m.content }}\n{% endif %}{% endfor %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}" + DROPS
)


def said(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content} | more


def call(arguments) -> dict:
    return {"id": "one", "type": "function", "function": {"name": "f", "arguments": arguments}}


def fit(template: str, *messages: dict) -> list[dict]:
    return fitted(scripted_tokenizer(template=template), template, list(messages))


@pytest.mark.parametrize(
    ("template", "given", "expected"),
    [
        (AS_JSON, '{"a": 1}', {"a": 1}),
        (AS_JSON, "", {}),
        (AS_JSON, None, {}),
        (AS_JSON, '{"a": ', {"arguments": '{"a": '}),
        (AS_JSON, "[" * 9999, {"arguments": "[" * 9999}),
        (ITEMS, '{"a": 1}', {"a": 1}),
        (EITHER, '{"a": 1}', {"a": 1}),
        (ADDED, '{"a": 1}', '{"a": 1}'),
        (ADDED, {"a": "ö"}, '{"a": "ö"}'),
        (PRINTED, {"a": 1}, '{"a": 1}'),
    ],
)
def test_arguments_are_objects_or_text_as_the_template_wants_them(template, given, expected):
    found = fit(template, said("user", "Hi"), said("assistant", None, tool_calls=[call(given)]))
    assert found[1]["tool_calls"][0]["function"]["arguments"] == expected


def test_a_message_that_only_calls_has_an_empty_content():
    for given in ("", None):
        assert (
            fit(AS_JSON, said("user", "Hi"), said("assistant", given, tool_calls=[call("{}")]))[1]["content"]
            == ""
        )


def test_results_have_the_name_of_what_was_called():
    result = said("tool", "3", tool_call_id="one")
    found = fit(AS_JSON, said("user", "Hi"), said("assistant", "", tool_calls=[call("{}")]), result)
    assert found[2] == result | {"name": "f"}


def test_the_system_at_the_head_is_one_message():
    assert fit(HEAD + "{% endfor %}", said("system", "a"), said("system", "b"), said("user", "c")) == [
        said("system", "a\n\nb"),
        said("user", "c"),
    ]


MIDDLE = [said("user", "a"), said("assistant", "b"), said("system", "c"), said("user", "d")]


@pytest.mark.parametrize("template", [DROPS, ALTERNATES])
def test_what_the_system_says_later_the_user_says_where_it_may_not(template):
    assert fit(template, *MIDDLE) == [said("user", "a"), said("assistant", "b"), said("user", "c\n\nd")]
    assert fit(template, said("user", "a"), said("system", "b")) == [said("user", "a\n\nb")]


def test_what_the_user_says_in_a_row_is_one_message_where_it_has_to_be():
    twice = [said("user", "a"), said("user", "b"), said("user", "c")]
    assert fit(ALTERNATES, *twice) == [said("user", "a\n\nb\n\nc")]
    assert fit(DROPS, *twice) == twice


def test_and_the_system_itself_where_it_may():
    assert fit(HEAD + "{% endfor %}", *MIDDLE) == MIDDLE


def test_reasoning_is_called_as_the_template_calls_it():
    asked = [said("user", "a"), said("assistant", "b", reasoning_content="c"), said("user", "d")]
    assert fit("{{ message.thinking }}", *asked)[1] == said("assistant", "b", thinking="c")
    assert fit("{{ message.reasoning_content or message.thinking }}", *asked) == asked
