"""Reasoning between tags, however its text is cut into pieces."""

from __future__ import annotations

import pytest

from dali.engine.text.thinking import Thinking

TAGS = ("<think>", "</think>")


def divided(thinking: Thinking, text: str, size: int) -> tuple[str, str]:
    pieces = [piece for at in range(0, len(text), size) for piece in thinking.push(text[at : at + size])]
    pieces += thinking.flush()
    assert all(bool(piece.text) != bool(piece.reasoning) for piece in pieces)
    return "".join(piece.reasoning for piece in pieces), "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("opened", "said", "expected"),
    [
        (False, "<think>\nIs a < b?\n\n</think>\n\nYes: a < b. ", ("Is a < b?", "Yes: a < b. ")),
        (False, " \n<think>So</think>\n", ("So", "")),
        (False, "<think></think>Hi", ("", "Hi")),
        (False, "<think>cut off </thi", ("cut off </thi", "")),
        (False, "  An answer, of <think> and </think>", ("", "  An answer, of <think> and </think>")),
        (False, "<thinking>", ("", "<thinking>")),
        (False, "<th", ("", "<th")),
        (False, " ", ("", " ")),
        (True, "\nSo\n</think>\n\nHi", ("So", "Hi")),
        (True, "<think>\nSo</think>Hi", ("So", "Hi")),
        (True, "</think>Hi", ("", "Hi")),
        (True, "cut </", ("cut </", "")),
        (True, "<", ("<", "")),
    ],
)
def test_reasoning_and_text_are_told_apart(opened, said, expected, size):
    assert divided(Thinking(TAGS, {}, opened), said, size) == expected


def test_nothing_is_held_back_that_cannot_be_a_tag():
    thinking = Thinking(TAGS, {}, opened=True)
    assert [piece.reasoning for piece in thinking.push("Well, 1 <")] == ["Well, 1"]
    assert [piece.reasoning for piece in thinking.push(" 2")] == [" < 2"]
    assert thinking.push("</think>") == []
    assert [piece.text for piece in thinking.push(" Yes ")] == ["Yes "]
    assert [piece.text for piece in thinking.push("<think>")] == ["<think>"]


@pytest.mark.parametrize(
    ("begun", "said", "expected"),
    [
        ("<think>I was", " thinking</think>Hi", (" thinking", "Hi")),
        ("<think>So</think>The", " answer", ("", " answer")),
        ("The", " answer", ("", " answer")),
    ],
)
def test_an_answer_that_the_prompt_begins_goes_on_where_it_was(begun, said, expected):
    thinking = Thinking(TAGS, {})
    thinking.resume(begun)
    assert divided(thinking, said, 3) == expected
