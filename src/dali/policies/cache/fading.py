"""Residency by fading workload (ours): an expert's score is its tokens, each worth less with every step that follows.

One sum of tokens fades fast, by what the context is about, and one slowly, by what the model always favours. Experts that the
layer has just fetched take the slots of residents of lower score, which copies nothing. In a layer that fetched none, the highest
score that is absent replaces the lowest resident one; that needs a copy, and the runtime makes it only while the link is all but
idle.

A step that brings an expert many tokens brings it no more than MOST, or twice what an even routing would: what its absence costs,
a copy, is the same for all of them, and sequences that begin alike would else be remembered long after they have parted. For the
same reason, and as residents are random at first, sums fade faster in the first steps: by a third in the second, by a quarter in
the third, and so on until FADING is reached.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence, Set
from math import inf

from dali.policies.cache import CachePolicy, Swap
from dali.policies.signals import Signals

FADING = 0.85, 0.97  # a step, of the fast and of the slow sum
MOST = 8  # tokens of one step that count for an expert, where an even routing brings at most half as many
SLOW_SHARE = 0.4  # of the slow sum in a score: where routing is steady, twice the weight of the fast one


class Policy(CachePolicy):
    """`fading`, the default. A pair is swapped only when the incoming score is strictly higher; ties go to the lower id."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._sums = [[array("d", [0.0]) * experts for _ in FADING] for _ in range(layers)]
        self._steps = [0] * layers
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
        self._steps[layer] += 1
        young = self._steps[layer] / (self._steps[layer] + 1)
        most = max(MOST, 2 * sum(workload) // self.experts)
        for place, fading in enumerate(FADING):
            worth[place] /= min(fading, young)
            if worth[place] > 1e100:
                sums[place] = array("d", [tokens / worth[place] for tokens in sums[place]])
                worth[place] = 1.0
        (fast, slow), (fast_worth, slow_worth) = sums, worth
        for expert, tokens in enumerate(workload):
            if tokens:
                counted = tokens if tokens < most else most
                fast[expert] += counted * fast_worth
                slow[expert] += counted * slow_worth
        share = SLOW_SHARE * fast_worth / slow_worth
        loads = [(-fast[e] - share * slow[e], e) for e in set(fetched) - protected] if fetched else ()
        if not loads:
            return _best(fast, slow, share, resident, protected)
        residents = [(fast[e] + share * slow[e], e) for e in resident if e not in protected]
        victims = sorted(residents) if len(loads) > 1 or not residents else [min(residents)]
        pairs = zip(victims, sorted(loads), strict=False)
        return [Swap(evict, load) for (low, evict), (high, load) in pairs if -high > low]


def _best(
    fast: Sequence[float], slow: Sequence[float], share: float, resident: Set[int], protected: Set[int]
) -> list[Swap]:
    """The highest absent score for the lowest resident one, in one pass: most layers' of most steps."""
    load = evict = -1
    highest, lowest = 0.0, inf
    for expert, (one, other) in enumerate(zip(fast, slow, strict=True)):
        score = one + share * other
        if score > highest:
            if expert in resident:
                if score < lowest and expert not in protected:
                    lowest, evict = score, expert
            elif expert not in protected:
                highest, load = score, expert
        elif score < lowest and expert in resident and expert not in protected:
            lowest, evict = score, expert
    return [Swap(evict, load)] if evict >= 0 and highest > lowest else []
