from __future__ import annotations

import pytest

import dali
from dali.conversation import plain_messages
from dali.errors import UsageError


def text(*words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": word} for word in words]


def test_parts_of_text_are_joined():
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text("Hello!", "Bye")}]
    assert plain_messages(messages) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!\nBye"},
    ]
    assert messages[1]["content"] == text("Hello!", "Bye")  # the caller's own are left as they are


def test_an_assistant_may_say_nothing():
    asked = {"role": "user", "content": "Hi"}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert plain_messages([asked, calls]) == [asked, calls]
    for nothing in ({"content": None}, {}, {"content": None, "tool_calls": []}):
        said = {"role": "assistant"} | nothing
        assert plain_messages([asked, said]) == [asked, said | {"content": ""}]  # templates want a text


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "A conversation is a list"),
        ("Hello", "A conversation is a list"),
        (["Hello"], "A conversation is a list"),
        ([{"content": "Hello"}], "A conversation is a list"),
        ([{"role": "user"}], "the user has the content None"),
        ([{"role": "user", "content": 5}], "the user has the content 5"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "the type 'image_url'"),
        ([{"role": "user", "content": ["Hello"]}], "the type 'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the type 'text'"),
    ],
)
def test_what_a_template_would_print_as_python_is_refused(messages, problem):
    with pytest.raises(UsageError) as error:
        plain_messages(messages)
    assert problem in error.value.problem


def test_a_prompt_of_parts_is_that_of_their_text(dali_tiny):
    llm = dali.load(dali_tiny)
    parts = llm.chat_prompt([{"role": "user", "content": text("Hello!", "Bye")}])
    assert parts == llm.chat_prompt([{"role": "user", "content": "Hello!\nBye"}])
