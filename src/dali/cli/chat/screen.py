"""Where an answer is shown: reasoning dim and on terminals only, words unbroken at a terminal's edge."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, TextIO

from dali.cli.chat.wrapping import Wrapping
from dali.cli.terminal import DIM, is_terminal, styled

if TYPE_CHECKING:
    from dali.engine.text.piece import Piece


class Screen:
    """Shows the pieces of one answer. The text goes to stdout; reasoning goes wherever there is a terminal."""

    def __init__(self) -> None:
        self._text = _Stream(sys.stdout, sys.stdout.isatty())
        self._reasoning: _Stream | None = None
        if sys.stdout.isatty():
            self._reasoning = _Stream(sys.stdout, True, dim=True)
        elif is_terminal():
            self._reasoning = _Stream(sys.stderr, True, dim=True)

    def show(self, piece: Piece) -> None:
        if piece.reasoning and self._reasoning is not None:
            self._reasoning.write(piece.reasoning)
        if piece.text:
            if self._reasoning is not None:
                self._reasoning.end("\n\n")
            self._text.write(piece.text)

    def end(self) -> None:
        """The answer is over: what follows begins on a new line."""
        if self._reasoning is not None:
            self._reasoning.end("\n")
        self._text.end("\n")


class _Stream:
    """Text on its way to `file`; `wide`: which is a terminal."""

    def __init__(self, file: TextIO, wide: bool, dim: bool = False) -> None:
        self._file = file
        self._wrapping = Wrapping(shutil.get_terminal_size().columns) if wide else None
        self._dim = dim
        self._last = ""  # text shown, as far as anything depends on it

    def write(self, text: str) -> None:
        self._show(text if self._wrapping is None else self._wrapping.push(text))

    def end(self, mark: str) -> None:
        """Show what was held back and then `mark`, of which a newline may stand there; nothing where nothing was shown."""
        if self._wrapping is not None:
            self._show(self._wrapping.flush())
        if self._last:
            print(mark[1:] if self._last == "\n" else mark, end="", file=self._file, flush=True)
        self._last = ""

    def _show(self, text: str) -> None:
        if text:
            print(styled(text, DIM, self._file) if self._dim else text, end="", file=self._file, flush=True)
            self._last = text[-1]
