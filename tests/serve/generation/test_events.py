"""Deltas, joined to a whole answer."""

from __future__ import annotations

from dali.serve.generation.events import Answer, Delta, Finish, Reasoning, Text, ToolCall


def test_pieces_are_joined_each_to_its_own_kind():
    answer = Answer()
    deltas = [
        Delta(0, (Reasoning("So"), Reasoning(" it is."))),
        Delta(0, (Text("I"), ToolCall(0, "a", "look", '{"x"'))),
        Delta(0, (ToolCall(0, arguments=": 1}"), ToolCall(1, "b", "go"))),
        Delta(0, (Text(" do."),)),
        Delta(0, (ToolCall(1, arguments="{}"),), finish=Finish("tool_calls")),
    ]
    for delta in deltas:
        answer.add(delta)
    assert (answer.reasoning, answer.text) == ("So it is.", "I do.")
    assert answer.calls == [ToolCall(0, "a", "look", '{"x": 1}'), ToolCall(1, "b", "go", "{}")]
    assert answer.finish.reason == "tool_calls"
