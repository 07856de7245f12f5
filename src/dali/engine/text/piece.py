"""A piece of an answer."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """Final text of the answer, or of the reasoning before it: the other is empty."""

    text: str = ""
    reasoning: str = ""
