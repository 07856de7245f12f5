"""A guard that stops an activity (prefetch, swaps) while it costs more than it brings.

It is handed measured seconds once a step and knows no clock. Each window of steps is judged as a whole.
Hysteresis: a trial must bring a margin more than it costs to stay on, and what is on is stopped only when it
costs a margin more than it brings. After a rest a new trial begins; each failed trial doubles the rest, so an
activity that never pays soon costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Set

from dali.policies.cache import Swap


class Guard:
    """`on` says whether to go ahead. Lengths are in steps; `margin` is a fraction of the cost."""

    def __init__(
        self, window: int = 32, margin: float = 0.1, rest: int = 64, longest_rest: int = 4096
    ) -> None:
        self.window = window
        self.margin = margin
        self.rest = rest
        self.longest_rest = longest_rest
        self.on = True
        self._trial = True
        self._next_rest = rest
        self._resting = 0
        self._steps = 0
        self._cost = self._benefit = 0.0

    def record(self, cost: float, benefit: float) -> None:
        """One step's cost and benefit in seconds; they are ignored while the activity rests."""
        if not self.on:
            self._resting -= 1
            if self._resting == 0:
                self.on = self._trial = True
            return
        self._cost += cost
        self._benefit += benefit
        self._steps += 1
        if self._steps < self.window:
            return
        bar = self._cost * (1 + self.margin if self._trial else 1 - self.margin)
        if self._benefit >= bar:
            self._trial = False
            self._next_rest = self.rest
        else:
            self.on = False
            self._resting = self._next_rest
            self._next_rest = min(2 * self._next_rest, self.longest_rest)
        self._steps = 0
        self._cost = self._benefit = 0.0


class CopiedSwaps:
    """A layer's swaps that were paid for with a copy: what they bring lasts, so a guard has to ask what would be resident now if
    none of them had been made since its trial began."""

    def __init__(self) -> None:
        self._instead: dict[int, int] = {}  # of an expert copied in, the one that would still be there

    def note(self, swap: Swap, copied: bool) -> None:
        undone = self._instead.pop(swap.evict, swap.evict)
        if copied:
            self._instead[swap.load] = undone

    def undone(self, resident: Set[int]) -> set[int]:
        """The residents without them; empty where none was made."""
        return {*(resident - self._instead.keys()), *self._instead.values()} if self._instead else set()
