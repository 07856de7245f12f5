"""One ask under way: its choices in the engine's thread, and what an event loop reads of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING

from dali.engine.text.piece import call_id
from dali.serve.generation.events import (
    Answer,
    Delta,
    Finish,
    Part,
    Reasoning,
    Text,
    Timings,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from dali.engine.sequence import Sequence as EngineSequence
    from dali.engine.text.piece import Piece


class Choice:
    """One sequence of a generation. Belongs to the thread that steps the engine."""

    def __init__(self, generation: Generation, index: int, sequence: EngineSequence) -> None:
        self.generation = generation
        self.index = index
        self.sequence = sequence
        self._told = 0  # tokens that were handed out
        self._told_logprobs = 0
        self._reasoning = 0  # tokens up to the last piece of reasoning
        self._calls = False  # whether it has called a tool

    def take(self, modelled: bool = False) -> Delta | None:
        """What is new since the last call; None where nothing is."""
        sequence, parts = self.sequence, self._parts()
        tokens = sequence.tokens[sequence.prompt_tokens + self._told :]
        if not parts and not tokens and sequence.finish_reason is None:
            return None
        self._told += len(tokens)
        if parts and isinstance(parts[-1], Reasoning):
            self._reasoning = self._told
        logprobs = sequence.logprobs[self._told_logprobs :]
        self._told_logprobs += len(logprobs)
        finish = None if sequence.finish_reason is None else self._finish(modelled)
        return Delta(self.index, parts, tuple(tokens), tuple(logprobs), finish)

    def _parts(self) -> tuple[Part, ...]:
        pieces: deque[Piece] = deque() if self.sequence.text is None else self.sequence.text.pieces
        parts: list[Part] = []
        while pieces:
            piece = pieces.popleft()
            if piece.reasoning:
                parts.append(Reasoning(piece.reasoning))
            if piece.text:
                parts.append(Text(piece.text))
            if call := piece.call:
                self._calls = True
                parts.append(ToolCall(call.number, call_id() if call.name else "", call.name, call.arguments))
        return tuple(parts)

    def _finish(self, modelled: bool) -> Finish:
        sequence = self.sequence
        usage = Usage(
            sequence.prompt_tokens,
            sequence.cached_tokens,
            self._told,
            self._reasoning,
            sequence.drafted,
            sequence.accepted,
        )
        timings = Timings(sequence.prefill_seconds, sequence.decode_seconds, modelled)
        stop = None if sequence.text is None else sequence.text.stopped_by
        reason = sequence.finish_reason or "abort"
        if reason == "stop" and self._calls and stop is None:
            reason = "tool_calls"
        return Finish(reason, usage, timings, stop, sequence.error)


class Generation:
    """What an event loop has of an ask: deltas as they come. Whoever stops reading before the end cancels it."""

    def __init__(self, sequences: Sequence[EngineSequence], cancel: Callable[[Generation], None]) -> None:
        """To be made in the event loop that reads it. `cancel`: takes it out of the engine, from any thread, at once or after the
        step under way."""
        self.choices = [Choice(self, index, sequence) for index, sequence in enumerate(sequences)]
        self.loop = asyncio.get_running_loop()
        self._cancel = cancel
        self._open = len(self.choices)  # choices whose last delta was not read
        self._mail: deque[Delta] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._quiet = False  # nothing that clients see came since the last tick

    def cancel(self) -> None:
        """Its choices that have not ended end with "abort"."""
        if self._open:
            self._cancel(self)

    def deliver(self, delta: Delta) -> None:
        """Called in the event loop."""
        self._mail.append(delta)
        self._quiet = self._quiet and not delta.parts and delta.finish is None
        self._wake_reader()

    async def deltas(self, pause: float | None = None) -> AsyncGenerator[Delta | None, None]:
        """Each choice's deltas up to its last one. None whenever nothing that clients see came for `pause` seconds, or
        somewhat longer."""
        if pause is not None:
            self._tick(pause)
        try:
            while self._open:
                if not self._mail:
                    self._wake = self.loop.create_future()
                    await self._wake
                    self._wake = None
                    if not self._mail:
                        yield None
                while self._mail:
                    delta = self._mail.popleft()
                    self._open -= delta.finish is not None
                    yield delta
        finally:
            if self._ticking is not None:
                self._ticking.cancel()
            self.cancel()

    def _tick(self, pause: float) -> None:
        """One timer for the whole stream costs less than one a delta."""
        if self._quiet:
            self._wake_reader()
        self._quiet = True
        self._ticking = self.loop.call_later(pause, self._tick, pause)

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def answers(self) -> list[Answer]:
        """All choices, when all have ended."""
        answers = [Answer() for _ in self.choices]
        async for delta in self.deltas():
            if delta is not None:
                answers[delta.choice].add(delta)
        return answers
