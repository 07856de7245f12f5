"""Static placement by popularity."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

from dali.policies.cache import CachePolicy, Swap
from dali.policies.signals import Signals

PROFILED = 512  # (token, expert) pairs of a layer


class PopularCache(CachePolicy):
    """Each layer's most used experts, chosen once and kept. Systems with a static popular set take it from a profile made
    elsewhere; here the first `profiled` pairs of each layer are the profile."""

    def __init__(
        self, layers: int, experts: int, capacity: int, seed: int = 0, profiled: int = PROFILED
    ) -> None:
        super().__init__(layers, experts, capacity, seed)
        self.profiled = profiled
        self._counts = [[0] * experts for _ in range(layers)]
        self._placed = [False] * layers

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        if self._placed[layer]:
            return []
        counts = [seen + tokens for seen, tokens in zip(self._counts[layer], workload, strict=True)]
        self._counts[layer] = counts
        if sum(counts) < self.profiled:
            return []
        self._placed[layer] = True
        return place(counts, resident, protected)


def place(counts: Sequence[float], resident: Set[int], protected: Set[int]) -> list[Swap]:
    """Swaps that make the experts of highest count resident: only for strictly higher ones, ties to the lower id."""
    loads = sorted(
        set(range(len(counts))) - resident - protected, key=lambda expert: (-counts[expert], expert)
    )
    victims = sorted(resident - protected, key=lambda expert: (counts[expert], expert))
    pairs = zip(victims, loads, strict=False)
    return [Swap(evict, load) for evict, load in pairs if counts[load] > counts[evict]]
