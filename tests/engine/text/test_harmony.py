"""Answers in channels."""

from __future__ import annotations

import pytest

from dali.engine.text.harmony import MARKERS, Harmony


def divided(*parts: str, prompt: tuple[str, ...] = ("assistant",)) -> tuple[str, str]:
    harmony = Harmony({})
    harmony.resume(prompt)
    pieces = [
        piece for part in parts for piece in (harmony.mark(part) if part in MARKERS else harmony.push(part))
    ]
    pieces += harmony.flush()
    return "".join(piece.reasoning for piece in pieces), "".join(piece.text for piece in pieces)


ANALYSIS = (
    "<|channel|>",
    "analysis",
    "<|message|>",
    "The user",
    " greets.",
    "<|end|>",
    "<|start|>",
    "assistant",
)

LOOKING = ("<|channel|>", "commentary", "<|message|>", "I look.", "<|end|>", "<|start|>", "assistant", "<|channel|>",
           "commentary to=functions.look ")  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((*ANALYSIS, "<|channel|>", "fi", "nal", "<|message|>", "Hello", " you!"), ("The user greets.", "Hello you!")),
        ((*ANALYSIS, *ANALYSIS), ("The user greets.\n\nThe user greets.", "")),
        ((*ANALYSIS, "<|channel|>", "final"), ("The user greets.", "")),
        (
            (*LOOKING, "<|constrain|>", "json", "<|message|>", '{"a": 1}'),
            ("", 'I look.\n\nto=functions.look {"a": 1}'),
        ),
        (
            (" to=python", "<|channel|>", "analysis", "<|message|>", "1 + 1", "<|call|>"),
            ("", "to=python 1 + 1"),
        ),
        (("<|message|>", "no channel"), ("", "no channel")),
        (("no ", "markers"), ("", "no markers")),
        ((), ("", "")),
    ],
)  # fmt: skip
def test_the_channels_of_an_answer(parts, expected):
    assert divided(*parts) == expected


@pytest.mark.parametrize(
    ("channel", "expected"), [("final", ("", " more")), ("analysis", (" more", ""))]
)  # fmt: skip
def test_a_prompt_may_end_within_a_message(channel, expected):
    assert divided(" more", prompt=("assistant", "<|channel|>", channel, "<|message|>", "I am")) == expected
