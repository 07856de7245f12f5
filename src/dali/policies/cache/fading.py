"""Residency by fading workload (ours): an expert's score is its tokens, each worth less with every step that follows.

One sum of tokens fades fast, by what the context is about, and one slowly, by what the model always favours. Experts that the
layer has just fetched take the slots of residents of lower score, which copies nothing. In a layer that fetched none, the highest
score that is absent replaces the lowest resident one; that needs a copy, and the runtime makes it only while the link is all but
idle.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence, Set

from dali.policies.cache import CachePolicy, Swap
from dali.policies.signals import Signals

FADING = 0.85, 0.97  # a step, of the fast and of the slow sum
SLOW_SHARE = 0.4  # of the slow sum in a score: where routing is steady, twice the weight of the fast one


class Policy(CachePolicy):
    """`fading`, the default. A pair is swapped only when the incoming score is strictly higher; ties go to the lower id."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._every = set(range(experts))
        self._sums = [[array("d", [0.0]) * experts for _ in FADING] for _ in range(layers)]
        self._worth = [[1.0, 1.0] for _ in range(layers)]  # a token's: it grows where sums would have to fade

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        sums, worth = self._sums[layer], self._worth[layer]
        for place, fading in enumerate(FADING):
            worth[place] /= fading
            if worth[place] > 1e100:
                sums[place] = array("d", [tokens / worth[place] for tokens in sums[place]])
                worth[place] = 1.0
        (fast, slow), (fast_worth, slow_worth) = sums, worth
        for expert, tokens in enumerate(workload):
            if tokens:
                fast[expert] += tokens * fast_worth
                slow[expert] += tokens * slow_worth
        share = SLOW_SHARE * fast_worth / slow_worth
        scores = [one + share * other for one, other in zip(fast, slow, strict=True)]
        score = scores.__getitem__  # sorting is stable, and max takes the first: ties go to the lower id
        loads = sorted(sorted(set(fetched) - protected), key=score, reverse=True)
        if not loads:
            absent = sorted(self._every - resident - protected)
            loads = [max(absent, key=score)] if absent else []
        victims = sorted(sorted(resident - protected), key=score)
        pairs = zip(victims, loads, strict=False)
        return [Swap(evict, load) for evict, load in pairs if scores[load] > scores[evict]]
