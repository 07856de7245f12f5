"""Which sequences a step advances, and by how many tokens."""

from __future__ import annotations

from dali.engine.sequence import Sequence


class Scheduler:
    """Every decoding sequence takes one token a step; what is left of `step_tokens` goes to prefill, oldest first.

    With a `short_limit` (see hooks/rope.py) a step holds sequences of one regime; the regimes take turns.
    """

    def __init__(self, step_tokens: int, short_limit: int | None = None) -> None:
        self.step_tokens = step_tokens
        self.short_limit = short_limit
        self.live: list[Sequence] = []
        self._last_regime = False

    def add(self, sequence: Sequence) -> None:
        self.live.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        self.live.remove(sequence)

    def is_long(self, sequence: Sequence) -> bool:
        return self.short_limit is not None and len(sequence.tokens) > self.short_limit

    def next(self) -> list[tuple[Sequence, int]]:
        """(sequence, tokens) of the next step; empty when nothing is live."""
        regimes = {self.is_long(sequence) for sequence in self.live}
        regime = not self._last_regime if len(regimes) == 2 else any(regimes)
        self._last_regime = regime
        candidates = [sequence for sequence in self.live if self.is_long(sequence) == regime]
        plan = [(sequence, 1) for sequence in candidates if not sequence.in_prefill]
        room = max(self.step_tokens - len(plan), 1)
        for sequence in candidates:
            if sequence.in_prefill and room > 0:
                tokens = min(sequence.pending, room)
                plan.append((sequence, tokens))
                room -= tokens
        return plan
