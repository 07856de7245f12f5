"""The last finished sequence, whose state serves a prompt that continues it as it is: it needs no copy."""

from __future__ import annotations

from dali.engine.sequence import Sequence
from dali.step.state import SequenceState


class Last:
    """Keeps one `sequence`, or none."""

    def __init__(self) -> None:
        self.sequence: Sequence | None = None

    @property
    def state_bytes(self) -> int:
        """What its state takes, where memory has a budget."""
        return 0 if self.sequence is None else self.sequence.state_bytes

    def give_up(self) -> None:
        last, self.sequence = self.sequence, None
        if last is not None:
            last.state.clear()  # somebody may hold the sequence still

    def shared(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens the state can go back to."""
        last = self.sequence
        if last is None or last.regime != sequence.regime:
            return 0
        shared = 0
        for ours, theirs in zip(sequence.tokens[:-1], last.tokens[: last.computed], strict=False):
            if ours != theirs:
                break
            shared += 1
        return last.state.nearest(shared) or 0

    def hand_over(self, sequence: Sequence, place: int) -> None:
        """Let `sequence` go on from the first `place` tokens, which are shared with it."""
        last = self.sequence
        assert last is not None, "what is shared is shared with somebody"
        self.sequence = None  # first: an interrupted rollback must leave nobody a state halfway
        last.state.rollback(place)
        sequence.state, last.state = last.state, SequenceState()
        sequence.computed = sequence.cached_tokens = place
