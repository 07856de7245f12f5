"""How much of a long prompt has been read, while there is no answer to show yet."""

from __future__ import annotations

from threading import Event, Thread
from typing import TYPE_CHECKING

from dali.cli.terminal import is_terminal, passing_note

if TYPE_CHECKING:
    from dali.engine.sequence import Sequence

SECONDS = 0.5  # between two notes; what is read sooner needs none


class Reading:
    """Notes on a terminal, from now until `end`."""

    def __init__(self, sequence: Sequence) -> None:
        passing_note()
        self._sequence = sequence
        self._ended = Event()
        self._thread = Thread(target=self._note, daemon=True)
        if is_terminal():
            self._thread.start()

    def end(self) -> None:
        """Take the note away; nothing is noted afterwards."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        passing_note()

    def _note(self) -> None:
        while not self._ended.wait(SECONDS):
            read, all_of_it = self._sequence.computed, self._sequence.prompt_tokens
            if read < all_of_it:
                passing_note(f"Reading the prompt: {read:,} of {all_of_it:,} tokens")
