"""A piece of an answer."""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """A piece of the answer's call `number`, from 0: the first has the `name` of the tool, all add to `arguments`, in JSON."""

    number: int
    name: str = ""
    arguments: str = ""


class Piece(NamedTuple):
    """Final text of the answer, or of the reasoning before it, or a piece of a call where calls are told apart: the others are
    empty."""

    text: str = ""
    reasoning: str = ""
    call: Call | None = None
