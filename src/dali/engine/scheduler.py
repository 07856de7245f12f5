"""Which sequences a step advances, and by how many tokens."""

from __future__ import annotations

from collections import deque

from dali.engine.sequence import Sequence


class Scheduler:
    """Every decoding sequence takes one token a step, and those of its draft; what is left of `step_tokens` goes to prefill,
    oldest first.

    With `limits` (see hooks/rope.py) a step holds sequences of one regime; the regimes take turns.

    With a `budget`, the bytes that states may take, sequences join in the order in which they were added: each when its
    `state_bytes` fit beside those of live ones.
    """

    def __init__(self, step_tokens: int, limits: tuple[int, ...] = ()) -> None:
        self.step_tokens = step_tokens
        self.limits = limits
        self.budget: int | None = None
        self.waiting: deque[Sequence] = deque()
        self.live: list[Sequence] = []
        self._last_regime = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def has_room(self, sequence: Sequence, beside: int = 0) -> bool:
        """Whether `sequence` fits beside the live ones and so many bytes."""
        if self.budget is None:
            return True
        return beside + sequence.state_bytes + sum(one.state_bytes for one in self.live) <= self.budget

    def awaits_disk(self, seconds: float) -> bool:
        """Whether the one that has waited longest does so for what is read from disk; looks for so many seconds at most, as
        others may want to join or leave."""
        reading = self.waiting[0].reading if self.waiting else None
        if reading is None:
            return False
        reading.wait(seconds)
        return True

    def join(self) -> None:
        """Let the one that has waited longest take part in steps."""
        self.live.append(self.waiting.popleft())

    def remove(self, sequence: Sequence) -> None:
        (self.live if sequence in self.live else self.waiting).remove(sequence)

    def regime(self, sequence: Sequence) -> int:
        """How many of the limits the sequence is beyond, the token to be computed included."""
        return sum(len(sequence.tokens) > limit for limit in self.limits)

    def next(self) -> list[tuple[Sequence, int]]:
        """(sequence, tokens) of the next step; empty when nothing is live."""
        regimes = {self.regime(sequence) for sequence in self.live}
        higher = [regime for regime in regimes if regime > self._last_regime]
        regime = self._last_regime = min(higher or regimes, default=0)
        candidates = [sequence for sequence in self.live if self.regime(sequence) == regime]
        plan = [(one, 1 + len(one.draft)) for one in candidates if not one.in_prefill]
        room = max(self.step_tokens - sum(tokens for _, tokens in plan), 1)
        for sequence in candidates:
            if sequence.in_prefill and room > 0:
                tokens = min(sequence.pending, room)
                plan.append((sequence, tokens))
                room -= tokens
        return plan
