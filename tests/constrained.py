"""Answers that are chosen by chance out of what a constraint allows, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from dali.engine.constraint.constraint import Constraint
from dali.engine.text.piece import Piece
from dali.engine.text.structure import Structure
from dali.engine.text.text import Text

ENDS = '"}]<,>\n'  # letters with which values end: chosen more often than others, so that answers do
CLOSING = (
    "</parameter>",
    "\n</parameter>",
    "</arg_value>",
    "</｜DSML｜parameter>",
    "</",
    "｜DSML｜",
    "parameter>",
)  # whole, for tokenizers


def answer_by_chance(
    constraint: Constraint,
    tokenizer: Any,
    eos: Sequence[int],
    chance: Random,
    most: int = 2000,
    ends: float = 0.5,
) -> list[int]:
    """Token ids of one whole answer, without the token that ends it."""
    closing = {token for letter in ENDS for token in tokenizer(letter, add_special_tokens=False)["input_ids"]}
    closing |= {token for token in range(len(tokenizer)) if tokenizer.decode([token]) in CLOSING}
    answer: list[int] = []
    while not constraint.over(answer):
        allowed = constraint.allowed(answer, len(tokenizer)).tolist()
        assert allowed, "nothing may come next"
        if set(allowed) & {*eos} and (chance.random() < 0.7 or set(allowed) <= {*eos}):
            return answer
        near = [token for token in allowed if token in closing]
        choices = (
            near if near and chance.random() < ends else [token for token in allowed if token not in eos]
        )
        answer.append(chance.choice(choices))
        assert len(answer) < most, tokenizer.decode(answer)
    return answer


def pieces_of(answer: Sequence[int], tokenizer: Any, structure: Structure) -> list[Piece]:
    """What readers of the answer get."""
    text = Text(tokenizer, (), structure)
    for token in answer:
        if text.push(token):
            break
    else:
        text.finish()
    return list(text.pieces)


def read(pieces: Sequence[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """(text, calls as (name, arguments))"""
    text, calls = "", []
    for piece in pieces:
        text += piece.text
        if piece.call and piece.call.name:
            calls.append((piece.call.name, ""))
        if piece.call:
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.call.arguments)
    return text, calls
