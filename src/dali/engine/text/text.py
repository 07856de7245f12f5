"""One sequence's text: what of it is final, piece by piece, and whether it has met a stop string."""

from __future__ import annotations

from collections import deque
from typing import Any

from dali.engine.text.detokenizer import Detokenizer
from dali.engine.text.stop import StopStrings


class Text:
    """Turns tokens into `pieces` of final text, for whoever reads them."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self.pieces: deque[str] = deque()  # not yet taken
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(stop)

    def follow(self, token: int) -> None:
        """Decode what comes as a continuation of `token`, the prompt's last: some tokenizers drop a first one's leading space."""
        self._detokenizer.push(token)

    def push(self, token: int) -> bool:
        """Take a token; whether the text has now met a stop string, which ends it."""
        return self._take(self._detokenizer.push(token))

    def finish(self) -> None:
        """Let out what was held back: the sequence is over, and met no stop string before."""
        if not self._take(self._detokenizer.flush()):
            self._emit(self._stop.flush())

    def _take(self, text: str) -> bool:
        safe, stopped = self._stop.push(text)
        self._emit(safe)
        return stopped

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
