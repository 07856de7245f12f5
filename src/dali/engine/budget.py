"""How much memory the states of all sequences may take together."""

from __future__ import annotations

from dataclasses import dataclass

from dali.step.size import StateSize


@dataclass(frozen=True)
class StateBudget:
    """At most `nbytes` of states, each of the `size` that the model's layers give it."""

    nbytes: int
    size: StateSize
