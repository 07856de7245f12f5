"""One sequence's text: what of it is final, piece by piece, and whether it has met a stop string."""

from __future__ import annotations

from collections import deque
from typing import Any

from dali.engine.text.detokenizer import Detokenizer
from dali.engine.text.piece import Piece
from dali.engine.text.stop import StopStrings
from dali.engine.text.structure import Plain, Structure


class Text:
    """Turns tokens into `pieces` of final text, for whoever reads them."""

    def __init__(
        self, tokenizer: Any, stop: tuple[str, ...] = (), structure: Structure | None = None
    ) -> None:
        """stop: strings that end the text, those that are a token of their own also as that token, which has no text if it is a
        special one. structure: what divides the answer; None where all is text."""
        self.pieces: deque[Piece] = deque()  # not yet taken
        self.stopped_by: str | None = None  # the stop string that was met
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(stop)
        added = tokenizer.get_added_vocab() if stop else {}
        self._stop_tokens = {added[text]: text for text in stop if text in added}
        self._structure = Plain() if structure is None else structure

    def follow(self, token: int) -> None:
        """Decode what comes as a continuation of `token`, the prompt's last: some tokenizers drop a first one's leading space."""
        self._detokenizer.push(token)

    def push(self, token: int) -> bool:
        """Take a token; whether it ends the text: a stop string or token was met, or the structure is over."""
        if token in self._stop_tokens:
            self.finish()
            self.stopped_by = self._stop_tokens[token]
            return True
        marker = self._structure.markers.get(token)
        if marker is None:
            return self._take(self._detokenizer.push(token))
        if self._take(self._detokenizer.flush()):
            return True
        self.pieces += self._structure.push(self._stop.flush())  # no stop string has a marker in it
        self.pieces += self._structure.mark(marker)
        return self._structure.over

    def finish(self) -> None:
        """Let out what was held back: the sequence is over, and met no stop string before."""
        if not self._take(self._detokenizer.flush()):
            self.pieces += self._structure.push(self._stop.flush()) + self._structure.flush()

    def _take(self, text: str) -> bool:
        safe, stopped = self._stop.push(text)
        self.pieces += self._structure.push(safe)
        if stopped is not None:
            self.pieces += self._structure.flush()
            self.stopped_by = stopped
        return stopped is not None or self._structure.over
