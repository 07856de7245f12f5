"""An answer with calls of tools in its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form
from dali.engine.text.calls.source import Schema, Source
from dali.engine.text.piece import Piece

if TYPE_CHECKING:
    from dali.engine.text.structure import Structure


class Calling:
    """Takes the calls out of what another structure holds to be text; a structure.Structure itself.

    White space between text and a call, and between calls, belongs to neither. A call that is cut off is given out as far as it
    came; where not even its name came, it is text.
    """

    def __init__(
        self, inner: Structure, form: Form, tokenizer: Any, tools: Sequence[Schema], most: int | None = None
    ) -> None:
        """most: how many calls an answer may have; after so many it ends."""
        special = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._own = {special[mark]: mark for mark in form.marks if mark in special}
        self.markers: Mapping[int, str] = {**self._own, **inner.markers}
        self.over = False
        self._inner = inner
        self._source = Source(tools)
        self._reading = form.read(self._source)
        self._most = most
        self._white = ""  # at the end of the text so far
        self._after_call = False  # no text since

    def push(self, text: str) -> list[Piece]:
        return self._read(self._inner.push(text))

    def mark(self, marker: str) -> list[Piece]:
        told = marker in self._inner.markers.values()
        return self._read(self._inner.mark(marker) if told else self._inner.push(marker))

    def flush(self) -> list[Piece]:
        pieces = self._read(self._inner.flush())
        self._source.over = True
        pieces += self._run()
        if self._white and not self._source.begun:
            pieces.append(Piece(self._white))
        return pieces

    def lead(self, lark: Lark) -> str:
        return self._inner.lead(lark)

    def _read(self, inner: list[Piece]) -> list[Piece]:
        pieces = []
        for piece in inner:
            if piece.text:
                self._source.held += piece.text
                pieces += self._run()
            else:
                pieces.append(piece)
        return pieces

    def _run(self) -> list[Piece]:
        pieces = []
        for piece in self._reading:
            if piece is None:
                break
            if self.over or (piece.call and self._most is not None and piece.call.number >= self._most):
                self.over = True
            elif piece.call:
                self._white, self._after_call = "", True
                if piece.call.name or piece.call.arguments:
                    pieces.append(piece)
            elif piece.text:
                pieces += self._with_white(piece.text)
        self.over = self.over or (self._most is not None and self._source.ended >= self._most)
        return pieces

    def _with_white(self, text: str) -> list[Piece]:
        text = text.lstrip() if self._after_call else self._white + text
        self._after_call = self._after_call and not text
        said = text.rstrip()
        self._white = text[len(said) :]
        return [Piece(said)] if said else []
