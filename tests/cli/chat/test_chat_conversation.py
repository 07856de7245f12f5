"""What is kept of a conversation, and what goes when the context is full."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dali.cli.chat.conversation import Conversation, without_oldest_turn
from dali.cli.flags.chat import Chat
from dali.cli.terminal import set_log_level
from dali.errors import UsageError


class Counting:
    """A model whose prompts have a token for each letter of their messages."""

    ctx_size = 100

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.telemetry = SimpleNamespace(
            disk=None, tiers={}, steps_on_cpu=0, total=lambda: SimpleNamespace(expert_bytes=0)
        )

    def chat_prompt(self, messages, template=None):
        return [0] * sum(len(message["content"]) for message in messages)

    def chat_sequence(self, messages, *, template=None, **sampling):
        if len(self.chat_prompt(messages)) >= self.ctx_size:
            raise UsageError("Too long.", "Shorten it.")
        self.asked.append([message["content"] for message in messages])
        return object()


@pytest.fixture
def talk(capsys):
    def talk(*turns: tuple[str, str], **settings: object) -> tuple[list[list[str]], list[str]]:
        set_log_level("info")
        llm = Counting()
        conversation = Conversation(llm, Chat(system_prompt="s" * 5, **settings))
        for asked, said in turns:
            answer = conversation.answer_to(asked)
            answer.text = said
            conversation.remember(asked, answer)
        return llm.asked, capsys.readouterr().err.splitlines()

    return talk


def test_the_oldest_turns_go_when_the_context_is_full_and_it_is_said_once(talk):
    a, b, c, d = (letter * 20 for letter in "abcd")
    asked, said = talk((a, a), (b, b), (c, c), (d, d))
    # A quarter of the context is left for the answer: 75 tokens may be asked.
    assert asked == [["sssss", a], ["sssss", a, a, b], ["sssss", b, b, c], ["sssss", c, c, d]]
    assert said == ["The context of 100 tokens is full: from here on, the oldest messages are forgotten."]


def test_an_answer_that_is_to_be_short_needs_less_room(talk):
    a, b, c = (letter * 16 for letter in "abc")
    assert talk((a, a), (b, b), (c, ""))[0][-1] == ["sssss", b, b, c]
    assert talk((a, a), (b, b), (c, ""), predict=5)[0][-1] == ["sssss", a, a, b, b, c]


def test_a_question_that_is_too_long_makes_nothing_forgotten(talk):
    with pytest.raises(UsageError, match="Too long"):
        talk(("a", "a"), ("b" * 100, ""))
    llm = Counting()
    conversation = Conversation(llm, Chat())
    conversation.remember("a", SimpleNamespace(text="b"))
    with pytest.raises(UsageError):
        conversation.answer_to("c" * 100)
    assert [message["content"] for message in conversation.messages] == ["a", "b"]


def test_a_question_may_take_the_room_of_the_answer(talk):
    assert talk(("a" * 90, "b"))[0] == [["sssss", "a" * 90]]


def test_a_turn_is_a_question_and_all_that_answers_it():
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "tool", "assistant", "user")]
    assert without_oldest_turn(turns) == turns[4:]
    assert without_oldest_turn(turns[:4]) == []


def test_nothing_said_is_nothing_asked(talk):
    assert talk(("a", ""), ("b", "x"), ("c", ""))[0][-1] == ["sssss", "b", "x", "c"]
