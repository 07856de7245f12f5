"""What a form of calls is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece


@dataclass(frozen=True)
class Form:
    """How models write calls. `fits`: whether a chat template asks for it; `marks`: what divides it, as tokens of their own in
    many vocabularies; `read`: takes the calls out of an answer."""

    fits: Callable[[str], bool]
    marks: tuple[str, ...]
    read: Callable[[Source], Iterator[Piece | None]]
