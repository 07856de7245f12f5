"""Residency by fading workload (ours): an expert's score is its tokens, a step's worth a tenth less with each that follows.

Experts that the layer has just fetched take the slots of residents of lower score, which copies nothing. In a layer that
fetched none, the highest score that is absent replaces the lowest resident one; that needs a copy, and the runtime makes it
only while the link is all but idle. With one token a step the score blends frequency and recency; with many it is the
workload's mean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

from dali.policies.cache import CachePolicy, Swap
from dali.policies.signals import Signals

FADING = 0.9  # a step


class Policy(CachePolicy):
    """`fading`, the default. A pair is swapped only when the incoming score is strictly higher; ties go to the lower id."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._scores = [[0.0] * experts for _ in range(layers)]

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        scores = self._scores[layer] = [
            FADING * score + tokens for score, tokens in zip(self._scores[layer], workload, strict=True)
        ]
        loads = sorted(set(fetched) - protected, key=lambda expert: (-scores[expert], expert))
        if not loads:
            absent = (e for e in range(self.experts) if e not in resident and e not in protected)
            loads = sorted(absent, key=lambda expert: (-scores[expert], expert))[:1]
        victims = sorted(resident - protected, key=lambda expert: (scores[expert], expert))
        return [
            Swap(evict, load)
            for evict, load in zip(victims, loads, strict=False)
            if scores[load] > scores[evict]
        ]
