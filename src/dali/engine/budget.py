"""How much memory the states of all sequences may take together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dali.step.size import StateSize


@dataclass(frozen=True)
class StateBudget:
    """At most `nbytes` of states, each of the `size` that the model's layers give it."""

    nbytes: int
    size: StateSize

    def within(self, nbytes: int) -> StateBudget:
        """The same, of no more than that."""
        return replace(self, nbytes=min(self.nbytes, nbytes))
