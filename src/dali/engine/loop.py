"""The one owner of an engine's steps. Whoever waits for a sequence advances all that are live.

Not thread-safe: one thread runs it, and several streams of that thread may be interleaved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable

from dali.engine.engine import Engine
from dali.engine.sequence import Sequence


class Loop:
    """Runs sequences on `engine` to their end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def stream(self, sequence: Sequence) -> Generator[str, None, None]:
        """Run one sequence; yields its text as it becomes final. Closing the generator aborts it."""
        text = sequence.text
        assert text is not None, "a stream needs a sequence with text"
        self.engine.add(sequence)
        try:
            while text.pieces or sequence.finish_reason is None:
                if text.pieces:
                    yield text.pieces.popleft()
                else:
                    self.engine.step()
        finally:
            self.engine.abort(sequence)
        if sequence.error is not None:
            raise sequence.error

    def complete(
        self,
        sequences: Iterable[Sequence],
        at_once: int | None = None,
        fresh: bool = False,
        after_step: Callable[[list[Sequence]], None] = lambda live: None,
    ) -> None:
        """Run sequences to their end, `at_once` of them side by side (None: all), and raise the error of one that failed.

        fresh: each prompt is computed in full, whatever it shares with an earlier one. `after_step` is told after each step which
        sequences took part. Whatever goes wrong, none of them stays in the engine.
        """
        waiting = deque(sequences)
        live: list[Sequence] = []
        try:
            while waiting or live:
                while waiting and (at_once is None or len(live) < at_once):
                    live.append(waiting.popleft())
                    if fresh:
                        self.engine.forget()
                    self.engine.add(live[-1])
                self.engine.step()
                after_step(live)
                for sequence in live:
                    if sequence.error is not None:
                        raise sequence.error
                live = [sequence for sequence in live if sequence.finish_reason is None]
        finally:
            for sequence in live:
                self.engine.abort(sequence)
