"""The one owner of an engine's steps. Whoever waits for a sequence advances all that are live.

Any thread may wait here. One of those that wait steps the engine, for all of them; the others sleep until it has, and one of them
steps on when it has what it wanted. Several streams of one thread may be interleaved.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Condition, get_ident

from dali.engine.engine import Engine
from dali.engine.sequence import Sequence
from dali.engine.text.piece import Piece
from dali.errors import DaliError


class Loop:
    """Runs sequences on `engine` to their end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.watch: Callable[[Callable[[], object]], None] | None = (
            None  # does each step, for whoever looks on
        )
        self._process = os.getpid()
        self._turn = Condition()
        self._stepper: int | None = None  # the thread that is in the engine's step
        self._entering = 0  # threads that wait for a step's end to let sequences join or leave
        self._leaving: deque[Sequence] = deque()  # given up by the stepper itself, within the step

    @contextmanager
    def between_steps(self) -> Iterator[Engine]:
        """The engine, while nobody steps it. Goes before the next step, however many wait for that.

        DaliError in a forked process."""
        check_process(self._process)
        with self._turn:
            self._entering += 1
            try:
                self._turn.wait_for(lambda: self._stepper is None)
            finally:
                self._entering -= 1
            try:
                yield self.engine
            finally:
                self._turn.notify_all()

    def stream(self, sequence: Sequence) -> Generator[Piece, None, None]:
        """Run one sequence; yields its text as it becomes final. Closing the generator aborts it."""
        text = sequence.text
        assert text is not None, "a stream needs a sequence with text"
        with self.between_steps() as engine:
            engine.add(sequence)
        try:
            while text.pieces or sequence.finish_reason is None:
                if text.pieces:
                    yield text.pieces.popleft()
                else:
                    self._advance(lambda: bool(text.pieces) or sequence.finish_reason is not None)
        finally:
            self.abort([sequence])
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
            while True:
                with self.between_steps() as engine:
                    for sequence in live:
                        if sequence.error is not None:
                            raise sequence.error
                    live = [sequence for sequence in live if sequence.finish_reason is None]
                    while waiting and (at_once is None or len(live) < at_once):
                        live.append(waiting.popleft())
                        engine.add(live[-1], fresh)
                if not live:
                    return
                self._advance(partial(_any_ended, live))
                after_step(live)
        finally:
            self.abort(live)

    def step(self) -> None:
        """Step once, for a thread that lets sequences join and leave itself."""
        self._advance(lambda: False)

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Take those that have not ended out of the engine; whoever waits for them has what there is."""
        if self.forked:  # they are the parent's
            return
        if self._stepper == get_ident():
            self._leaving.extend(
                sequences
            )  # Python collects a forgotten stream wherever it likes, in a step too
            return
        with self.between_steps() as engine:
            for sequence in sequences:
                engine.abort(sequence)

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that made the loop: it has a copy of the memory, and none of the threads."""
        return os.getpid() != self._process

    def _advance(self, enough: Callable[[], bool]) -> None:
        """Step the engine once, unless other threads' steps are `enough` before it is this one's turn."""
        check_process(self._process)
        me = get_ident()
        try:
            with self._turn:
                self._turn.wait_for(lambda: enough() or (self._stepper is None and not self._entering))
                if enough():
                    return
                self._stepper = me
            if self.watch is None:
                self.engine.step()
            else:
                self.watch(self.engine.step)
        finally:
            if self._stepper == me:
                with self._turn:
                    self._stepper = None
                    while self._leaving:
                        self.engine.abort(self._leaving.popleft())
                    self._turn.notify_all()


def check_process(loaded_in: int) -> None:
    """DaliError where this is not the process `loaded_in`: what a fork leaves behind, native threads and torch's, would be waited
    for without end."""
    if os.getpid() != loaded_in:
        raise DaliError(
            "This process was forked from one that has loaded a model, and a fork leaves behind the threads that compute.",
            'Load the model in a process that was started anew, as by multiprocessing\'s "spawn" method.',
        )


def _any_ended(sequences: list[Sequence]) -> bool:
    return any(sequence.finish_reason is not None for sequence in sequences)
